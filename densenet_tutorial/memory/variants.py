"""The memory-efficient variants of the layers: the same modules and weights, another forward pass.

- :class:`CheckpointedDenseLayer` keeps the inputs of concatenation, norm, ReLU and convolution, and computes them again,
  but for the convolution, whose output nobody needs.
- The recomputed variants run no convolution twice: norm and ReLU are computed again from the statistics of the batch, and
  the feature maps of a block lie in one buffer, so there is nothing to concatenate.
- :class:`MinimalDenseLayer` also computes the bottleneck again: what is kept is the feature maps.

Each runs the plain forward pass of its class where :func:`conditions.may_act` says no.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.memory.conditions import (
    Stage,
    are_plain,
    is_watched,
    may_act,
    output_shape,
    pools_first,
    situation_allows,
)
from densenet_tutorial.memory.functions import (
    Buffer,
    NormReluOperation,
    checkpointed,
    parameters_of,
)


class Variant(nn.Module):
    """What all variants have in common: they cannot be scripted, since computing again needs Python."""

    def __prepare_scriptable__(self) -> nn.Module:
        modes = [mode for mode, variants in VARIANTS.items() if type(self) in variants.values()]
        raise RuntimeError(
            f"torch.jit.script cannot compile memory_efficient={' or '.join(map(repr, modes))}, because computing "
            "again needs Python; call set_memory_efficient(model, False) first"
        )


def _first_stage(layer: DenseLayer) -> Stage:
    return Stage(layer.norm1, layer.relu1, layer.conv1)


class CheckpointedDenseLayer(Variant, DenseLayer):
    """A dense layer that keeps its inputs, and what comes after its first convolution."""

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        stage = _first_stage(self)
        return (
            checkpointed(stage, inputs) if may_act(inputs, [stage]) else super().bn_function(inputs)
        )


class RecomputedDenseLayer(Variant, DenseLayer):
    """A dense layer that keeps its input and its bottleneck."""

    def stages(self) -> list[Stage]:
        """What the layer computes, dropout aside."""
        first = _first_stage(self)
        return (
            [first] if self.bn_size is None else [first, Stage(self.norm2, self.relu2, self.conv2)]
        )

    def parts(self) -> list[list[Stage]]:
        """The stages in groups, of each of which the input is kept."""
        return [[stage] for stage in self.stages()]

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        inputs = input if isinstance(input, (list, tuple)) else [input]
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        if may_act([x], self.stages()):
            return self.compute(x, None)
        return super().forward(x)

    def compute(self, x: Tensor, statistics: Tensor | None) -> Tensor:
        """New features from x, (N, C, H, W), the statistics of whose batch may be known."""
        for stages in self.parts():
            x = NormReluOperation.apply(x, statistics, stages, *parameters_of(stages))
            statistics = None
        return F.dropout(x, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else x


class MinimalDenseLayer(RecomputedDenseLayer):
    """A dense layer that keeps its input."""

    def parts(self) -> list[list[Stage]]:
        return [self.stages()]


class RecomputedDenseBlock(Variant, DenseBlock):
    """A block whose feature maps lie in one buffer, each with the statistics of its batch."""

    def forward(self, init_features: Tensor) -> Tensor:
        return self.compute(init_features, None)[0]

    def compute(self, x: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All features, and the statistics of their batch where they are known."""
        channels = self._output_channels(x)
        if channels is None:
            return super().forward(x), None
        buffer = Buffer(x, channels, statistics)
        for layer in self.values():
            buffer.append(layer.compute(buffer.features, buffer.statistics))
        return buffer.features, buffer.statistics

    def _output_channels(self, x: Tensor) -> int | None:
        """How many channels come out, if every layer may act; else ``None``."""
        if not situation_allows() or not are_plain([x]):
            return None
        channels, height, width = x.shape[1:]
        for layer in self.values():
            if not isinstance(layer, RecomputedDenseLayer) or is_watched(layer):
                return None
            made = output_shape(layer.stages(), (channels, height, width), x)
            if made is None or made[1:] != (height, width):
                return None
            channels += made[0]
        return channels


class RecomputedSequential(Variant, nn.Sequential):
    """Modules one after another, in which each norm, ReLU and operation keep their input alone."""

    def forward(self, input: Tensor) -> Tensor:
        return self.compute(input, None)[0]

    def compute(self, x: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the last module makes, and the statistics of its batch where they are known."""
        for part in self._parts():
            if isinstance(part, Stage) and may_act([x], [part]):
                x = NormReluOperation.apply(x, statistics, [part], *parameters_of([part]))
                statistics = None
                continue
            for module in part.modules() if isinstance(part, Stage) else [part]:
                ours = isinstance(module, (RecomputedDenseBlock, RecomputedSequential))
                if ours and not is_watched(module):
                    x, statistics = module.compute(x, statistics)
                else:
                    x, statistics = module(x), None
        return x, statistics

    def _parts(self) -> Iterator[Stage | nn.Module]:
        """The modules in order, norm, ReLU and what follows taken together."""
        modules = list(self)
        while modules:
            if len(modules) < 3 or not (
                isinstance(modules[0], (nn.BatchNorm2d, nn.SyncBatchNorm))
                and isinstance(modules[1], nn.ReLU)
                and isinstance(modules[2], (nn.Conv2d, nn.MaxPool2d))
            ):
                yield modules.pop(0)
                continue
            stage = Stage(*modules[: 4 if pools_first(modules[2:]) else 3])
            yield stage
            del modules[: len(stage.modules())]


class RecomputedTransition(RecomputedSequential, Transition):
    """A transition that keeps its input, and pools before its convolution."""


_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    DenseLayer: RecomputedDenseLayer,
    DenseBlock: RecomputedDenseBlock,
    Transition: RecomputedTransition,
    nn.Sequential: RecomputedSequential,
}

#: What takes the place of each plain class, by mode.
VARIANTS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "checkpoint": {DenseLayer: CheckpointedDenseLayer},
    "recompute": _RECOMPUTED,
    "minimal": _RECOMPUTED | {DenseLayer: MinimalDenseLayer},
}
