"""Measurements of networks: each function takes a unit, and trains and measures one network.

A unit is a dict of plain values that says everything: data, network, recipe, seed. So it can be
stored, and measured again anywhere.
"""

import dataclasses
import functools
import math
import random
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import data, insight, training
from densenet_tutorial.experiments import baselines
from densenet_tutorial.network import DenseNet

Unit = dict[str, Any]

#: Random cuts for each cut by age.
DRAWS = 5

#: A part of the training images on which no network is trained, as a fraction: learning rates are
#: chosen on it.
HELD_OUT = 1 / 6


@functools.lru_cache
def _on_device(name: str, device: str) -> data.ImageDataset:
    dataset = data.load_dataset(name, progress=False)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return dataclasses.replace(dataset, **{n: getattr(dataset, n).to(device) for n in names})


@functools.lru_cache
def _shuffled(images: int) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(0))


def dataset_of(unit: Unit, device: torch.device | str) -> data.ImageDataset:
    """The data set of a unit: ``unit["labels"]`` training images, as many of each class.

    ``unit["seed"]`` chooses them from those that are not held out. With ``unit["held_out"]``, the
    test images are the held-out part. With ``unit["shuffled"]``, the labels are in random order.

    Raises:
        ValueError: there are not so many images.
    """
    whole = _on_device(unit["data"], str(device))
    order = _shuffled(len(whole.train_labels)).to(device)
    held_out = order[: int(len(order) * HELD_OUT)]
    rest = order[len(held_out) :]
    generator = torch.Generator().manual_seed(unit["seed"])
    rest = rest[torch.randperm(len(rest), generator=generator).to(device)]
    labels, classes = whole.train_labels[rest], len(whole.classes)
    each = unit["labels"] // classes
    chosen = torch.cat([rest[labels == c][:each] for c in range(classes)])
    if len(chosen) < each * classes or not each:
        raise ValueError(
            f"labels must be at least {classes} and no more than {unit['data']!r} has of each of "
            f"its {classes} classes, got {unit['labels']}"
        )
    taught = whole.train_labels[chosen]
    if unit.get("shuffled"):
        taught = taught[torch.randperm(len(taught), generator=generator).to(device)]
    parts: dict[str, Any] = {"train_images": whole.train_images[chosen], "train_labels": taught}
    if unit.get("held_out"):
        parts["test_images"] = whole.train_images[held_out]
        parts["test_labels"] = whole.train_labels[held_out]
    return dataclasses.replace(whole, **parts)


def network_of(unit: Unit, dataset: data.ImageDataset) -> nn.Module:
    """The network of a unit, with random weights.

    ``unit["growth_rate"]`` and ``unit["blocks"]`` are a DenseNet's; the networks of the other
    families have its depth and an equal budget.
    """
    channels, side = dataset.train_images.shape[1], dataset.train_images.shape[-1]
    options = {name: unit[name] for name in ("bn_size", "compression", "drop_rate") if name in unit}
    with torch.device("meta") if unit["family"] != "dense" else ExitStack():
        dense = DenseNet(
            unit["growth_rate"],
            unit["blocks"],
            None,
            num_classes=len(dataset.classes),
            in_channels=channels,
            stem="cifar",
            **options,
        )
    if unit.get("order") == "post":
        dense = baselines.post_activated(dense)
    if unit.get("pooling") == "max":
        dense = baselines.max_pooled(dense)
    if unit["family"] == "dense":
        return dense
    wiring, blocks = unit["family"], tuple(unit["blocks"])
    size = (unit["growth_rate"], blocks, len(dataset.classes), channels, side)
    return baselines.StackedNet(
        wiring,
        # Plain and residual networks have the same layers.
        _equal_width(
            "residual" if wiring == "plain" else wiring, unit.get("budget", "parameters"), *size
        ),
        blocks,
        len(dataset.classes),
        in_channels=channels,
        drop_rate=unit.get("drop_rate", 0.0),
    )


@functools.lru_cache
def _equal_width(
    wiring: str,
    budget: str,
    growth_rate: int,
    blocks: tuple[int, ...],
    classes: int,
    channels: int,
    side: int,
) -> float:
    with torch.device("meta"):
        dense = DenseNet(
            growth_rate, blocks, None, num_classes=classes, in_channels=channels, stem="cifar"
        )
        return baselines.of_equal_budget(dense, wiring, budget, image_size=side).width


def _fit(unit: Unit, device: torch.device | str) -> tuple[nn.Module, data.ImageDataset, int]:
    """Train the unit's network; return it with its data set and the number of steps.

    The images are repeated until an epoch has at least ten steps, so that little time goes into the
    ends of epochs.

    Raises:
        ValueError: the loss is not finite any more.
    """
    dataset = dataset_of(unit, device)
    torch.manual_seed(unit["seed"])
    model = network_of(unit, dataset).to(device)
    batch = unit["batch_size"]
    times = math.ceil(10 * batch / len(dataset.train_labels))
    # The loop evaluates after each epoch: on a few images here, and on all at the end.
    short = dataclasses.replace(
        dataset,
        train_images=dataset.train_images.repeat(times, 1, 1, 1),
        train_labels=dataset.train_labels.repeat(times),
        test_images=dataset.test_images[:10],
        test_labels=dataset.test_labels[:10],
    )
    steps_per_epoch = len(short.train_labels) // batch
    recipe = training.Recipe(
        epochs=max(1, round(unit["steps"] / steps_per_epoch)),
        batch_size=batch,
        lr=unit["lr"],
        schedule="one-cycle",
        weight_decay=5e-4,
        augment=tuple(unit.get("augment", ())),
        channels_last=torch.device(device).type == "cpu",
        seed=unit["seed"],
    )
    training.fit(model, short, recipe, progress=False)
    return model, dataset, recipe.epochs * steps_per_epoch


def _tested(
    model: nn.Module, dataset: data.ImageDataset, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Cross-entropy and accuracy in evaluation mode."""
    logits = training.predict(model, dataset, images, batch_size=1000)
    labels = labels.cpu()
    right = (logits.argmax(1) == labels).float().mean().item()
    return F.cross_entropy(logits, labels).item(), right


def train(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Losses and accuracies after training, and the network's costs.

    If the loss is not finite any more, the accuracies are those of a guess, and ``diverged`` is
    true.
    """
    try:
        model, dataset, steps = _fit(unit, device)
    except ValueError as error:
        if "not finite any more" not in str(error):
            raise
        dataset = dataset_of(unit, device)
        guess = 1 / len(dataset.classes)
        accuracies = {"train_accuracy": guess, "test_accuracy": guess}
        return {"diverged": True, **accuracies, **_sizes(network_of(unit, dataset), dataset)}
    first = (dataset.train_images[:2000], dataset.train_labels[:2000])
    if not unit.get("shuffled"):  # then any sample will do, and these are sorted by class
        some = _shuffled(len(dataset.train_labels))[:2000].to(device)
        first = (dataset.train_images[some], dataset.train_labels[some])
    train_loss, train_accuracy = _tested(model, dataset, *first)
    test_loss, test_accuracy = _tested(model, dataset, dataset.test_images, dataset.test_labels)
    return {
        **_sizes(model, dataset),
        "steps_taken": steps,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }


def _sizes(model: nn.Module, dataset: data.ImageDataset) -> dict[str, int]:
    side = dataset.train_images.shape[-1]
    return {
        "parameters": baselines.count(model),
        "multiply_adds": baselines.multiply_adds(model, side),
    }


# ------------------------------------------------------------------------------ gradients by depth


def gradients(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Gradient norms of the 3x3 convolutions, at the start and, with ``unit["steps"]``, later.

    Returns:
        ``log10_norms``: for each moment, logarithms of the norms of at most 20 convolutions from
        first to last; ``moments``: the steps after which they were measured. A norm that is zero
        counts as 1e-45, one that is not finite as 1e38, the limits of float32.
    """
    dataset = dataset_of(unit, device)
    torch.manual_seed(unit["seed"])
    model = network_of(unit, dataset)
    if not unit["norm"]:
        _without_norm(model)
    if unit["init"] == "default":
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
    model = model.to(device).train()
    images, labels = dataset.train_images, dataset.train_labels
    some = _shuffled(len(labels))[: unit["batch_size"]].to(device)
    x, y = dataset.normalize(images[some]), labels[some]

    moments, found = [0], [_norms(model, x, y)]
    if unit.get("steps"):
        batch = unit["batch_size"]
        recipe = training.Recipe(
            epochs=math.ceil(unit["steps"] / max(1, len(labels) // batch)),
            batch_size=batch,
            lr=unit["lr"],
            schedule="one-cycle",
            channels_last=False,
            seed=unit["seed"],
        )
        loop = training.Training(model, dataset, recipe)
        with training.seeded(loop):
            done = 0
            while done < unit["steps"]:
                for indices in loop.batches():
                    loop.take_step(indices)
                    done += 1
                    if done in (unit["steps"] // 4, unit["steps"]):
                        moments.append(done)
                        found.append(_norms(model, x, y))
                    if done == unit["steps"]:
                        break
                loop.history.append({})  # the next epoch has another order
                loop.step = 0
    return {
        "layers": sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()),
        "parameters": baselines.count(model),
        "moments": moments,
        "log10_norms": found,
    }


def _norms(model: nn.Module, x: Tensor, labels: Tensor) -> list[float]:
    norms = insight.gradient_norms(model, x, labels)
    sides = {n: m.kernel_size for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    values = [norms[name] for name, side in sides.items() if side == (3, 3)]
    at = sorted({round(i * (len(values) - 1) / 19) for i in range(20)})
    inside = (min(max(values[i], 1e-45), 1e38) if math.isfinite(values[i]) else 1e38 for i in at)
    return [round(math.log10(value), 3) for value in inside]


def _without_norm(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


# -------------------------------------------------------------------------------- feature reuse


def cuts(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Weights between the layers of a trained DenseNet, and its accuracy after cutting connections.

    Returns:
        ``weights``: :func:`insight.feature_reuse`, scaled, by block; ``classifier``: its last
        column in the last block, what the classifier uses; ``test_accuracy``; ``cuts``: by least
        age (1 is the previous layer's output), the number of ``connections`` of that age
        and above in all blocks, of ``channels`` that they read, and the accuracy without them,
        ``old``, and without as many at ``random``, for each of :data:`DRAWS` draws.
    """
    model, dataset, _ = _fit(unit, device)
    assert isinstance(model, DenseNet)
    blocks = [name for name in model.parts() if name.startswith("denseblock")]
    sizes = {block: insight.connections(model, block)[0] for block in blocks}
    every = [
        (block, source, target)
        for block in blocks
        for target in range(1, len(sizes[block]) + 1)
        for source in range(target)
    ]
    tests = dataset.test_images[:2000], dataset.test_labels[:2000]

    def without(connections: list[tuple[str, int, int]]) -> float:
        with ExitStack() as stack:
            for block, source, target in connections:
                stack.enter_context(insight.remove_connection(model, block, source, target))
            return _tested(model, dataset, *tests)[1]

    draw = random.Random(unit["seed"])
    rows = []
    for age in range(2, max(len(size) for size in sizes.values()) + 1):
        old = [c for c in every if c[2] - c[1] >= age]
        rows.append(
            {
                "age": age,
                "connections": len(old),
                "channels": sum(sizes[block][source] for block, source, _ in old),
                "old": without(old),
                "random": [without(draw.sample(every, len(old))) for _ in range(DRAWS)],
            }
        )
    weights = {b: insight.feature_reuse(model, b, scaled=True) for b in blocks}
    return {
        "parameters": baselines.count(model),
        "connections": len(every),
        "test_accuracy": without([]),
        "cuts": rows,
        "classifier": _rounded(weights[blocks[-1]][:, -1]),
        "weights": {b: [_rounded(row) for row in matrix] for b, matrix in weights.items()},
    }


def _rounded(values: Tensor) -> list[float | None]:
    """The numbers to four digits; ``None`` for NaN, which JSON lacks."""
    return [None if math.isnan(v) else float(f"{v:.4g}") for v in values.tolist()]


# --------------------------------------------------------------------------------- linear probes


def probes(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Accuracy of linear classifiers of the features after the stem and after each block.

    Their inputs are a stage's mean features over each quarter of the image, standardised; they are
    fitted to the training images by L-BFGS, with the same L2 penalty for all.

    Returns:
        ``stages``: for each stage ``name``, number of ``channels``, ``test_accuracy``; and the
        ``test_accuracy`` of the network itself. For a DenseNet, ``classifier``: the mean weight of
        each source of the last block in the network's own classifier, scaled by batch norm's gamma.
    """
    model, dataset, _ = _fit(unit, device)
    features: Any = model.intermediate_features

    @torch.no_grad()
    def pooled(images: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        with training.evaluation_mode(model):
            for part in images.split(1000):
                for name, values in features(dataset.normalize(part)).items():
                    if name == "stem" or "block" in name:
                        values = F.adaptive_avg_pool2d(values, 2).flatten(1)
                        found.setdefault(name, []).append(values)
        return {name: torch.cat(parts) for name, parts in found.items()}

    taught, tests = pooled(dataset.train_images), pooled(dataset.test_images)
    stages = [
        {
            "name": name.removeprefix("dense"),
            "channels": x.shape[1] // 4,
            "test_accuracy": _probe(
                x, dataset.train_labels, tests[name], dataset.test_labels, len(dataset.classes)
            ),
        }
        for name, x in taught.items()
    ]
    result: dict[str, Any] = {
        "parameters": baselines.count(model),
        "stages": stages,
        "test_accuracy": _tested(model, dataset, dataset.test_images, dataset.test_labels)[1],
    }
    if isinstance(model, DenseNet):
        last = [name for name in model.parts() if name.startswith("denseblock")][-1]
        result["classifier"] = _rounded(insight.feature_reuse(model, last, scaled=True)[:, -1])
    return result


def _probe(x: Tensor, labels: Tensor, tests: Tensor, answers: Tensor, classes: int) -> float:
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, tests = (x - mean) / std, (tests - mean) / std
    weight = torch.zeros(classes, x.shape[1] + 1, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(x, weight[:, :-1], weight[:, -1]), labels)
        value = value + 1e-3 * weight[:, :-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    guesses = F.linear(tests, weight[:, :-1], weight[:, -1]).argmax(1)
    return (guesses == answers).float().mean().item()
