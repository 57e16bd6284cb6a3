"""Looking inside a network: what its parts cost and see, what its layers read, what an answer rests on.

Every function leaves the model as it was: weights, running statistics, gradients, and the mode of each module.
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
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.modes import evaluation_mode


def _as_densenet(value: Any) -> DenseNet:
    # By what it can do: a reader's own class, built up in chapter 05, is one as well.
    names = ("parts", "intermediate_features", "classifier", "features", "in_channels", "min_size")
    if not isinstance(value, nn.Module) or not all(hasattr(value, name) for name in names):
        raise TypeError
    return value


_densenet = arguments.Check("a DenseNet", _as_densenet)
_pictures = arguments.tensor("floats", "N, C, H, W")
_labels = arguments.tensor("int64", "N")


def _is_part(model: DenseNet, part: str) -> None:
    arguments.one_of(model.parts())("part", part)


def _has_classifier(model: DenseNet) -> None:
    if not hasattr(model.classifier, "out_features"):
        raise ValueError(
            f"model must be a DenseNet with a classifier, got one with {model.classifier} in its place"
        )


def _are_targets(model: DenseNet, x: Tensor, target: Tensor | int) -> None:
    _has_classifier(model)
    classes = model.classifier.out_features
    if isinstance(target, Tensor):
        _check_classes("target", _labels("target", target), len(x), classes)
    else:
        arguments.integer(0, classes - 1)("target", target)


def _are_labels(model: DenseNet, x: Tensor, labels: Tensor) -> None:
    _has_classifier(model)
    _check_classes("labels", labels, len(x), model.classifier.out_features)


def _check_classes(name: str, values: Tensor, pictures: int, classes: int) -> None:
    if len(values) != pictures or values.min() < 0 or values.max() >= classes:
        raise ValueError(
            f"{name} must be {pictures} classes from 0 to {classes - 1}, one for each picture, got "
            f"{arguments.shown(values)}, from {values.min()} to {values.max()}"
        )


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


@arguments.check(
    lambda model, image_size: arguments.integer(model.min_size)("image_size", image_size),
    model=_densenet,
)
def part_costs(model: DenseNet, image_size: int) -> list[PartCost]:
    """Cost of every part of `model`, in order, for one image of `image_size` x `image_size` pixels."""
    x = next(model.parameters()).new_zeros(1, model.in_channels, image_size, image_size)
    with evaluation_mode(model), torch.no_grad():
        outputs = model.intermediate_features(x)
        with FlopCounterMode(display=False) as counter:
            outputs["classifier"] = model(x)

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


@arguments.check(model=_densenet)
def receptive_fields(model: DenseNet) -> list[ReceptiveField]:
    """Receptive field after every part of `model`, by adding up kernel sizes and strides.

    A k x k window whose inputs lie j pixels apart widens the field by (k - 1) j. In a dense block the
    channel that sees most comes from the last layer, through all layers one after another; the one
    that sees least came into the block and is handed on. A convolution outside of a block reads all
    channels, the widest included.
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
                if isinstance(step, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                    wider = (_side(step.kernel_size) - 1) * stride
                    longest += wider
                    shortest = longest if isinstance(step, nn.Conv2d) else shortest + wider
                    stride *= _side(step.stride)
        fields.append(ReceptiveField(name, shortest, longest, stride))
    return fields


def _side(size: int | tuple[int, int]) -> int:
    """One side of a square kernel or step, which pooling gives as a number and convolutions as two."""
    return size if isinstance(size, int) else size[0]


@arguments.check(_is_part, model=_densenet, x=_pictures)
def effective_receptive_field(model: DenseNet, x: Tensor, part: str) -> Tensor:
    """How strongly each pixel acts on the unit in the middle of the features after `part`.

    For each picture, the gradient of that unit (all its channels added up) by every pixel, without
    its sign; then the mean over the pictures.

    Args:
        model: put into evaluation mode for the time, since batch norm would mix the pictures.
        x: (N, C, H, W), pictures as the model reads them.
        part: a name of :meth:`DenseNet.intermediate_features`.

    Returns:
        (H, W), at least 0, where 0 means no effect.

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
    """Side, in pixels, of the square with as many pixels as act on the middle.

    Those count that act at least 4.55 % as much as the strongest.

    Args:
        field: (H, W), what :func:`effective_receptive_field` returns.

    Source: Luo et al. 2016, https://arxiv.org/abs/1701.04128, section 3: a bell curve has 95.45 % of
    its mass within two standard deviations.
    """
    return math.sqrt(int((field > (1 - 0.9545) * field.max()).sum()))


@arguments.check(model=arguments.module, x=arguments.tensor("floats"), labels=_labels)
def gradient_norms(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Size (Euclidean norm) of the gradient of the cross-entropy by each layer's weights.

    Args:
        model: any classifier, in the mode that it is in; frozen weights have a gradient as well.
        x, labels: (N, C, H, W) and (N,), one batch.

    Returns:
        The norms by name of convolution or linear layer, in the order of
        :meth:`torch.nn.Module.named_modules`. Of weights that are computed from others (by a
        parametrization, weight norm or pruning), the gradient is that of the computed ones.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), parametrize.cached():
            # A pass in training mode moves running statistics: here, copies of them.
            logits = torch.func.functional_call(model, buffers, (x,))
            _check_classes("labels", labels, len(logits), logits.shape[1])
            weights = {
                name: module.weight
                for name, module in model.named_modules()
                if isinstance(module, nn.Conv2d | nn.Linear)
            }
            loss = F.cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {name: gradient.norm().item() for name, gradient in zip(weights, gradients)}


@arguments.check(_is_part, _are_targets, model=_densenet, x=_pictures)
def grad_cam(model: DenseNet, x: Tensor, target: Tensor | int, part: str = "final") -> Tensor:
    """Where in the picture the features after `part` speak for class `target`.

    Each feature map is weighted by the mean, over its pixels, of the gradient of the class's logit;
    the sum over all maps is kept where it is positive. No hooks: the features come from
    :meth:`DenseNet.intermediate_features`.

    Args:
        model: put into evaluation mode for the time, since batch norm would mix the pictures.
        x: (N, C, H, W), pictures as the model reads them.
        target: the class to explain, one for all pictures or (N,), one for each.
        part: a name of :meth:`DenseNet.intermediate_features`.

    Returns:
        (N, h, w) at the resolution of the features, at least 0, in units of the logit times h w.

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
def connections(
    model: DenseNet, block: str
) -> tuple[list[int], list[tuple[nn.BatchNorm2d, nn.Module]]]:
    """Channels of every source in `block`, the input first; the norm and the weights of every reader.

    The readers are the block's layers in order and, last, what reads its output: a transition or the
    classifier.
    """
    parts = model.parts()
    names = list(parts)
    blocks = [name for name in names if isinstance(parts[name][0], DenseBlock)]
    layers = list(parts[arguments.one_of(blocks)("block", block)][0].values())
    (behind,) = parts[names[names.index(block) + 1]]
    end = (behind, model.classifier) if block == blocks[-1] else (behind.norm, behind.conv)
    readers = [*((layer.norm1, layer.conv1) for layer in layers), end]
    for _, reader in readers:
        if not isinstance(reader.weight, nn.Parameter):
            # Pruning and the older weight norm compute it in a hook, so it may be an old one.
            with evaluation_mode(reader), torch.no_grad():
                reader(torch.zeros_like(reader.weight[0]))
    return [layers[0].norm1.num_features, *(layer.growth_rate for layer in layers)], readers


@arguments.check(scaled=arguments.boolean)
def feature_reuse(model: DenseNet, block: str, *, scaled: bool = False) -> Tensor:
    """Mean absolute weight with which each reader in `block` reads each source.

    Args:
        model: trained or not.
        block: ``"denseblock1"``, ``"denseblock2"``, …
        scaled: multiply each weight by the absolute value of batch norm's factor (gamma) for the
            channel that it reads. The weights act on ``relu(gamma * normalised + beta)``, so without
            gamma they say only half.

    Returns:
        (L + 1, L + 1) for a block of L layers. Rows are sources: the block's input, layers 1 to L.
        Columns are readers: layers 1 to L, then the transition or the classifier behind the block. NaN
        where nothing is read.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, figure 5, for layers without
    bottleneck. There the L1 norm of a connection's weights is divided by the number of input feature
    maps; dividing by the number of all its weights instead, as here, differs by one factor per kind of
    reader.
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


def _has_weights_of_its_own(model: DenseNet, block: str, source: int, target: int) -> None:
    """Refuse a connection whose weights cannot be set to zero, since they are computed from others."""
    _, readers = connections(model, block)
    if 0 < target <= len(readers) and not isinstance(readers[target - 1][1].weight, nn.Parameter):
        raise ValueError(
            f"target must be a reader with weights of its own, got {target}, whose weights are "
            f"computed from others, so that no connection can be removed. Put in their place what is "
            f"computed, with what belongs to the way it was done: remove_parametrizations, "
            f"remove_weight_norm, remove_spectral_norm or prune.remove, all in torch.nn.utils"
        )


@arguments.check(
    _has_weights_of_its_own,
    model=_densenet,
    source=arguments.integer(),
    target=arguments.integer(),
)
@contextmanager
def remove_connection(model: DenseNet, block: str, source: int, target: int) -> Iterator[None]:
    """Within the ``with`` block, `target` does not read `source`: the weights between them are zero.

    Zero weights are what a network without the wire would have. Nothing makes up for what is missing,
    neither batch norm's running statistics, which were taken with the wire, nor training; so the cost
    is that of cutting a trained network, not that of training one without the connection. Afterwards,
    also after an exception, every weight is what it was, bit for bit.

    Args:
        block: ``"denseblock1"``, ``"denseblock2"``, …
        source: 0 for the block's input, 1 to L for its layers.
        target: 1 to L for a layer, L + 1 for the transition or classifier behind the block; above
            `source`.

    Raises:
        ValueError: there is no such block or connection, or the weights are computed from others (by
            a parametrization, weight norm or pruning).
    """
    sizes, readers = connections(model, block)
    if not (0 <= source < target <= len(readers)):
        raise ValueError(
            f"source and target must be whole numbers with 0 <= source < target <= {len(readers)} in {block}, "
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
    """What the removal of one connection does to a network's answers.

    Attributes:
        source, target: as for :func:`remove_connection`.
        lost: pictures that were right and are wrong without the connection.
        gained: pictures that were wrong and are right without it.
        pictures: how many were looked at.
        loss: by how much the mean cross-entropy rises.
    """

    source: int
    target: int
    lost: int
    gained: int
    pictures: int
    loss: float

    @property
    def drop(self) -> float:
        """By how much the accuracy falls, as a share of the pictures."""
        return (self.lost - self.gained) / self.pictures

    @property
    def error(self) -> float:
        """Standard error of :attr:`drop` from the choice of pictures.

        Both accuracies come from the same pictures, so only those count whose answer changed: each adds +1, 0 or
        -1, and this is the binomial (here trinomial) standard error of their mean.
        """
        changed = self.lost + self.gained
        return math.sqrt(changed / self.pictures - self.drop**2) / math.sqrt(self.pictures)


@arguments.check(
    _are_labels,
    model=_densenet,
    x=_pictures,
    labels=_labels,
    batch_size=arguments.positive_int,
)
def connection_costs(
    model: DenseNet, block: str, x: Tensor, labels: Tensor, *, batch_size: int = 100
) -> list[ConnectionCost]:
    """Remove each connection of `block` in turn and count the answers that change.

    Connections into what stands behind the block are included. Whatever comes before the layer that
    reads a connection does not change with it, and is computed once.

    Args:
        model: put into evaluation mode for the time.
        block: ``"denseblock1"``, ``"denseblock2"``, …
        x, labels: (N, C, H, W) and (N,), on the model's device.
        batch_size: pictures at a time.

    Raises:
        ValueError: as for :func:`remove_connection`, or labels do not fit.
    """
    sizes, _ = connections(model, block)
    pairs = [(s, t) for t in range(1, len(sizes) + 1) for s in range(t)]
    layers = list(getattr(model.features, block).values())
    names = [name for name, _ in model.features.named_children()]
    at = names.index(block)
    before, behind = model.features[:at], model.features[at + 1 :]

    def answer(features: list[Tensor]) -> Tensor:
        features = list(features)
        for layer in layers[len(features) - 1 :]:
            features.append(layer(features))
        pooled = F.relu(behind(torch.cat(features, 1))).mean((2, 3))
        return model.classifier(pooled)

    logits = {pair: [] for pair in [None, *pairs]}
    with evaluation_mode(model), torch.no_grad():
        for pictures in x.split(batch_size):
            features = [before(pictures)]
            for layer in layers:
                features.append(layer(features))
            logits[None].append(answer(features))
            for source, target in pairs:
                with remove_connection(model, block, source, target):
                    logits[source, target].append(answer(features[:target]))

    whole = torch.cat(logits.pop(None))
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
                pictures=len(labels),
                loss=(F.cross_entropy(without, labels) - F.cross_entropy(whole, labels)).item(),
            )
        )
    return costs
