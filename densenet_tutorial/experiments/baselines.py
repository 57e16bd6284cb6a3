"""Plain and residual networks to compare with a DenseNet, of its depth and of an equal budget.

Stem, classifier and initialisation are DenseNet's. The networks differ in their connections: a
layer's output replaces its input, or is added to it; and in the order of norm, ReLU and
convolution.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.network import DenseNet
from densenet_tutorial.training import evaluation_mode
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import fraction, one_of, positive_int, sequence_of

#: What becomes of a layer's output H(x). Plain: x = H(x). Residual: x = x + H(x), with
#: pre-activation layers. Residual-v1: x = relu(x + H(x)), with convolution, norm, ReLU in the order
#: of the first residual networks.
WIRINGS = ("plain", "residual", "residual-v1")

#: What two networks of an equal budget have the same number of.
BUDGETS = ("parameters", "multiply_adds")

#: How much the budgets may differ, as a fraction.
_TOLERANCE = 0.03


class PostActivationLayer(nn.Module):
    """Conv1x1-BN-ReLU-Conv3x3-BN, the layer of the first residual networks.

    Args:
        num_input_features: input channels.
        growth_rate: output channels.
        bn_size: the middle has ``bn_size * growth_rate`` channels.
        drop_rate: probability of zeroing an element of the output in training.
        last_relu: whether a ReLU follows.

    Shape:
        input: (N, num_input_features, H, W), or a list of tensors that have so many channels
            together.
        output: (N, growth_rate, H, W).

    Source: He et al. 2015, https://arxiv.org/abs/1512.03385.
    """

    @arguments.check(
        num_input_features=positive_int,
        growth_rate=positive_int,
        bn_size=positive_int,
        drop_rate=fraction,
        last_relu=arguments.boolean,
    )
    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int,
        drop_rate: float,
        *,
        last_relu: bool = False,
    ) -> None:
        super().__init__()
        self.drop_rate, self.last_relu = drop_rate, last_relu
        width = bn_size * growth_rate
        self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(growth_rate)

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        x = torch.cat(input, 1) if isinstance(input, list) else input
        x = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(x) if self.last_relu else x
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class StackedNet(nn.Module):
    """A plain or residual network with as many layers as a DenseNet of the same `block_config`.

    Args:
        wiring: ``"plain"``, x = H(x), or ``"residual"``, x = x + H(x), both with pre-activation
            layers; or ``"residual-v1"``, x = relu(x + H(x)), with :class:`PostActivationLayer`.
        width: channels in the first block; each later block has twice as many as the previous one.
            If it is no whole number, the channels of each block are rounded.
        block_config: number of layers in each block.
        num_classes: number of classes.
        in_channels: channels of an input image.
        drop_rate: dropout probability after each layer's last convolution.

    Shape:
        x: (N, in_channels, H, W), normalised floats.
        output: (N, num_classes), logits.

    Raises:
        ValueError: an argument is out of range.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027 (pre-activation layers); He et al.
    2015, https://arxiv.org/abs/1512.03385 (residual-v1).
    """

    @arguments.check(
        wiring=one_of(WIRINGS),
        width=arguments.number_of_at_least_1,
        block_config=sequence_of(positive_int),
        num_classes=positive_int,
        in_channels=positive_int,
        drop_rate=fraction,
    )
    def __init__(
        self,
        wiring: str,
        width: float,
        block_config: Sequence[int],
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.width = int(width) if width == int(width) else width
        first = wiring == "residual-v1"
        kind = PostActivationLayer if first else DenseLayer
        channels = round(width)
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        if first:
            self.features.norm0 = nn.BatchNorm2d(channels)
            self.features.relu0 = nn.ReLU()
        for i, num_layers in enumerate(block_config, start=1):
            if i > 1:
                wider = round(width * 2 ** (i - 1))
                transition: nn.Module = Transition(channels, wider)
                if first:
                    transition = _post_activation_transition(channels, wider)
                self.features.add_module(f"transition{i - 1}", transition)
                channels = wider
            for j in range(1, num_layers + 1):
                # With a bottleneck as wide as its input, a layer has the 1x1 and the 3x3
                # convolution of a dense layer.
                layer = kind(channels, channels, bn_size=1, drop_rate=drop_rate)
                self.features.add_module(f"block{i}_layer{j}", layer)
        self.features.norm5 = nn.Identity() if first else nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def intermediate_features(self, x: Tensor) -> dict[str, Tensor]:
        """The features after each part: "stem", "block1", "transition1", …, "final", in order."""
        found: dict[str, Tensor] = {}
        for name, module in self.features.named_children():
            if not isinstance(module, (DenseLayer, PostActivationLayer)) or self.wiring == "plain":
                x = module(x)
            else:
                x = x + module(x)
                x = F.relu(x) if self.wiring == "residual-v1" else x
            part = "stem" if name.endswith("0") and "_" not in name else name.partition("_")[0]
            found["final" if name == "norm5" else part] = x
        found["final"] = F.relu(found["final"])
        return found

    def forward(self, x: Tensor) -> Tensor:
        final = self.intermediate_features(x)["final"]
        return self.classifier(F.adaptive_avg_pool2d(final, (1, 1)).flatten(1))


def _post_activation_transition(before: int, after: int) -> nn.Sequential:
    transition = nn.Sequential()
    transition.conv = nn.Conv2d(before, after, 1, bias=False)
    transition.norm = nn.BatchNorm2d(after)
    transition.relu = nn.ReLU()
    transition.pool = nn.AvgPool2d(2)
    return transition


_reference = arguments.instance_of(DenseNet, 'a DenseNet with stem="cifar" and bn_size at least 1')


def _with_bottlenecks(reference: DenseNet) -> None:
    layers = [m for m in reference.modules() if isinstance(m, DenseLayer)]
    if hasattr(reference.features, "pool0") or not all(layer.bn_size for layer in layers):
        raise ValueError(
            'reference must be a DenseNet with stem="cifar" and bn_size at least 1, got another one'
        )


def _large_enough(model: Any, image_size: int) -> None:
    arguments.integer(getattr(model, "min_size", 1))("image_size", image_size)


@arguments.check(
    _with_bottlenecks,
    lambda reference, image_size: _large_enough(reference, image_size),
    reference=_reference,
    wiring=one_of(WIRINGS),
    budget=one_of(BUDGETS),
    image_size=positive_int,
)
def of_equal_budget(
    reference: DenseNet, wiring: str, budget: str = "parameters", *, image_size: int = 32
) -> StackedNet:
    """The :class:`StackedNet` with the depth of `reference` and an equal budget, within 3 %.

    The function chooses the width: a whole number if that is near enough, otherwise one with which
    every block's width is rounded by itself. Classes, input channels and dropout are those of
    `reference`, which must have the CIFAR stem and bottlenecks, as a :class:`StackedNet` has.

    Args:
        reference: the DenseNet to compare with.
        wiring: as for :class:`StackedNet`.
        budget: ``"parameters"`` or ``"multiply_adds"``.
        image_size: side of the images for which multiply-adds are counted.

    Raises:
        ValueError: `reference` is another kind of network, or so small that no width is within 3 %.
    """
    blocks = [block for block in reference.features if isinstance(block, DenseBlock)]
    layers = [layer for block in blocks for layer in block.values()]
    measure: Callable[[nn.Module], int] = (
        count if budget == "parameters" else lambda model: multiply_adds(model, image_size)
    )
    wanted = measure(reference)

    def stacked(width: float) -> StackedNet:
        return StackedNet(
            wiring,
            width,
            [len(block) for block in blocks],
            reference.num_classes,
            in_channels=reference.in_channels,
            drop_rate=cast(DenseLayer, layers[0]).drop_rate,
        )

    @functools.cache
    def gap(width: float) -> float:
        with torch.device("meta"):  # needs no memory and draws no random numbers
            return measure(stacked(width)) / wanted - 1

    def nearest(finer: int) -> float:
        """The best of the widths that are whole numbers of 1 / `finer`."""
        n = 16 * finer
        for _ in range(10):  # budgets grow with the square of the width, more or less
            before, n = n, max(finer, round(n / math.sqrt(1 + gap(n / finer))))
            if n == before:
                break
        near = range(max(finer, n - 2), n + 3)
        return min((m / finer for m in near), key=lambda width: abs(gap(width)))

    width = nearest(1)
    if abs(gap(width)) > _TOLERANCE:
        width = nearest(2 ** (len(blocks) + 1))
    if abs(gap(width)) > _TOLERANCE:
        raise ValueError(
            f"reference must be large enough for a network with {budget} within 3 %, got one with "
            f"{wanted:,}; the nearest is {gap(width):+.1%} from it"
        )
    return stacked(width)


@arguments.check(_large_enough, model=arguments.module, image_size=positive_int)
def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of `model` in convolutions and linear layers, for one image.

    Args:
        model: any network whose first parameter is a convolution's weight, (out, in, h, w).
        image_size: side of the image.
    """
    abstract = copy.deepcopy(model).to("meta")
    channels = next(abstract.parameters()).shape[1]
    x = torch.empty(1, channels, image_size, image_size, device="meta")
    with evaluation_mode(abstract), torch.no_grad(), FlopCounterMode(display=False) as counter:
        abstract(x)
    return counter.get_total_flops() // 2  # it counts a multiply-add as two operations


@arguments.check(model=arguments.module)
def count(model: nn.Module) -> int:
    """Number of parameters of `model`."""
    return sum(p.numel() for p in model.parameters())


@arguments.check(_with_bottlenecks, reference=_reference)
def post_activated(reference: DenseNet) -> DenseNet:
    """A new DenseNet like `reference` in which convolutions stand before norm and ReLU.

    It has the same convolutions, and batch norm of what they put out: Conv-BN-ReLU instead of
    BN-ReLU-Conv, also in stem and transitions.
    """
    model = copy.deepcopy(reference)
    features: Any = model.features
    stem = features.conv0.out_channels
    features.conv0 = nn.Sequential(features.conv0, nn.BatchNorm2d(stem), nn.ReLU())
    for name, part in list(features.named_children()):
        if isinstance(part, DenseBlock):
            layers: list[tuple[str, Any]] = list(part.items())
            for key, layer in layers:
                part[key] = PostActivationLayer(
                    layer.norm1.num_features,
                    layer.growth_rate,
                    layer.bn_size,
                    layer.drop_rate,
                    last_relu=True,
                )
        elif isinstance(part, Transition):
            sizes = part.conv.in_channels, part.conv.out_channels
            setattr(features, name, _post_activation_transition(*sizes))
    features.norm5 = nn.Identity()
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


@arguments.check(model=_reference)
def max_pooled(model: DenseNet) -> DenseNet:
    """Replace average by max pooling in the transitions of `model`, which is returned."""
    for module in model.modules():
        if isinstance(module, Transition):
            module.pool = nn.MaxPool2d(2)  # type: ignore[assignment]
    return model
