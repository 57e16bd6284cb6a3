"""Memory-efficient variants of the layers: same modules and weights, another forward pass.

- :class:`CheckpointedDenseLayer` keeps its inputs, and recomputes concatenation, norm and ReLU. It
  and :class:`CheckpointedSequential` let ReLU write over the output of the norm, which saves time.
- The recomputed variants run no convolution twice: they recompute norm and ReLU from the statistics
  of the batch. The feature maps of a block are stored in one buffer, without concatenation.
- :class:`MinimalDenseLayer` also recomputes the bottleneck, and keeps the feature maps alone.
- The fused variants keep what the recomputed ones do, and compute norm and ReLU by kernels of ours.

Each runs the plain forward pass of its class unless :func:`conditions.is_supported`.
"""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.memory.conditions import (
    Stage,
    are_supported_inputs,
    can_pool_first,
    has_hooks,
    is_eager_with_grad,
    is_patched,
    is_supported,
    know,
    output_shape,
)
from densenet_tutorial.memory.functions import (
    Buffer,
    NormReluOperation,
    checkpointed,
    parameters_of,
)
from densenet_tutorial.memory.fused import FusedBlock, FusedStage, is_fusable


class Variant(nn.Module):
    """Base class of all variants, which cannot be scripted, since recomputing needs Python."""

    def __prepare_scriptable__(self) -> nn.Module:
        modes = [mode for mode, variants in VARIANTS.items() if type(self) in variants.values()]
        raise RuntimeError(
            f"torch.jit.script cannot compile memory_efficient={' or '.join(map(repr, modes))}, "
            "because computing again needs Python; call set_memory_efficient(model, False) first"
        )


def _with_relu_in_place(stage: Stage, x: Tensor) -> Tensor:
    """The stage, in which ReLU writes over the output of the norm, which nobody else reads."""
    x = stage.operation(stage.norm(x).relu_())
    return x if stage.pool is None else stage.pool(x)


class CheckpointedDenseLayer(Variant, DenseLayer):
    """A dense layer that keeps its inputs, and everything after its first convolution."""

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        if self.bn_size is None or not is_eager_with_grad() or is_patched(self):
            return super().forward(input)
        x = self.bn_function(input if isinstance(input, (list, tuple)) else [input])
        stage = Stage(self.norm2, self.relu2, self.conv2)
        if is_supported([x], [stage]):
            x = _with_relu_in_place(stage, x)
        else:
            x = self.conv2(self.relu2(self.norm2(x)))
        return F.dropout(x, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else x

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        stage = Stage(self.norm1, self.relu1, self.conv1)
        if is_supported(inputs, [stage]) and not is_patched(self):
            return checkpointed(stage, inputs)
        return super().bn_function(inputs)


class RecomputedDenseLayer(Variant, DenseLayer):
    """A dense layer that keeps its input and its bottleneck."""

    def stages(self) -> list[Stage]:
        """Everything that the layer computes, except dropout."""
        first = Stage(self.norm1, self.relu1, self.conv1)
        if self.bn_size is None:
            return [first]
        return [first, Stage(self.norm2, self.relu2, self.conv2)]

    def parts(self) -> list[list[Stage]]:
        """The stages in groups; the input of each group is kept."""
        return [[stage] for stage in self.stages()]

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        inputs = input if isinstance(input, (list, tuple)) else [input]
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        if is_supported([x], self.stages()) and not is_patched(self):
            return self.compute(x, None)
        return super().forward(x)

    def compute(self, x: Tensor, statistics: Tensor | None) -> Tensor:
        """New features from x, (N, C, H, W); `statistics` of x if they are known."""
        for stages in self.parts():
            x = NormReluOperation.apply(x, statistics, stages, *parameters_of(stages))
            statistics = None
        return F.dropout(x, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else x


class MinimalDenseLayer(RecomputedDenseLayer):
    """A dense layer that keeps its input."""

    def parts(self) -> list[list[Stage]]:
        return [self.stages()]


class RecomputedDenseBlock(Variant, DenseBlock):
    """A block that stores its feature maps in one buffer, with the statistics of each channel."""

    def forward(self, init_features: Tensor) -> Tensor:
        return self.compute(init_features, None)[0]

    def compute(self, x: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All features, and their statistics if they are known."""
        channels = self._output_channels(x)
        if channels is None:
            return super().forward(x), None
        buffer = Buffer(x, channels, statistics)
        for layer in self.values():
            layer = cast(RecomputedDenseLayer, layer)
            buffer.append(layer.compute(buffer.features, buffer.statistics))
        return buffer.features, buffer.statistics

    def _output_channels(self, x: Tensor) -> int | None:
        """Number of output channels if every layer is supported, else ``None``."""
        if not is_eager_with_grad() or not are_supported_inputs([x]) or is_patched(self):
            return None
        channels, height, width = x.shape[1:]
        for layer in self.values():
            if not isinstance(layer, RecomputedDenseLayer) or has_hooks(layer):
                return None
            made = output_shape(layer.stages(), (channels, height, width), x)
            if made is None or made[1:] != (height, width):
                return None
            channels += made[0]
        return channels


class StagedSequential(Variant, nn.Sequential):
    """A sequence in which groups of norm, ReLU and operation are computed as one stage."""

    def run(self, stage: Stage, x: Tensor, statistics: Tensor | None) -> Tensor:
        """The output of `stage`; `statistics` of x if they are known."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        return self.compute(input, None)[0]

    def compute(self, x: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last module's output, and its statistics if they are known."""
        if not is_eager_with_grad() or is_patched(self):
            return super().forward(x), None
        for part in self._parts():
            if isinstance(part, Stage) and is_supported([x], [part]):
                x, statistics = self.run(part, x, statistics), None
                continue
            for module in part.modules() if isinstance(part, Stage) else [part]:
                ours = (RecomputedDenseBlock, StagedSequential)
                if isinstance(module, ours) and not has_hooks(module):
                    x, statistics = module.compute(x, statistics)
                else:
                    x, statistics = module(x), None
        return x, statistics

    def _parts(self) -> Iterator[Stage | nn.Module]:
        """The modules in order; norm, ReLU and the operation after them are one stage."""
        modules = list(self)
        while modules:
            if len(modules) < 3 or not (
                isinstance(modules[0], (nn.BatchNorm2d, nn.SyncBatchNorm))
                and isinstance(modules[1], nn.ReLU)
                and isinstance(modules[2], (nn.Conv2d, nn.MaxPool2d))
            ):
                yield modules.pop(0)
                continue
            size = 4 if can_pool_first(modules[2:]) else 3
            yield Stage(*cast(Any, modules[:size]))
            modules = modules[size:]


class CheckpointedSequential(StagedSequential):
    """A sequence in which ReLU writes over the output of the norm before it."""

    def run(self, stage: Stage, x: Tensor, statistics: Tensor | None) -> Tensor:
        return _with_relu_in_place(stage, x)


class CheckpointedTransition(CheckpointedSequential, Transition):
    """A transition in which ReLU writes over the output of the norm."""


class RecomputedSequential(StagedSequential):
    """A sequence in which each stage keeps its input alone."""

    def run(self, stage: Stage, x: Tensor, statistics: Tensor | None) -> Tensor:
        return NormReluOperation.apply(x, statistics, [stage], *parameters_of([stage]))


class RecomputedTransition(RecomputedSequential, Transition):
    """A transition that keeps its input, and pools before its convolution."""


class FusedDenseBlock(RecomputedDenseBlock):
    """A recomputed block as one function, in which norm and ReLU are one pass over memory."""

    def compute(self, x: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        channels = self._output_channels(x)
        layers = [cast(RecomputedDenseLayer, layer) for layer in self.values()]
        if channels is None or any(layer.drop_rate > 0 and layer.training for layer in layers):
            return super().compute(x, statistics)
        stages = [layer.stages() for layer in layers]
        flat = list(itertools.chain(*stages))
        if not is_fusable(x, flat):
            return super().compute(x, statistics)
        return FusedBlock.apply(x, statistics, stages, channels, *parameters_of(flat))


class FusedSequential(RecomputedSequential):
    """A sequence of recomputed stages, in which norm and ReLU are one pass over memory."""

    def run(self, stage: Stage, x: Tensor, statistics: Tensor | None) -> Tensor:
        function = FusedStage if is_fusable(x, [stage]) else NormReluOperation
        return function.apply(x, statistics, [stage], *parameters_of([stage]))


class FusedTransition(FusedSequential, Transition):
    """A recomputed transition, in which norm and ReLU are one pass over memory."""


_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    DenseLayer: RecomputedDenseLayer,
    DenseBlock: RecomputedDenseBlock,
    Transition: RecomputedTransition,
    nn.Sequential: RecomputedSequential,
}

#: By mode: the variant of each plain class.
VARIANTS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "checkpoint": {
        DenseLayer: CheckpointedDenseLayer,
        Transition: CheckpointedTransition,
        nn.Sequential: CheckpointedSequential,
    },
    "recompute": _RECOMPUTED,
    "minimal": _RECOMPUTED | {DenseLayer: MinimalDenseLayer},
    "fused": {
        DenseLayer: RecomputedDenseLayer,
        DenseBlock: FusedDenseBlock,
        Transition: FusedTransition,
        nn.Sequential: FusedSequential,
    },
}

for _variants in VARIANTS.values():
    for _plain, _variant in _variants.items():
        know(_variant, _plain)
