"""Analyse a network: costs, receptive fields, gradients, feature reuse and Grad-CAM.

No function changes the model: weights, running statistics, gradients and modes stay.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.network import DenseNet
from densenet_tutorial.training import evaluation_mode
from densenet_tutorial.utils import arguments


def _as_densenet(value: Any) -> Any:
    # Duck typing, for the reader's own class from chapter 05.
    names = ("parts", "intermediate_features", "classifier", "features", "in_channels", "min_size")
    if not isinstance(value, nn.Module) or not all(hasattr(value, name) for name in names):
        raise TypeError
    return value


_densenet = arguments.Check("a DenseNet", _as_densenet)
_images = arguments.tensor("floats", "N, C, H, W")
_labels = arguments.tensor("int64", "N")


def _is_part(model: DenseNet, part: str) -> None:
    arguments.one_of(model.parts())("part", part)


def _has_classifier(model: Any) -> None:
    if not hasattr(model.classifier, "out_features"):
        raise ValueError(
            f"model must be a DenseNet with a classifier, got {model.classifier} in its place"
        )


def _are_targets(model: Any, x: Tensor, target: Tensor | int) -> None:
    _has_classifier(model)
    classes = model.classifier.out_features
    if isinstance(target, Tensor):
        _check_classes("target", _labels("target", target), len(x), classes)
    else:
        arguments.integer(0, classes - 1)("target", target)


def _are_labels(model: Any, x: Tensor, labels: Tensor) -> None:
    _has_classifier(model)
    _check_classes("labels", labels, len(x), model.classifier.out_features)


def _check_classes(name: str, values: Tensor, images: int, classes: int) -> None:
    if len(values) != images or values.min() < 0 or values.max() >= classes:
        raise ValueError(
            f"{name} must be {images} classes from 0 to {classes - 1}, one for each image, got "
            f"{arguments.shown(values)}, from {values.min()} to {values.max()}"
        )


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a network for one image.

    Attributes:
        name: ``"stem"``, ``"denseblock1"``, ``"transition1"``, …, ``"classifier"``.
        shape: output shape, (C, H, W), or (classes,) for the classifier.
        parameters: number of parameters.
        multiply_adds: number of multiply-adds in convolutions and classifier.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@arguments.check(
    lambda model, image_size: arguments.integer(model.min_size)("image_size", image_size),
    model=_densenet,
)
def part_costs(model: DenseNet, image_size: int) -> list[PartCost]:
    """Cost of every part of `model`, in order, for an image of `image_size` x `image_size`."""
    x = next(model.parameters()).new_zeros(1, model.in_channels, image_size, image_size)
    with evaluation_mode(model), torch.no_grad():
        outputs = model.intermediate_features(x)
        with FlopCounterMode(display=False) as counter:
            outputs["classifier"] = model(x)

    # The counter counts a multiply-add as two operations.
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
    """Receptive field of the features after a part, in pixels along one side.

    Attributes:
        name: the part, as in :meth:`DenseNet.intermediate_features`.
        shortest: receptive field of the channel with the smallest one.
        longest: receptive field of the channel with the largest one.
        stride: pixels between neighbouring units.
    """

    name: str
    shortest: int
    longest: int
    stride: int


@arguments.check(model=_densenet)
def receptive_fields(model: DenseNet) -> list[ReceptiveField]:
    """Receptive field after every part of `model`, from kernel sizes and strides.

    A k x k window with inputs j pixels apart adds (k - 1) j to the receptive field. In a dense
    block, the largest one belongs to the last layer's features, by way of all layers in turn, and
    the smallest one to the block's input. A convolution outside of a block reads all channels,
    including those with the largest.
    """
    shortest = longest = stride = 1
    fields = []
    for name, modules in model.parts().items():
        for module in modules:
            if isinstance(module, DenseBlock):  # every stride is 1, so the order does not matter
                inner = [conv for conv in module.modules() if isinstance(conv, nn.Conv2d)]
                longest += stride * sum(_side(conv.kernel_size) - 1 for conv in inner)
                continue
            for step in module if isinstance(module, nn.Sequential) else [module]:
                if isinstance(step, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                    wider = (_side(step.kernel_size) - 1) * stride
                    longest += wider
                    shortest = longest if isinstance(step, nn.Conv2d) else shortest + wider
                    stride *= _side(step.stride)
        fields.append(ReceptiveField(name, shortest, longest, stride))
    return fields


def _side(size: int | tuple[int, ...]) -> int:
    """One side of a square kernel or stride, given as a number or as a tuple."""
    return size if isinstance(size, int) else size[0]


@arguments.check(_is_part, model=_densenet, x=_images)
def effective_receptive_field(model: DenseNet, x: Tensor, part: str) -> Tensor:
    """Effect of each pixel on the unit in the middle of the features after `part`.

    It is the absolute gradient of that unit (the sum over its channels) with respect to every
    pixel, averaged over the images.

    Args:
        model: run in evaluation mode, since batch norm would mix the images of a batch.
        x: (N, C, H, W), normalised images.
        part: a name of :meth:`DenseNet.intermediate_features`.

    Returns:
        (H, W), non-negative; 0 means no effect.

    Source: Luo et al. 2016, https://arxiv.org/abs/1701.04128, section 3.
    """
    x = x.detach().requires_grad_()
    with evaluation_mode(model), torch.enable_grad():
        features = model.intermediate_features(x)[part]
        middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, x)
    return gradient.abs().sum(1).mean(0)


@arguments.check(field=arguments.tensor("floats", "H, W"))
def effective_size(field: Tensor) -> float:
    """Side, in pixels, of the square with the area of an effective receptive field.

    The area is the number of pixels with at least 4.55 % of the largest effect.

    Args:
        field: (H, W), the result of :func:`effective_receptive_field`.

    Source: Luo et al. 2016, https://arxiv.org/abs/1701.04128, section 3: a normal distribution has
    95.45 % of its mass within two standard deviations.
    """
    return math.sqrt(int((field > (1 - 0.9545) * field.max()).sum()))


@arguments.check(model=arguments.module, x=arguments.tensor("floats"), labels=_labels)
def gradient_norms(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Euclidean norm of the cross-entropy's gradient with respect to each layer's weights.

    Args:
        model: any classifier, run in its present mode; frozen weights are included.
        x, labels: (N, C, H, W) and (N,), one batch.

    Returns:
        The norms by name of the convolution or linear layer, in the order of
        :meth:`torch.nn.Module.named_modules`. For weights that are computed from others (by a
        parametrization, weight norm or pruning), the gradient is that of the computed weights.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), parametrize.cached():
            # A pass in training mode updates running statistics: here, copies of them.
            logits = torch.func.functional_call(model, buffers, (x,))
            _check_classes("labels", labels, len(logits), logits.shape[1])
            weights = {
                name: module.weight
                for name, module in model.named_modules()
                if isinstance(module, (nn.Conv2d, nn.Linear))
            }
            loss = F.cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {name: gradient.norm().item() for name, gradient in zip(weights, gradients)}


@arguments.check(_is_part, _are_targets, model=_densenet, x=_images)
def grad_cam(model: DenseNet, x: Tensor, target: Tensor | int, part: str = "final") -> Tensor:
    """Grad-CAM: where in the image the features after `part` increase the logit of class `target`.

    Each feature map is weighted by the mean gradient of the class's logit over its pixels; the
    result is the positive part of the sum over all maps. There are no hooks: the features come from
    :meth:`DenseNet.intermediate_features`.

    Args:
        model: run in evaluation mode, since batch norm would mix the images of a batch.
        x: (N, C, H, W), normalised images.
        target: the class to explain, one for all images or (N,), one for each.
        part: a name of :meth:`DenseNet.intermediate_features`.

    Returns:
        (N, h, w) at the resolution of the features, non-negative, in units of the logit times h w.

    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, section 3.
    """
    target = torch.as_tensor(target, device=x.device).expand(len(x))
    with evaluation_mode(model), torch.enable_grad():
        found = model.intermediate_features(x)
        logits = model.classifier(F.adaptive_avg_pool2d(found["final"], (1, 1)).flatten(1))
        score = logits.gather(1, target.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(score, found[part])
    weights = gradient.mean((2, 3), keepdim=True)
    return F.relu((weights * found[part]).sum(1)).detach()


@arguments.check(_has_classifier, model=_densenet)
def connections(model: DenseNet, block: str) -> tuple[list[int], list[tuple[nn.BatchNorm2d, Any]]]:
    """Channels of every source in `block`; norm and weights of every reader.

    Sources are the block's input and its layers, in order. Readers are the layers, and the
    transition or classifier that reads the block's output.
    """
    parts: dict[str, list[Any]] = dict(model.parts())
    names = list(parts)
    blocks = [name for name in names if isinstance(parts[name][0], DenseBlock)]
    layers = list(parts[arguments.one_of(blocks)("block", block)][0].values())
    (behind,) = parts[names[names.index(block) + 1]]
    end = (behind, model.classifier) if block == blocks[-1] else (behind.norm, behind.conv)
    readers: list[tuple[Any, Any]] = [*((layer.norm1, layer.conv1) for layer in layers), end]
    for _, reader in readers:
        if not isinstance(reader.weight, nn.Parameter):
            # Pruning and the older weight norm compute the weight in a hook: run it.
            with evaluation_mode(reader), torch.no_grad():
                reader(torch.zeros_like(reader.weight[0]))
    return [layers[0].norm1.num_features, *(layer.growth_rate for layer in layers)], readers


@arguments.check(scaled=arguments.boolean)
def feature_reuse(model: DenseNet, block: str, *, scaled: bool = False) -> Tensor:
    """Mean absolute weight between each source and each reader in `block`.

    Args:
        model: trained or not.
        block: ``"denseblock1"``, ``"denseblock2"``, …
        scaled: multiply each weight by the absolute value of batch norm's gamma for its channel.
            The weights act on ``relu(gamma * normalised + beta)``, so without gamma they are half
            of the truth.

    Returns:
        (L + 1, L + 1) for a block of L layers. Rows are sources: the block's input, layers 1 to L.
        Columns are readers: layers 1 to L, then the transition or classifier after the block. NaN
        where there is no connection.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, figure 5, for layers without
    bottleneck. There the L1 norm of a connection's weights is divided by the number of input
    feature maps; here it is divided by the number of weights, which differs by a constant factor
    for each kind of reader.
    """
    sizes, readers = connections(model, block)
    reuse = torch.full((len(sizes), len(readers)), torch.nan)
    for column, (norm, reader) in enumerate(readers):
        by_channel = reader.weight.detach().abs().transpose(0, 1).flatten(1).mean(1)
        if scaled:
            by_channel = by_channel * norm.weight.detach().abs()
        for row, channels in enumerate(by_channel.split(sizes[: column + 1])):
            reuse[row, column] = channels.mean()
    return reuse


def _has_parameters(model: DenseNet, block: str, source: int, target: int) -> None:
    """Refuse a connection whose weights are computed from others, so cannot be set to zero."""
    _, readers = connections(model, block)
    if 0 < target <= len(readers) and not isinstance(readers[target - 1][1].weight, nn.Parameter):
        raise ValueError(
            f"target must be a reader with weights of its own, got {target}, whose weights are "
            "computed from others, so that no connection can be removed. Make them parameters "
            "again with remove_parametrizations, remove_weight_norm, remove_spectral_norm or "
            "prune.remove, all in torch.nn.utils"
        )


@arguments.check(
    _has_parameters,
    model=_densenet,
    source=arguments.integer(),
    target=arguments.integer(),
)
@contextmanager
def remove_connection(model: DenseNet, block: str, source: int, target: int) -> Iterator[None]:
    """Set the weights between `source` and `target` to zero within the ``with`` block.

    A network without the connection would compute the same. Neither training nor new running
    statistics compensate for the missing input, so this measures the cost of removing a connection
    from a trained network, not of training a network without it. Afterwards, also after an
    exception, every weight is restored exactly.

    Args:
        model: a DenseNet.
        block: ``"denseblock1"``, ``"denseblock2"``, …
        source: 0 for the block's input, 1 to L for its layers.
        target: 1 to L for a layer, L + 1 for the transition or classifier after the block; greater
            than `source`.

    Raises:
        ValueError: there is no such block or connection, or the weights are computed from others
            (by a parametrization, weight norm or pruning).
    """
    sizes, readers = connections(model, block)
    if not (0 <= source < target <= len(readers)):
        raise ValueError(
            "source and target must be whole numbers with "
            f"0 <= source < target <= {len(readers)} in {block}, "
            f"got {source!r} and {target!r}"
        )
    weight = readers[target - 1][1].weight
    columns = weight.detach().narrow(1, sum(sizes[:source]), sizes[source])
    kept = columns.clone()
    columns.zero_()
    try:
        yield
    finally:
        columns.copy_(kept)


@dataclass(frozen=True)
class ConnectionCost:
    """Change of a network's predictions when one connection is removed.

    Attributes:
        source, target: as for :func:`remove_connection`.
        lost: number of images that become wrong.
        gained: number of images that become right.
        images: number of images.
        loss: increase of the mean cross-entropy.
    """

    source: int
    target: int
    lost: int
    gained: int
    images: int
    loss: float

    @property
    def drop(self) -> float:
        """Decrease of the accuracy, as a fraction of the images."""
        return (self.lost - self.gained) / self.images

    @property
    def error(self) -> float:
        """Standard error of :attr:`drop`, for a random sample of images.

        Both accuracies are measured on the same images, so each image contributes +1, 0 or -1; this
        is the standard error of their mean.
        """
        changed = self.lost + self.gained
        return math.sqrt(changed / self.images - self.drop**2) / math.sqrt(self.images)


@arguments.check(
    _are_labels,
    model=_densenet,
    x=_images,
    labels=_labels,
    batch_size=arguments.positive_int,
)
def connection_costs(
    model: DenseNet, block: str, x: Tensor, labels: Tensor, *, batch_size: int = 100
) -> list[ConnectionCost]:
    """Remove each connection of `block` in turn and count the predictions that change.

    This includes the connections to the transition or classifier after the block. Everything before
    the reader of a connection is computed once.

    Args:
        model: run in evaluation mode.
        block: ``"denseblock1"``, ``"denseblock2"``, …
        x, labels: (N, C, H, W) and (N,), on the model's device.
        batch_size: images per batch.

    Raises:
        ValueError: as for :func:`remove_connection`, or labels do not fit.
    """
    sizes, _ = connections(model, block)
    pairs = [(s, t) for t in range(1, len(sizes) + 1) for s in range(t)]
    layers = list(getattr(model.features, block).values())
    names = [name for name, _ in model.features.named_children()]
    at = names.index(block)
    before, behind = model.features[:at], model.features[at + 1 :]

    def predict(features: list[Tensor]) -> Tensor:
        features = list(features)
        for layer in layers[len(features) - 1 :]:
            features.append(layer(features))
        pooled = F.relu(behind(torch.cat(features, 1))).mean((2, 3))
        return model.classifier(pooled)

    complete: list[Tensor] = []
    logits: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in pairs}
    with evaluation_mode(model), torch.no_grad():
        model(x[:1])  # refuses, in words, an `x` that does not fit
        for images in x.split(batch_size):
            features = [before(images)]
            for layer in layers:
                features.append(layer(features))
            complete.append(predict(features))
            for source, target in pairs:
                with remove_connection(model, block, source, target):
                    logits[source, target].append(predict(features[:target]))

    whole = torch.cat(complete)
    right = whole.argmax(1) == labels
    costs = []
    for (source, target), parts in logits.items():
        without = torch.cat(parts)
        still = without.argmax(1) == labels
        costs.append(
            ConnectionCost(
                source,
                target,
                lost=int((right & ~still).sum()),
                gained=int((still & ~right).sum()),
                images=len(labels),
                loss=(F.cross_entropy(without, labels) - F.cross_entropy(whole, labels)).item(),
            )
        )
    return costs
