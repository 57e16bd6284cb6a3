"""The three building blocks: :class:`DenseLayer`, :class:`DenseBlock` and :class:`Transition`.

Constructor arguments, attribute names and ``state_dict`` keys are torchvision's, so that weights
can be exchanged. Chapters 02, 03 and 04 build these classes up; the notation is the paper's: growth
rate k, L layers, k0 input channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import fraction, optional, positive_int


class DenseLayer(nn.Module):
    """One dense layer: reads all earlier features, returns `growth_rate` new feature maps.

    BN-ReLU-Conv1x1-BN-ReLU-Conv3x3, then dropout (paper, section 3, "Bottleneck layers"). With
    ``bn_size=None`` there is no bottleneck: BN-ReLU-Conv3x3, the paper's plain composite function.

    Args:
        num_input_features: input channels, k0 + (l - 1) k for layer l of a block.
        growth_rate: number of new feature maps, the paper's k.
        bn_size: the bottleneck has ``bn_size * growth_rate`` channels; ``None`` for no bottleneck.
        drop_rate: probability of zeroing an element of the new features in training, 0 to 1.

    Shape:
        input: (N, num_input_features, H, W), or a list of tensors that have so many channels
            together.
        output: (N, growth_rate, H, W), the new features alone.

    Raises:
        ValueError: an argument is out of range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 3.
    """

    @arguments.check(
        num_input_features=positive_int,
        growth_rate=positive_int,
        bn_size=optional(positive_int),
        drop_rate=fraction,
    )
    def __init__(
        self, num_input_features: int, growth_rate: int, bn_size: int | None, drop_rate: float
    ) -> None:
        super().__init__()
        self.growth_rate = growth_rate
        self.bn_size = bn_size
        self.drop_rate = drop_rate

        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU()
        if bn_size is None:
            self.conv1 = nn.Conv2d(num_input_features, growth_rate, 3, padding=1, bias=False)
        else:
            width = bn_size * growth_rate
            self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.relu2 = nn.ReLU()
            self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        """Concatenate along the channels, then norm1, ReLU and conv1."""
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        inputs = input if isinstance(input, (list, tuple)) else [input]
        new_features = self.bn_function(inputs)
        if self.bn_size is not None:
            new_features = self.conv2(self.relu2(self.norm2(new_features)))
        if self.drop_rate > 0:
            new_features = F.dropout(new_features, p=self.drop_rate, training=self.training)
        return new_features


class DenseBlock(nn.ModuleDict):
    """`num_layers` dense layers; each reads the block's input and the output of all earlier layers.

    Args:
        num_layers: the paper's L (per block).
        num_input_features: input channels of the block, the paper's k0.
        bn_size, growth_rate, drop_rate: as for :class:`DenseLayer`.

    Shape:
        init_features: (N, num_input_features, H, W).
        output: (N, num_input_features + num_layers * growth_rate, H, W): the channels of the input,
            then those of each layer in order.

    Raises:
        ValueError: an argument is out of range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 3, equation 2.
    """

    @arguments.check(
        num_layers=positive_int, num_input_features=positive_int, growth_rate=positive_int
    )
    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int | None,
        growth_rate: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        for i in range(num_layers):
            channels = num_input_features + i * growth_rate
            layer = DenseLayer(channels, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for layer in self.values():
            features = features + [layer(features)]
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Transition layer between two blocks: BN-ReLU-Conv1x1, then 2x2 average pooling.

    Args:
        num_input_features: input channels.
        num_output_features: output channels; the compression is their ratio.

    Shape:
        input: (N, num_input_features, H, W), H and W at least 2.
        output: (N, num_output_features, H // 2, W // 2).

    Raises:
        ValueError: an argument is out of range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 3, "Pooling layers" and
    "Compression".
    """

    @arguments.check(num_input_features=positive_int, num_output_features=positive_int)
    def __init__(self, num_input_features: int, num_output_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(num_input_features, num_output_features, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)
