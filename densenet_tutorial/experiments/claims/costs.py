"""Measurements of cost: the bytes that a training step holds, and times, which run alone."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from densenet_tutorial import memory
from densenet_tutorial.experiments import baselines, speed
from densenet_tutorial.experiments.claims.trained import Unit, dataset_of, network_of


def held(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Bytes per image that autograd holds between the forward and the backward pass.

    ``unit["mode"]`` is DenseNet's `memory_efficient`.
    """
    dataset = dataset_of(unit, device)
    torch.manual_seed(unit["seed"])
    model = network_of(unit, dataset).to(device).train()
    if unit["mode"]:
        model = memory.set_memory_efficient(model, unit["mode"])
    x = dataset.normalize(dataset.train_images[: unit["batch_size"]])
    return {
        "layers": sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()),
        "parameters": baselines.count(model),
        "bytes_per_image": memory.saved_activation_bytes(model, x) // len(x),
    }


def timed(unit: Unit, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Times of a prediction and of a training step of several networks, which take turns.

    ``unit["networks"]`` are their own entries of units: family, growth rate, budget.

    Returns:
        ``times``: for each network its entries, its number of ``multiply_adds``, and ``predict``
        and ``train``: the seconds of each call; and the number of CPU ``threads``.
    """
    dataset = dataset_of(unit, device)
    x = dataset.normalize(dataset.train_images[: unit["batch_size"]])
    labels = dataset.train_labels[: unit["batch_size"]]
    torch.manual_seed(unit["seed"])
    models = [network_of(unit | entries, dataset).to(device) for entries in unit["networks"]]
    steps: dict[str, Any] = {}
    for i, model in enumerate(models):
        steps[f"train {i}"] = partial(_train, model, x, labels)
        steps[f"predict {i}"] = partial(_predict, model, x)
    seconds = speed.in_turns(steps, unit["repeats"], device)
    return {
        "threads": torch.get_num_threads(),
        "times": [
            entries
            | {
                "multiply_adds": baselines.multiply_adds(model, x.shape[-1]),
                "predict": [round(s, 7) for s in seconds[f"predict {i}"]],
                "train": [round(s, 7) for s in seconds[f"train {i}"]],
            }
            for i, (entries, model) in enumerate(zip(unit["networks"], models, strict=True))
        ],
    }


def _predict(model: nn.Module, x: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)


def _train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    F.cross_entropy(model(x), labels).backward()
    model.zero_grad()
