"""Plain and residual networks made of DenseNet's layers, which differ in their connections only.

The layers are :class:`DenseLayer`, with :class:`Transition` between blocks; stem, classifier and
initialisation are DenseNet's. A layer's output replaces its input, or is added to it.
"""

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.network import DenseNet
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import one_of, positive_int, sequence_of

WIRINGS = ("plain", "residual")


class StackedNet(nn.Module):
    """A plain or residual network with as many layers as a DenseNet of the same `block_config`.

    Args:
        wiring: ``"plain"``, x = H(x), or ``"residual"``, x = x + H(x).
        width: channels in the first block; each later block has twice as many as the previous one.
        block_config: number of layers in each block.
        num_classes: number of classes.
        in_channels: channels of an input image.

    Shape:
        x: (N, in_channels, H, W), normalised floats.
        output: (N, num_classes), logits.

    Raises:
        ValueError: an argument is out of range.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027 (pre-activation layers).
    """

    @arguments.check(
        wiring=one_of(WIRINGS),
        width=positive_int,
        block_config=sequence_of(positive_int),
        num_classes=positive_int,
        in_channels=positive_int,
    )
    def __init__(
        self,
        wiring: str,
        width: int,
        block_config: Sequence[int],
        num_classes: int = 10,
        *,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.width = channels = width
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for i, num_layers in enumerate(block_config, start=1):
            if i > 1:
                self.features.add_module(f"transition{i - 1}", Transition(channels, 2 * channels))
                channels *= 2
            for j in range(1, num_layers + 1):
                # With a bottleneck as wide as its input, a layer has the 1x1 and the 3x3
                # convolution of a dense layer.
                layer = DenseLayer(channels, channels, bn_size=1, drop_rate=0.0)
                self.features.add_module(f"block{i}_layer{j}", layer)
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.features:
            added = self.wiring == "residual" and isinstance(module, DenseLayer)
            x = x + module(x) if added else module(x)
        return self.classifier(F.adaptive_avg_pool2d(F.relu(x), (1, 1)).flatten(1))


@arguments.check(
    reference=arguments.instance_of(
        DenseNet, 'a DenseNet with stem="cifar" and bn_size at least 1'
    ),
    wiring=one_of(WIRINGS),
)
def of_equal_budget(reference: DenseNet, wiring: str) -> StackedNet:
    """The :class:`StackedNet` with the depth of `reference` and nearly as many parameters.

    The function chooses the width. Classes and input channels are those of `reference`, which must
    have the CIFAR stem and bottlenecks, as a :class:`StackedNet` has.

    Raises:
        ValueError: `reference` is another kind of network.
    """
    blocks = [block for block in reference.features if isinstance(block, DenseBlock)]
    bottlenecks = all(layer.bn_size for block in blocks for layer in block.values())
    if hasattr(reference.features, "pool0") or not bottlenecks:
        raise ValueError(
            'reference must be a DenseNet with stem="cifar" and bn_size at least 1, got another one'
        )

    def stacked(width: int) -> StackedNet:
        return StackedNet(
            wiring,
            width,
            [len(block) for block in blocks],
            reference.num_classes,
            in_channels=reference.in_channels,
        )

    def gap(width: int) -> int:
        with torch.device("meta"):  # needs no memory and draws no random numbers
            return count(stacked(width)) - count(reference)

    too_wide = 2
    while gap(too_wide) < 0:
        too_wide *= 2
    above = bisect.bisect_left(range(too_wide), 0, lo=too_wide // 2, key=gap)
    return stacked(min(max(above - 1, 1), above, key=lambda width: abs(gap(width))))


@arguments.check(model=arguments.module)
def count(model: nn.Module) -> int:
    """Number of parameters of `model`."""
    return sum(p.numel() for p in model.parameters())
