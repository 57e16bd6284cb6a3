"""Looking inside a network: what each part costs, and how much of the image each part can see."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.network import DenseNet


@dataclass(frozen=True)
class PartCost:
    """What one part of a network costs for one image.

    Attributes:
        name: ``"stem"``, ``"denseblock1"``, ``"transition1"``, …, ``"classifier"``.
        shape: (C, H, W) that come out, or (classes,) for the classifier.
        parameters: learnable numbers.
        multiply_adds: of the convolutions and the classifier.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def part_costs(model: DenseNet, image_size: int) -> list[PartCost]:
    """Cost of every part of `model`, in order, for one image of `image_size` x `image_size` pixels."""
    x = next(model.parameters()).new_zeros(1, model.in_channels, image_size, image_size)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model.intermediate_features(x)
        with FlopCounterMode(display=False) as counter:
            outputs["classifier"] = model(x)
    model.train(was_training)

    # One operation counts as two, a multiplication and an addition.
    operations = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    parts = model.parts() | {"classifier": [model.classifier]}
    return [
        PartCost(
            name,
            shape=tuple(output.shape[1:]),
            parameters=sum(p.numel() for module in parts[name] for p in module.parameters()),
            multiply_adds=sum(operations.get(names[module], 0) for module in parts[name]) // 2,
        )
        for name, output in outputs.items()
    ]


@dataclass(frozen=True)
class ReceptiveField:
    """How much of the image one unit after a part can see, in pixels along one side.

    Attributes:
        name: the part, as in :meth:`DenseNet.intermediate_features`.
        shortest: of the channel that sees least.
        longest: of the channel that sees most.
        stride: pixels between neighbouring units.
    """

    name: str
    shortest: int
    longest: int
    stride: int


def receptive_fields(model: DenseNet) -> list[ReceptiveField]:
    """Receptive field after every part of `model`, by adding up kernel sizes and strides.

    A k x k window whose inputs lie j pixels apart widens the field by (k - 1) j. In a dense block the channel
    that sees most comes from the last layer, through all layers one after another; the one that sees least came
    into the block and is handed on. A convolution outside of a block reads all channels, the widest included.
    """
    shortest = longest = stride = 1
    fields = []
    for name, modules in model.parts().items():
        for module in (inner for part in modules for inner in part.modules()):
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                kernel, step = (
                    n if isinstance(n, int) else n[0] for n in (module.kernel_size, module.stride)
                )
                longest += (kernel - 1) * stride
                if isinstance(module, nn.Conv2d) and not isinstance(modules[0], DenseBlock):
                    shortest = longest
                elif not isinstance(module, nn.Conv2d):
                    shortest += (kernel - 1) * stride
                stride *= step
        fields.append(ReceptiveField(name, shortest, longest, stride))
    return fields
