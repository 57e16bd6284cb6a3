"""Every public function and class of the package, with arguments that are valid, for tests that go
through all.
"""

import copy
import dataclasses
import functools
import importlib
import inspect
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from densenet_tutorial import DenseBlock, DenseNet, data, insight, training, weights
from densenet_tutorial.experiments import benchmarks, claims, speed

MODULES = (
    "densenet_tutorial",
    "densenet_tutorial.data",
    "densenet_tutorial.experiments.baselines",
    "densenet_tutorial.experiments.benchmarks",
    "densenet_tutorial.experiments.claims",
    "densenet_tutorial.experiments.speed",
    "densenet_tutorial.experiments.transfer",
    "densenet_tutorial.figures",
    "densenet_tutorial.insight",
    "densenet_tutorial.memory",
    "densenet_tutorial.training",
    "densenet_tutorial.utils.environment",
    "densenet_tutorial.weights",
)

#: What functions return, and nobody is asked to make.
RESULTS = (
    "PartCost",
    "ReceptiveField",
    "ConnectionCost",
    "MemoryMeasurement",
    "SpeedMeasurement",
    "Verdict",
    "Weights",
)


def public_functions():
    """The functions and classes, by the first name under which they are public, without the
    package's.
    """
    found = {}
    for module in map(importlib.import_module, MODULES):
        defined = [
            name
            for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
        ]
        for name in getattr(module, "__all__", defined):
            thing = getattr(module, name)
            exception = isinstance(thing, type) and issubclass(thing, BaseException)
            known = any(thing is other for other in found.values())
            if callable(thing) and not (exception or known or name in RESULTS or name[0] == "_"):
                path = f"{module.__name__}.{name}".removeprefix("densenet_tutorial.")
                found[path] = thing
    return found


def parameters(function):
    """The names of the arguments of `function`, without ``*`` and ``**``."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind not in kinds]


@functools.cache
def model():
    """Two blocks, for grey pictures of 8 x 8 pixels or more, five classes."""
    return DenseNet(4, (2, 1), 8, num_classes=5, in_channels=1, stem="cifar").eval()


@functools.cache
def block():
    return DenseBlock(2, 8, 4, 4, 0.0)


@functools.cache
def first_convolution():
    """From grey pictures to what `block` reads."""
    return nn.Conv2d(1, 8, 3, padding=1)


@functools.cache
def pictures():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@functools.cache
def dataset():
    digits = data.load_dataset("digits")
    return dataclasses.replace(
        digits,
        train_images=digits.train_images[:20],
        train_labels=digits.train_labels[:20] % 5,
        test_images=digits.test_images[:10],
        test_labels=digits.test_labels[:10] % 5,
        classes=tuple("abcde"),
    )


@functools.cache
def recipe():
    return training.Recipe(epochs=1, batch_size=10, channels_last=False)


def task():
    return {"model": model(), "dataset": dataset(), "recipe": recipe()}


def folder_of_images():
    """A folder with two classes of images, in the working directory."""
    for shade, name in ((50, "a"), (200, "b")):
        Path("images", name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            Image.new("L", (8, 8), shade + i).save(Path("images", name, f"{i}.png"))
    return "images"


def labels():
    return torch.tensor([0, 1, 4])


def figures_of_memory():
    return [benchmarks.MemoryMeasurement("ours", 2**20, None, None, None, [1.0, 1.5], 1.0)]


def figures_of_speed():
    return [speed.SpeedMeasurement("predict", 1, "ours", [1.0, 1.5], 1.0, 1.0, True)]


def cost():
    return insight.ConnectionCost(0, 1, lost=5, gained=1, images=10, loss=0.1)


def reuse():
    return torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])


def rows_of_reuse():
    return claims.results("reuse")


TITLES = {"title": "a title", "xlabel": "x", "ylabel": "y"}
EPOCH = {
    "epoch": 1,
    "train_loss": 1.0,
    "test_loss": 1.0,
    "train_accuracy": 0.5,
    "test_accuracy": 0.6,
}
LAYER = {"bn_size": 4, "drop_rate": 0.0}

#: Arguments with which each function can be called; given afresh each time.
VALID = {
    "DenseLayer": lambda: {"num_input_features": 8, "growth_rate": 4, **LAYER},
    "DenseBlock": lambda: {"num_layers": 2, "num_input_features": 8, "growth_rate": 4, **LAYER},
    "Transition": lambda: {"num_input_features": 8, "num_output_features": 4},
    "DenseNet": lambda: {"growth_rate": 4, "block_config": (1, 1), "num_init_features": 8},
    "densenet": lambda: {"name": "densenet_bc", "block_config": (1,), "growth_rate": 4},
    "data.FitInside": lambda: {"height": 8, "width": 8},
    "data.ImageDataset": lambda: vars(dataset()).copy(),
    "data.load_dataset": lambda: {"name": "digits"},
    "data.load_again": lambda: {"metadata": data.load_dataset("digits").metadata()},
    "data.load_folder": lambda: {"folder": folder_of_images(), "progress": False},
    "data.normalize": lambda: {"images": dataset().test_images, "mean": (0.5,), "std": (0.5,)},
    "data.photograph": lambda: {"name": "cat"},
    "data.read_image": lambda: {"path": "picture.png"},
    "experiments.baselines.PostActivationLayer": lambda: {
        "num_input_features": 4,
        "growth_rate": 4,
        "bn_size": 1,
        "drop_rate": 0.0,
    },
    "experiments.baselines.StackedNet": lambda: {
        "wiring": "plain",
        "width": 4,
        "block_config": (1,),
    },
    "experiments.baselines.max_pooled": lambda: {"model": copy.deepcopy(model())},
    "experiments.baselines.multiply_adds": lambda: {"model": model(), "image_size": 8},
    "experiments.baselines.of_equal_budget": lambda: {
        "reference": DenseNet(8, (2, 2), stem="cifar"),
        "wiring": "plain",
    },
    "experiments.baselines.post_activated": lambda: {"reference": model()},
    "experiments.baselines.count": lambda: {"model": model()},
    "experiments.benchmarks.as_text": lambda: {"rows": [("a", "b"), ("c", "d")]},
    "experiments.benchmarks.check_output": lambda: {"path": "results.json"},
    "experiments.benchmarks.compare_memory": lambda: {
        "name": "densenet_40_12",
        "batch_size": 2,
        "image_size": 8,
        "repeats": 1,
        "quick": True,
    },
    "experiments.benchmarks.memory_rows": lambda: {"figures": figures_of_memory(), "batch_size": 2},
    "experiments.benchmarks.models": lambda: {"name": "densenet_40_12"},
    "experiments.benchmarks.resident_bytes": lambda: {"model": model(), "x": pictures()},
    "experiments.benchmarks.write_results": lambda: {
        "path": "results.json",
        "command": "a command",
        "setting": {"a": 1},
        "figures": figures_of_memory(),
        "rows": [("a", "b")],
    },
    "experiments.speed.BytesAlone": lambda: {"model": model(), "x": pictures()},
    "experiments.claims.list_claims": dict,
    "experiments.claims.missing": lambda: {"name": "reuse", "rows": rows_of_reuse()},
    "experiments.claims.results": lambda: {"name": "choices"},
    "experiments.claims.run": lambda: {"names": ["reuse"], "seconds": 1e-9, "progress": False},
    "experiments.claims.verdict": lambda: {"name": "reuse", "rows": rows_of_reuse()},
    "experiments.speed.ConvolutionsAlone": lambda: {"model": model(), "x": pictures()},
    "experiments.speed.compare_speed": lambda: {
        "name": "densenet_40_12",
        "tasks": ("predict",),
        "batch_sizes": [2],
        "image_size": 8,
        "repeats": 1,
    },
    "experiments.speed.in_turns": lambda: {"steps": {"a": list}, "repeats": 1},
    "experiments.speed.quantized": lambda: {"model": model().eval(), "x": pictures()},
    "experiments.speed.results": lambda: {"name": "speed-densenet121-cpu"},
    "experiments.speed.speed_rows": lambda: {"figures": figures_of_speed()},
    "experiments.transfer.few_labels": lambda: {"per_class": 1, "seed": 0, "tests": 10},
    "experiments.transfer.run_from": lambda: {
        "start": "frozen",
        "seed": 0,
        "per_class": 1,
        "epochs": 1,
    },
    "experiments.transfer.started": lambda: {"start": "frozen", "seed": 0},
    "figures.adding_and_concatenating": lambda: {
        "old": torch.tensor([1, 2]),
        "new": torch.tensor([3, 4]),
    },
    "figures.all_reduce": lambda: {"batch": torch.arange(1.0, 5), "weight": 2.0},
    "figures.batch_norm_trap": lambda: {"layer": block()["denselayer1"]},
    "figures.channel_order": lambda: {"block": block()},
    "figures.checkpoint": lambda: {"state": {"model": model().state_dict(), "optimizer": {}}},
    "figures.dense_layer": lambda: {"layer": block()["denselayer1"]},
    "figures.growing_strip": lambda: {"block": block()},
    "figures.keys": lambda: {"state_dict": model().state_dict()},
    "figures.layer_at_work": lambda: {
        "block": block(),
        "start": first_convolution(),
        "picture": pictures(),
        "layer": 2,
    },
    "figures.network": lambda: {"model": model(), "image_size": 8},
    "figures.preprocessing": lambda: {
        "picture": Image.new("RGB", (40, 30)),
        "transform": weights.transforms("fashion-mnist-small"),
    },
    "figures.receptive_squares": lambda: {
        "fields": insight.receptive_fields(model()),
        "picture": torch.zeros(3, 8, 8, dtype=torch.uint8),
    },
    "figures.saved_tensors": lambda: {"block": block()},
    "figures.training_loop": lambda: {
        "training": training.Training(model(), dataset(), training.Recipe(epochs=1, batch_size=2))
    },
    "figures.transition": lambda: {"transition": model().features.transition1},
    "figures.transition_orders": lambda: {"transition": model().features.transition1},
    "figures.weighted_maps": lambda: {"model": model(), "x": pictures(), "target": 1},
    "figures.wirings": lambda: {"block": block()},
    "figures.bars": lambda: {"values": {"a": 1.0}, "title": "t", "xlabel": "x"},
    "figures.confusion": lambda: {"matrix": torch.eye(2), "classes": ["a", "b"]},
    "figures.connection_costs": lambda: {
        "measured": {"denseblock1": ([cost()], reuse())},
        "title": "t",
    },
    "figures.costs": lambda: {"parts": insight.part_costs(model(), 8)},
    "figures.curves": lambda: {"series": {"a": [1, 2, 3]}, **TITLES},
    "figures.effective_receptive_fields": lambda: {
        "fields": {"a": torch.ones(4, 4)},
        "theoretical": {"a": 3},
        "title": "t",
    },
    "figures.feature_maps": lambda: {"features": torch.randn(2, 4, 4), "title": "t"},
    "figures.feature_reuse_maps": lambda: {"rows": {"a": {"denseblock1": reuse()}}, "title": "t"},
    "figures.grad_cam_maps": lambda: {
        "images": pictures(),
        "maps": torch.rand(3, 2, 2),
        "titles": ["a", "b", "c"],
        "title": "t",
    },
    "figures.gradient_norms": lambda: {"series": {"a": torch.rand(3, 4) + 1}, "title": "t"},
    "figures.history": lambda: {"rows": [EPOCH]},
    "figures.images": lambda: {
        "images": torch.zeros(2, 1, 4, 4),
        "titles": ["a", "b"],
        "title": "t",
    },
    "figures.png": lambda: {"figure": importlib.import_module("matplotlib.figure").Figure()},
    "figures.receptive_fields": lambda: {
        "fields": insight.receptive_fields(model()),
        "image_size": 8,
    },
    "figures.lines_with_spread": lambda: {
        "panels": {"x": {"a": [(1, [1.0, 2.0]), (2, [3.0])]}},
        "title": "t",
        "ylabel": "y",
    },
    "figures.dots_with_spread": lambda: {
        "rows": {"a": {"b": [1.0, 2.0]}},
        "title": "t",
        "xlabel": "x",
    },
    "figures.mean_and_range": lambda: {"runs": {"a": [[1, 2], [2, 3]]}, **TITLES},
    "figures.memory_passes": lambda: {"ways": {"a": [("conv1", 8.0, 4)]}, "title": "t"},
    "figures.ratios": lambda: {"rows": {"a": [1.0, 1.5], "b": [0.5]}, "title": "t", "xlabel": "x"},
    "figures.roofline": lambda: {
        "series": {"a": {"b": (2.0, 30.0)}},
        "bandwidth": 50.0,
        "compute": 100.0,
        "title": "t",
    },
    "figures.time_and_memory": lambda: {"figures": figures_of_memory()},
    "insight.connection_costs": lambda: {
        "model": model(),
        "block": "denseblock1",
        "x": pictures(),
        "labels": labels(),
    },
    "insight.connections": lambda: {"model": model(), "block": "denseblock1"},
    "insight.effective_receptive_field": lambda: {
        "model": model(),
        "x": pictures(),
        "part": "final",
    },
    "insight.effective_size": lambda: {"field": torch.ones(4, 4)},
    "insight.feature_reuse": lambda: {"model": model(), "block": "denseblock1"},
    "insight.grad_cam": lambda: {"model": model(), "x": pictures(), "target": 1},
    "insight.gradient_norms": lambda: {"model": model(), "x": pictures(), "labels": labels()},
    "insight.part_costs": lambda: {"model": model(), "image_size": 8},
    "insight.receptive_fields": lambda: {"model": model()},
    "insight.remove_connection": lambda: {
        "model": model(),
        "block": "denseblock1",
        "source": 0,
        "target": 1,
    },
    "memory.saved_activation_bytes": lambda: {"model": model(), "input": pictures()},
    "optimize_for_inference": lambda: {"model": model(), "dtype": torch.float32},
    "set_memory_efficient": lambda: {"model": block(), "mode": False},
    "training.Recipe": dict,
    "training.Training": task,
    "training.evaluate": lambda: {"model": model(), "dataset": dataset()},
    "training.fit": lambda: {**task(), "progress": False},
    "training.freeze": lambda: {"module": nn.ReLU()},
    "training.predict": lambda: {
        "model": model(),
        "dataset": dataset(),
        "images": dataset().test_images,
    },
    "training.seeded": lambda: {"training": training.Training(**task())},
    "training.with_progress": lambda: {"training": training.Training(**task()), "progress": False},
    "utils.environment.device": dict,
    "utils.environment.machine": lambda: {"device": "cpu"},
    "training.evaluation_mode": lambda: {"model": model()},
    "weights.adapt": lambda: {
        "weights": weights.read("fashion-mnist-small"),
        "like": weights.read("fashion-mnist-small").model,
    },
    "weights.adapt_state_dict": lambda: {
        "state_dict": model().state_dict(),
        "like": model().state_dict(),
    },
    "weights.categories": lambda: {"weights": "fashion-mnist-small"},
    "weights.convert_state_dict": lambda: {"content": model().state_dict()},
    "weights.is_cached": lambda: {"name": "densenet121"},
    "weights.read": lambda: {"weights": "fashion-mnist-small"},
    "weights.results": lambda: {"name": "fashion-mnist-small"},
    "weights.save": lambda: {"model": model(), "path": "weights.pt"},
    "weights.trained_on": lambda: {"weights": "fashion-mnist-small"},
    "weights.transforms": lambda: {"weights": "fashion-mnist-small"},
}


def write_picture():
    """The picture that ``read_image`` is to read, in the working directory."""
    Image.new("L", (8, 8)).save("picture.png")
