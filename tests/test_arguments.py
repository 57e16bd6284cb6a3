"""Bad arguments: every public function refuses them in the same way, and says which and what is
valid.
"""

import contextlib
import math
import re
from fractions import Fraction

import numpy as np
import public_functions
import pytest
import torch
from matplotlib.figure import Figure
from public_functions import EPOCH, VALID, dataset, figures_of_speed, labels, model
from torch import nn

from densenet_tutorial import DenseBlock, DenseNet, insight, training
from densenet_tutorial.utils import arguments

PUBLIC = public_functions.public_functions()

#: Of these the models are made by `densenet`, with the same options.
NAMED_MODELS = [name for name in PUBLIC if re.fullmatch(r"densenet_?\w+", name)]


class Foreign:
    """Something that has nothing to do with anything."""


def generator(*values):
    return (value for value in values)


# -------------------------------------------------------------------------- bad values of each kind


def whole(least=1, most=None):
    wrong = [None, "3", b"3", 2.5, math.nan, math.inf, True, Foreign(), [3], torch.tensor(3)]
    return [*wrong, least - 1, -7, generator(3), *([] if most is None else [most + 1])]


def real(*out_of_range):
    wrong = [None, "0.5", b"1", math.nan, True, Foreign(), [0.5], torch.tensor(0.5), 1j]
    return [*wrong, *out_of_range, generator(1.0)]


def flag():
    return [None, "no", "True", 1, 0, 0.0, Foreign(), [True]]


def choice():
    return [None, "no such thing", "", b"x", 3, 2.5, True, Foreign(), ["x"], generator("x")]


def text():
    return [None, 3, 2.5, True, b"text", Foreign(), ["text"], generator("x")]


path = text


def module():
    return [None, "densenet121", 3, nn.ReLU, {}, Foreign(), [nn.ReLU()]]


def densenet():
    return [*module(), DenseNet, nn.ReLU(), model().state_dict()]


def tensor(kind, *shape):
    """Not the kind; another number of dimensions; empty; no tensor."""
    others = {
        "floats": [torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.int64)],
        "uint8": [torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)],
        "int64": [torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)],
        "numbers": [
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(shape, dtype=torch.complex64),
        ],
    }
    dtype = {"floats": torch.float32, "uint8": torch.uint8, "int64": torch.int64}.get(kind)
    right = torch.zeros(shape, dtype=dtype)
    dimensions = [right[None], right[0]] if shape else []
    no_tensor = [None, "x", 3, Foreign(), [1.0], np.zeros(shape), generator(right)]
    return [*no_tensor, *others[kind], *dimensions, right[:0]]


def sequence(*bad_elements, good):
    wrong = [None, 3, "ab", b"ab", [], {"a", "b"}, generator(good)]
    return [*wrong, Foreign(), *([good, bad] for bad in (*bad_elements, None, Foreign()))]


def mapping(*bad_values, good):
    wrong = [None, 3, "ab", [], {}, [("a", good)], {3: good}, Foreign(), generator(good)]
    return [*wrong, *({"a": good, "b": bad} for bad in (*bad_values, None, Foreign()))]


def optional(values):
    return [value for value in values if value is not None]


def numbers():
    return [
        None,
        3,
        "ab",
        [],
        [1, "2"],
        [None],
        {1.0},
        Foreign(),
        generator(1.0),
        [[1.0]],
        torch.ones(2, 2),
    ]


# ------------------------------------------------------------------------------ the table

NINE = "abcdefghi"  # more than there are colours
LAYER = {
    "num_input_features": whole(),
    "growth_rate": whole(),
    "bn_size": optional(whole()),
    "drop_rate": real(-0.1, 1.1, math.inf),
}
TITLES = {"title": text(), "xlabel": text(), "ylabel": text()}
BLOCK = [*module(), DenseBlock, nn.ModuleDict(), model()]
SIZE = [None, 3, "ab", (1,), (1, 2, 3), (0, 2), (2.5, 2), {3, 4}, Foreign(), generator(3, 4)]
TRANSITION = {
    "transition": [*module(), nn.ReLU(), model()],
    "size": SIZE,
    "sources": [*optional(sequence(0, -1, True, 2.5, "3", good=8)), [8, 9]],
}
TABLE_OF_WORDS = [*sequence("ab", ("a", 3), [None], good=("a", "b")), [("a",), ("a", "b")]]
DATASET = [*choice(), dataset().train_images, vars(dataset())]
STATE_DICT = [None, 3, "x", Foreign(), [], {"a": None}, {"a": Foreign()}]
HEAD = ["no such thing", "", 3, True, 2.5, Foreign(), [], [0, True], [-1], [0, None], {0}, [2.5]]
NETWORK = {
    "growth_rate": whole(),
    "block_config": sequence(0, -1, True, 2.5, "3", good=2),
    "num_init_features": optional(whole()),
    "bn_size": optional(whole()),
    "drop_rate": real(-0.1, 1.1, math.inf),
    "num_classes": whole(),
    "memory_efficient": [*choice(), 1, 0],
    "in_channels": whole(),
    "stem": choice(),
    "compression": real(0.0, -0.1, 1.1, math.inf),
}
NETWORK["memory_efficient"].remove(True)
IMAGES = tensor("uint8", 3, 1, 8, 8)
LABELS = [*tensor("int64", 3), labels()[:2], labels() + 1, labels() - 1]
CLASSES = sequence(3, b"a", good="a")

#: By function and argument: values that have to be refused.
TABLE = {
    "DenseLayer": LAYER,
    "DenseBlock": LAYER | {"num_layers": whole()},
    "Transition": {"num_input_features": whole(), "num_output_features": whole()},
    "DenseNet": NETWORK,
    "densenet": {
        **NETWORK,
        "num_classes": optional(whole()),
        "name": choice(),
        "weights": [3, 2.5, True, "no such file", Foreign(), []],
        "head": HEAD,
        "progress": flag(),
        "pretrained": flag(),
    },
    "data.FitInside": {"height": whole(), "width": whole()},
    "data.ImageDataset": {
        "name": text(),
        "train_images": [*IMAGES, torch.rand(20, 1, 8, 8), dataset().train_images[:5]],
        "train_labels": [
            *tensor("int64", 20),
            dataset().train_labels[:5],
            dataset().train_labels + 1,
        ],
        "test_images": [
            *IMAGES,
            torch.rand(10, 1, 8, 8),
            dataset().test_images[:5],
            dataset().test_images[:0],
        ],
        "test_labels": [*tensor("int64", 10), dataset().test_labels[:5], dataset().test_labels - 5],
        "classes": CLASSES,
        "mean": [*numbers(), (0.5, 0.5), (math.nan,), (math.inf,)],
        "std": [*numbers(), (0.5, 0.5), (0.0,), (-1.0,), (math.nan,)],
        "folder": optional(text()),
    },
    "data.load_again": {"metadata": [None, 3, "a", [], {}, {"name": "digits"}, Foreign()]},
    "data.load_dataset": {"name": choice(), "root": optional(path()), "progress": flag()},
    "data.load_folder": {
        "folder": [*path(), "no such folder"],
        "image_size": [*optional(whole()), (8,), (8, 8, 8), (8, 0), (8, None)],
        "channels": [0, 2, 4, True, "1", Foreign()],
        "test_fraction": real(-0.1, 1.1, math.inf),
        "seed": whole(0, 2**63 - 1),
        "progress": flag(),
    },
    "data.normalize": {
        "images": [*tensor("uint8", 2, 1, 8, 8)[:-1]],
        "mean": numbers(),
        "std": [*numbers(), (0.0,), (-1.0,)],
    },
    "data.photograph": {"name": choice()},
    "data.read_image": {"path": path()},
    "experiments.baselines.PostActivationLayer": LAYER | {"bn_size": whole(), "last_relu": flag()},
    "experiments.baselines.StackedNet": {
        "wiring": choice(),
        "width": real(0.9, -1, math.inf),
        "block_config": sequence(0, -1, True, 2.5, "3", good=2),
        "num_classes": whole(),
        "in_channels": whole(),
        "drop_rate": real(-0.1, 1.1, math.inf),
    },
    "experiments.baselines.max_pooled": {"model": densenet()},
    "experiments.baselines.multiply_adds": {"model": module(), "image_size": [*whole(), 1]},
    "experiments.baselines.of_equal_budget": {
        "reference": [*densenet(), DenseNet(4, (1,), 8)],
        "wiring": choice(),
        "budget": choice(),
        "image_size": [*whole(), 1],
    },
    "experiments.baselines.post_activated": {"reference": [*densenet(), DenseNet(4, (1,), 8)]},
    "experiments.baselines.count": {"model": module()},
    "experiments.benchmarks.as_text": {"rows": TABLE_OF_WORDS},
    "experiments.benchmarks.check_output": {
        "path": [None, 3, Foreign(), "table.csv", ".", "no such folder/results.json"],
    },
    "experiments.benchmarks.compare_memory": {
        "name": choice(),
        "batch_size": whole(),
        "image_size": [*whole(), 3],
        "repeats": whole(),
        "device": [*choice(), "cuda:77"],
        "quick": flag(),
    },
    "experiments.benchmarks.memory_rows": {
        "figures": [*sequence(3, "a", good=public_functions.figures_of_memory()[0])],
        "batch_size": whole(),
    },
    "experiments.benchmarks.models": {"name": choice()},
    "experiments.benchmarks.resident_bytes": {
        "model": module(),
        "x": tensor("floats", 2, 1, 8, 8),
    },
    "experiments.benchmarks.write_results": {
        "path": [*path(), "results.csv"],
        "command": text(),
        "setting": [None, 3, "a", [], Foreign()],
        "figures": sequence(3, "a", good=public_functions.figures_of_memory()[0]),
        "rows": TABLE_OF_WORDS,
    },
    "experiments.speed.BytesAlone": {
        "model": module(),
        "x": tensor("floats", 3, 1, 8, 8),
    },
    "experiments.claims.missing": {
        "name": choice(),
        "rows": [value for value in sequence("a", 3, good={}) if value != []],
        "full": flag(),
        "data": [3, True],
    },
    "experiments.claims.results": {"name": choice()},
    "experiments.claims.run": {
        "names": optional(sequence("speed", 3, good="reuse")),
        "full": flag(),
        "output": optional(path()),
        "device": optional([*choice(), "cuda:77"]),
        "workers": whole(),
        "seconds": optional(real(0, -1, math.inf)),
        "data": optional(choice()),
        "progress": flag(),
    },
    "experiments.claims.verdict": {"name": choice(), "rows": sequence("a", 3, good={})},
    "experiments.speed.ConvolutionsAlone": {
        "model": module(),
        "x": tensor("floats", 3, 1, 8, 8),
    },
    "experiments.speed.compare_speed": {
        "name": choice(),
        "tasks": sequence(3, "no such task", good="predict"),
        "batch_sizes": sequence("3", 0, 2.5, good=2),
        "image_size": whole(4),
        "repeats": whole(),
        "device": ["abacus", "", None, 3, Foreign()],
        "amp": flag(),
        "compiled": flag(),
    },
    "experiments.speed.in_turns": {
        "steps": mapping(3, "a", None, good=list),
        "repeats": whole(),
        "device": ["abacus", "", None, 3, Foreign()],
    },
    "experiments.speed.quantized": {
        "model": module(),
        "x": tensor("floats", 3, 1, 8, 8),
    },
    "experiments.speed.results": {"name": choice()},
    "experiments.speed.speed_rows": {"figures": sequence(3, "a", good=figures_of_speed()[0])},
    "experiments.transfer.few_labels": {
        "per_class": whole(1, 1000),
        "seed": whole(0, 2**63 - 1),
        "tests": whole(1, 1000),
    },
    "experiments.transfer.run_from": {
        "start": choice(),
        "seed": whole(0, 2**63 - 1),
        "per_class": whole(1, 1000),
        "epochs": whole(),
        "lr": real(0.0, -1.0, math.inf),
    },
    "experiments.transfer.started": {"start": choice(), "seed": whole(0, 2**63 - 1)},
    "figures.adding_and_concatenating": {
        "old": [*tensor("numbers", 2), torch.zeros(3)],
        "new": [*tensor("numbers", 2), torch.zeros(3)],
    },
    "figures.all_reduce": {
        "batch": [*tensor("floats", 4), torch.ones(3)],
        "weight": real(math.inf),
        "processes": [*whole(), 1, 4, 5],
    },
    "figures.batch_norm_trap": {"layer": [*module(), nn.ReLU()]},
    "figures.channel_order": {"block": BLOCK},
    "figures.checkpoint": {"state": [None, 3, "x", Foreign(), [], {}, {"model": {}}]},
    "figures.dense_layer": {
        "layer": [*module(), nn.ReLU(), model()],
        "size": SIZE,
        "sources": [*optional(sequence(0, -1, True, 2.5, "3", good=4)), [4, 5]],
    },
    "figures.growing_strip": {"block": BLOCK},
    "figures.keys": {"state_dict": STATE_DICT},
    "figures.layer_at_work": {
        "block": BLOCK,
        "start": [
            *module(),
            nn.ReLU(),
            nn.Conv2d(1, 7, 3),
            nn.Conv2d(2, 8, 3),
            nn.Flatten(),
            model(),
        ],
        "picture": [*tensor("floats", 3, 1, 8, 8), torch.randn(3, 2, 8, 8)],
        "layer": whole(1, 2),
    },
    "figures.network": {"model": densenet(), "image_size": whole(2)},
    "figures.preprocessing": {
        "picture": [None, 3, "x", Foreign(), torch.zeros(3, 4, 4), np.zeros((4, 4, 3))],
        "transform": [None, 3, "x", Foreign(), [], nn.ReLU(), nn.Sequential()],
    },
    "figures.receptive_squares": {
        "fields": sequence(3, "a", good=insight.receptive_fields(model())[0]),
        "picture": tensor("uint8", 3, 8, 8),
    },
    "figures.saved_tensors": {
        "block": [*BLOCK, DenseBlock(2, 8, None, 4, 0.0), DenseBlock(7, 8, 4, 4, 0.0)]
    },
    "figures.training_loop": {"training": [None, 3, "x", Foreign(), {}, model()]},
    "figures.transition": TRANSITION,
    "figures.transition_orders": TRANSITION,
    "figures.weighted_maps": {
        "model": densenet(),
        "x": [*tensor("floats", 3, 1, 8, 8), torch.randn(3, 2, 8, 8)],
        "target": [*whole(0), 5],
    },
    "figures.wirings": {"block": BLOCK},
    "figures.bars": {
        "values": [*mapping("1", math.nan, math.inf, True, good=1.0), dict.fromkeys(NINE, 1.0)],
        "title": text(),
        "xlabel": text(),
    },
    "figures.confusion": {
        "matrix": [*tensor("numbers", 2, 2), torch.zeros(2, 3), torch.zeros(3, 3)],
        "classes": [*CLASSES, ["a"]],
    },
    "figures.connection_costs": {
        "measured": mapping(
            3,
            [],
            ([], public_functions.reuse()),
            ([public_functions.cost()], None),
            good=([public_functions.cost()], public_functions.reuse()),
        ),
        "title": text(),
        "name_above": real(math.inf),
    },
    "figures.costs": {"parts": sequence(3, "a", good=insight.part_costs(model(), 8)[0])},
    "figures.curves": {
        "series": [
            *mapping([], "ab", ["1"], [[1.0]], 3, good=[1.0, 2.0, 3.0]),
            {name: [1, 2, 3] for name in NINE},
        ],
        **TITLES,
        "x": [*optional(numbers()), [1, 2]],
        "log_y": flag(),
        "log_x": flag(),
    },
    "figures.dots_with_spread": {
        "rows": [
            *mapping(3, [], {}, {"b": 1.0}, {"b": []}, {"b": "12"}, good={"b": [1.0, 2.0]}),
            {"a": {name: [1.0] for name in NINE}},
        ],
        "title": text(),
        "xlabel": text(),
        "reference": optional(real(math.inf)),
    },
    "figures.effective_receptive_fields": {
        "fields": mapping(*tensor("floats", 4, 4), good=torch.ones(4, 4)),
        "theoretical": [*mapping(0, "3", 2.5, True, good=3), {"b": 3}],
        "title": text(),
    },
    "figures.feature_maps": {
        "features": tensor("numbers", 2, 4, 4),
        "title": text(),
        "labels": [*optional(CLASSES), ["a"]],
        "columns": whole(),
    },
    "figures.feature_reuse_maps": {
        "rows": mapping(
            *mapping(3, [], good=torch.ones(2, 2)), good={"denseblock1": torch.ones(2, 2)}
        ),
        "title": text(),
    },
    "figures.grad_cam_maps": {
        "images": tensor("numbers", 3, 1, 8, 8),
        "maps": [*tensor("floats", 3, 2, 2), torch.ones(2, 2, 2)],
        "titles": [*CLASSES, ["a"]],
        "title": text(),
    },
    "figures.gradient_norms": {
        "series": mapping(*tensor("floats", 3, 4), good=torch.ones(3, 4)),
        "title": text(),
    },
    "figures.history": {"rows": sequence(3, "a", {}, EPOCH | {"train_loss": "1"}, good=EPOCH)},
    "figures.images": {
        "images": [
            *(None, 3, "ab", [], Foreign(), generator(torch.zeros(1, 4, 4)), torch.zeros(4, 4)),
            *(
                [bad]
                for bad in (None, "a", torch.zeros(2, 4, 4), torch.zeros(4, 4), np.zeros((1, 4, 4)))
            ),
        ],
        "titles": [*CLASSES, ["a"]],
        "title": text(),
        "columns": whole(),
        "wrong": [3, "ab", [], [1, 0], [True], ["yes", "no"], Foreign(), generator(True, False)],
    },
    "figures.png": {"figure": [None, 3, "a", Figure, Foreign()]},
    "figures.receptive_fields": {
        "fields": sequence(3, "a", good=insight.receptive_fields(model())[0]),
        "image_size": whole(),
    },
    "figures.lines_with_spread": {
        "panels": [
            *mapping(
                *(3, [], {}, {"b": []}, {"b": [1.0]}, {"b": [(1.0, [])]}, {"b": [("1", [1.0])]}),
                good={"b": [(1.0, [1.0, 2.0])]},
            ),
            {"a": {name: [(1.0, [1.0])] for name in NINE}},
        ],
        "title": text(),
        "ylabel": text(),
        "order": optional([*sequence(3, good="a"), ["another name"]]),
        "log_x": flag(),
        "log_y": flag(),
    },
    "figures.mean_and_range": {
        "runs": mapping(3, [], ["ab"], [[]], [[1.0], [1.0, 2.0]], good=[[1.0, 2.0]]),
        **TITLES,
    },
    "figures.memory_passes": {
        "ways": mapping(
            *(3, [], "ab", ["abc"], [("a", 1.0)], [("a", -1.0, 1.0)], [(1, 1.0, 1.0)]),
            good=[("a", 1.0, 1.0)],
        ),
        "title": text(),
    },
    "figures.ratios": {
        "rows": mapping([], "ab", ["1"], [[1.0]], 3, good=[1.0, 2.0]),
        "title": text(),
        "xlabel": text(),
    },
    "figures.roofline": {
        "series": mapping(
            *(3, [], {}, {"b": 1.0}, {"b": (1.0,)}, {"b": (0.0, 1.0)}, {"b": ("1", 1.0)}),
            good={"b": (1.0, 2.0)},
        ),
        "bandwidth": real(0.0, -1.0, math.inf),
        "compute": real(0.0, -1.0, math.inf),
        "title": text(),
    },
    "figures.time_and_memory": {
        "figures": [
            *sequence(3, "a", good=public_functions.figures_of_memory()[0]),
            public_functions.figures_of_memory() * 9,
        ]
    },
    "insight.connection_costs": {
        "model": densenet(),
        "block": [*choice(), "transition1"],
        "x": tensor("floats", 3, 1, 8, 8),
        "labels": LABELS,
        "batch_size": whole(),
    },
    "insight.connections": {"model": densenet(), "block": [*choice(), "stem"]},
    "insight.effective_receptive_field": {
        "model": densenet(),
        "x": [*tensor("floats", 3, 1, 8, 8), torch.randn(3, 2, 8, 8)],
        "part": [*choice(), "conv0"],
    },
    "insight.effective_size": {"field": tensor("floats", 4, 4)},
    "insight.feature_reuse": {"model": densenet(), "block": choice(), "scaled": flag()},
    "insight.grad_cam": {
        "model": densenet(),
        "x": [*tensor("floats", 3, 1, 8, 8), torch.randn(3, 2, 8, 8)],
        "target": [
            None,
            "a",
            2.5,
            True,
            -1,
            5,
            [0, 1, 2],
            Foreign(),
            *LABELS[7:],
            torch.tensor(2.0),
        ],
        "part": [*choice(), "conv0"],
    },
    "insight.gradient_norms": {
        "model": module(),
        "x": [
            None,
            "x",
            3,
            [1.0],
            np.zeros((3, 1, 8, 8)),
            Foreign(),
            torch.zeros(3, 1, 8, 8).byte(),
        ],
        "labels": LABELS,
    },
    "insight.part_costs": {"model": densenet(), "image_size": whole(2)},
    "insight.receptive_fields": {"model": densenet()},
    "insight.remove_connection": {
        "model": densenet(),
        "block": choice(),
        "source": [*whole(0), 1, 3],
        "target": [*whole(1), 4],
    },
    "memory.saved_activation_bytes": {
        "model": module(),
        "input": [None, "x", 3, [1.0], Foreign(), np.zeros((3, 1, 8, 8))],
    },
    "optimize_for_inference": {
        "model": densenet(),
        "dtype": [torch.float16, torch.int64, "float32", 32, True, float],
        "cuda_graphs": flag(),
    },
    "set_memory_efficient": {
        "model": [*module(), nn.ReLU()],
        "mode": NETWORK["memory_efficient"],
    },
    "training.Recipe": {
        "epochs": whole(),
        "batch_size": whole(),
        "lr": real(0.0, -1.0, math.inf),
        "schedule": choice(),
        "weight_decay": real(-1.0, math.inf),
        "label_smoothing": real(-0.1, 1.1),
        "augment": [None, 3, "crop", ["spin"], [None], {"crop"}, generator("crop"), Foreign()],
        "clip_norm": optional(real(0.0, -1.0, math.inf)),
        "amp": optional(choice()),
        "channels_last": flag(),
        "compile": flag(),
        "sync_batch_norm": flag(),
        "seed": whole(0, 2**63 - 1),
    },
    "training.Training": {"model": module(), "dataset": DATASET, "recipe": choice()},
    "training.evaluate": {"model": module(), "dataset": DATASET},
    "training.fit": {
        "model": module(),
        "dataset": DATASET,
        "recipe": choice(),
        "output": optional(path()),
        "resume": flag(),
        "allow_changes": flag(),
        "model_config": [3, "a", [], Foreign(), {"a": Foreign()}, {"a": torch.float32}],
        "initial_weights": optional(text()),
        "progress": flag(),
    },
    "training.freeze": {"module": module()},
    "training.predict": {
        "model": module(),
        "dataset": DATASET,
        "images": tensor("uint8", 3, 1, 8, 8)[:-1],
        "batch_size": whole(),
    },
    "training.seeded": {"training": module()},
    "training.with_progress": {"training": module(), "progress": flag()},
    "utils.environment.device": {"name": optional(choice())},
    "utils.environment.machine": {"device": [*choice(), "cuda:77"]},
    "training.evaluation_mode": {"model": module()},
    "weights.adapt": {
        "weights": [None, 3, "a", Foreign(), {}],
        "like": STATE_DICT,
        "head": HEAD,
        "known": [3, "a", [], Foreign()],
    },
    "weights.adapt_state_dict": {"state_dict": STATE_DICT, "like": STATE_DICT, "head": HEAD},
    "weights.categories": {"weights": [None, 3, 2.5, True, "no such file", Foreign(), []]},
    "weights.convert_state_dict": {"content": STATE_DICT},
    "weights.is_cached": {"name": [*choice(), "densenet264"]},
    "weights.read": {
        "weights": [None, 3, 2.5, True, "no such file", Foreign(), []],
        "name": optional(text()),
        "progress": flag(),
        "allow_nan": flag(),
    },
    "weights.results": {"name": choice()},
    "weights.save": {"model": [None, 3, "a", Foreign(), {}, {"a": None}], "path": path()},
    "weights.trained_on": {"weights": [None, 3, 2.5, True, "no such file", Foreign(), []]},
    "weights.transforms": {"weights": [None, 3, 2.5, True, "no such file", Foreign(), []]},
}


def names_value(message, value):
    """Whether `message` says what was given, or at least of what type and shape."""
    shapes = [str(list(value.shape))] if hasattr(value, "shape") else []
    words = (arguments.shown(value), repr(value), str(value), type(value).__name__, *shapes)
    if isinstance(value, (list, tuple)) and value:  # perhaps a tuple, or floats, by now
        return all(names_value(message, element) for element in value)
    return any(word and word in message for word in words)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """What is written in spite of a bad argument is written here."""
    monkeypatch.chdir(tmp_path)
    public_functions.write_picture()


def test_the_table_has_every_public_function_with_every_argument():
    for name, function in PUBLIC.items():
        names = set(public_functions.parameters(function))
        if name not in NAMED_MODELS and names:
            assert name in TABLE and name in VALID, name
            assert names <= TABLE[name].keys(), name
    assert TABLE.keys() <= PUBLIC.keys()


@pytest.mark.parametrize("name", list(VALID))
def test_the_valid_arguments_are_valid(name):
    PUBLIC[name](**VALID[name]())


@pytest.mark.parametrize("name", list(TABLE))
def test_bad_arguments_are_refused_in_words(name):
    function = PUBLIC[name]
    known = {*public_functions.parameters(function), *(NETWORK if name == "densenet" else ())}
    wrong = []
    for argument, values in TABLE[name].items():
        for value in values if argument in known else ():
            try:
                with contextlib.ExitStack() as stack:
                    result = function(**{**VALID[name](), argument: value})
                    if isinstance(result, contextlib.AbstractContextManager):
                        stack.enter_context(result)
                wrong.append(f"{argument}={arguments.shown(value)} was taken")
            except ValueError as error:
                message = str(error)
                named = (
                    rf"\b{argument}\b|^it holds no DenseNet's weights: "  # as of a file, by name
                )
                if not re.search(named, message) or not names_value(message, value):
                    wrong.append(f"{argument}={arguments.shown(value)}: says {message!r}")
            except Exception as error:  # noqa: BLE001  (it is told, whatever it is)
                wrong.append(f"{argument}={arguments.shown(value)}: {error!r}")
    assert not wrong, f"{len(wrong)} of them:\n" + "\n".join(wrong)


def test_a_missing_and_an_unknown_argument_stay_pythons_own_errors():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        insight.receptive_fields()
    with pytest.raises(TypeError, match="unexpected keyword argument 'modle'"):
        insight.receptive_fields(modle=model())


# ---------------------------------------------------------------------------- the checks themselves


def test_a_check_returns_what_the_function_is_to_use():
    for check, given, used in [
        (arguments.positive_int, np.int64(3), 3),
        (arguments.integer(0, 9), 9, 9),
        (arguments.fraction, np.float32(0.5), 0.5),
        (arguments.positive_number, Fraction(1, 4), 0.25),
        (arguments.boolean, np.True_, True),
        (arguments.boolean, torch.tensor(False), False),
        (arguments.sequence_of(arguments.positive_int), np.array([1, 2]), (1, 2)),
        (arguments.sequence_of(arguments.text, empty=True), [], ()),
        (arguments.mapping_of(arguments.positive_int), {"a": np.int32(1)}, {"a": 1}),
        (arguments.optional(arguments.text), None, None),
        (arguments.one_of((1, "a")), "a", "a"),
    ]:
        found = check("name", given)
        assert found == used and type(found) is type(used)
    assert arguments.device("device", "cpu") == torch.device("cpu")
    assert arguments.number_sequence("x", range(3)).tolist() == [0, 1, 2]
    assert arguments.number_sequence("x", torch.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (arguments.integer(), 2.5, "n must be a whole number, got 2.5"),
        (arguments.integer(0, 9), 10, "n must be a whole number from 0 to 9, got 10"),
        (arguments.integer(most=9), 10, "n must be a whole number of at most 9, got 10"),
        (arguments.one_of((1, "a")), True, "n must be one of 1, 'a', got True"),
        (arguments.optional(arguments.text), 3, "n must be text, or None, got 3"),
        (
            arguments.sequence_of(arguments.text, most=2),
            ["a", "b", "c"],
            "n must be a non-empty sequence of at most 2, each element text, got ['a', 'b', 'c']",
        ),
        (
            arguments.mapping_of(arguments.positive_int),
            {},
            (
                "n must be a non-empty dict, from names to values, each a whole number of at least "
                "1, got {}"
            ),
        ),
        (
            arguments.tensor("floats", "N, C"),
            torch.zeros(2, 3, 4),
            (
                "n must be a tensor of floats, not empty, (N, C), "
                "got a tensor of torch.float32, shape [2, 3, 4]"
            ),
        ),
        (
            arguments.device,
            "gpu",
            "n must be a device that PyTorch finds here, such as 'cpu', got 'gpu'",
        ),
    ],
)
def test_a_check_says_what_is_valid_and_what_came(check, value, message):
    with pytest.raises(ValueError) as error:
        check("n", value)
    assert str(error.value) == message


def test_long_values_are_shown_in_a_few_words():
    for value in ("a" * 10_000, list(range(10_000)), {i: i for i in range(1000)}, b"a" * 10_000):
        assert len(arguments.shown(value)) < 200
    assert arguments.shown(torch.zeros(10**6)) == "a tensor of torch.float32, shape [1000000]"
    assert arguments.shown([np.zeros((2, 3))]) == "[a NumPy array of float64, shape [2, 3]]"
    for value in (model(), {"a": model()}, dataset()):
        assert "\n" not in arguments.shown(value) and len(arguments.shown(value)) < 300

    class Silent:
        def __repr__(self):
            raise RuntimeError

    assert "Silent" in arguments.shown(Silent())


def test_relations_see_the_checked_arguments_and_the_defaults():
    seen = []

    def related(a, c):
        seen.append((a, c))
        if a > c:
            raise ValueError(f"a must be at most c, got {a}")

    @arguments.check(related, a=arguments.positive_int, b=arguments.boolean)
    def function(a, b=None, *, c=5):
        return a, b, c

    assert function(np.int64(3)) == (3, None, 5)  # a default is not checked
    assert function(3, True, c=7) == (3, True, 7)
    assert seen == [(3, 5), (3, 7)] and type(seen[0][0]) is int
    with pytest.raises(ValueError, match="a must be at most c, got 6"):
        function(6)
    with pytest.raises(TypeError, match="has no arguments"):
        arguments.check(lambda z: None)(function)


def test_a_recipe_that_is_valid_goes_through():
    assert training.Recipe(epochs=np.int64(3), augment=["crop"]).augment == ("crop",)
