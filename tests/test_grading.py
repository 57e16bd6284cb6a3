"""The grader gives an answer what the page gave it: the same cells, in a kernel and graded."""

import json
import subprocess
import sys
import time

import pytest

from densenet_tutorial import check
from densenet_tutorial.check import grading

# What a kernel does with notebooks; for each: the question, whether it is right, and what is
# borrowed, of each report.
PAGE = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from densenet_tutorial.check import engine

shell = InteractiveShell.instance()
reports, real = [], engine.Question.__call__
def called(question, *answers, **options):
    reports.append(real(question, *answers, **options))
    return reports[-1]
engine.Question.__call__ = called
said, sys.stdout, found = sys.stdout, sys.stderr, []
for cells in json.load(sys.stdin):
    shell.reset(new_session=False)
    reports.clear()
    for cell in cells:
        shell.run_cell(cell)
    found.append([(r.question, bool(r), list(r.borrowed)) for r in reports])
json.dump(found, said)
"""

BASE = """
import torch
from torch import nn
from torch.nn import functional as F
from densenet_tutorial import check
"""
INIT = """class DenseLayer(nn.Module):
    def __init__(self, num_input_features, growth_rate, bn_size, drop_rate):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.conv1 = nn.Conv2d(num_input_features, bn_size * growth_rate, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth_rate)
        self.conv2 = nn.Conv2d(bn_size * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate
"""
FORWARD = """def forward(self, inputs):
    x = inputs if isinstance(inputs, torch.Tensor) else torch.cat(inputs, 1)
    x = self.conv1(F.relu(self.norm1(x)))
    x = self.conv2(F.relu(self.norm2(x)))
    return F.dropout(x, self.drop_rate, self.training)
"""
METHOD = "".join(f"    {line}\n" for line in FORWARD.splitlines())
CHECK = "check.dense_layer(DenseLayer)"
WHOLE = INIT + METHOD
ADD_TO_CLASS = """def add_to_class(Class):
    def wrapper(obj):
        setattr(Class, obj.__name__, obj)
    return wrapper
"""

#: Cells after BASE, all of them right answers to question 2 of `layers`.
RIGHT = {
    "a class": [WHOLE, CHECK],
    "a method by setattr": [INIT, FORWARD, "setattr(DenseLayer, 'forward', forward)", CHECK],
    "a method by assignment": [INIT, FORWARD, "DenseLayer.forward = forward", CHECK],
    "a method by d2l's decorator": [
        ADD_TO_CLASS,
        INIT,
        f"@add_to_class(DenseLayer)\n{FORWARD}",
        CHECK,
    ],
    "a method by a function": [
        INIT,
        FORWARD,
        "def add():\n    DenseLayer.forward = forward\nadd()",
        CHECK,
    ],
    "a class by type()": [
        WHOLE.replace("DenseLayer", "Mine")
        .replace("super()", "nn.Module")
        .replace("__init__()", "__init__(self)"),
        (
            "DenseLayer = type('DenseLayer', (nn.Module,), {name: vars(Mine)[name] for name in "
            "('__init__', 'forward')})"
        ),
        CHECK,
    ],
    "everything of the package imported": ["from densenet_tutorial import *", WHOLE, CHECK],
    "torchvision's imported": ["from torchvision.models.densenet import *", WHOLE, CHECK],
    "a scratch name in a later cell": [WHOLE, CHECK, "F = 3", "torch = nn = None"],
    "another class of that name in a later cell": [WHOLE, CHECK, "class DenseLayer: pass"],
    "broken in a later cell": [WHOLE, CHECK, "DenseLayer.forward = None"],
    "wrong at first": [INIT + FORWARD, CHECK, WHOLE, CHECK],
    "a class of another name": [WHOLE.replace("DenseLayer", "Mine"), "check.dense_layer(Mine)"],
    "a check in a function": [f"def test():\n    return {CHECK}", WHOLE, "print(test())"],
    "a check with a seed": [WHOLE, "check.dense_layer(DenseLayer, seed=7)"],
    "a check by another name": [
        "from densenet_tutorial.check import dense_layer as d",
        WHOLE,
        "d(DenseLayer)",
    ],
    "a helper that a magic defines": [
        "%time relu = F.relu",
        WHOLE.replace("F.relu", "relu"),
        CHECK,
    ],
    "a cell with a magic": [f"%%time\n{WHOLE}", f"%%capture out\n{CHECK}"],
    "a module that a cell writes": [
        "%%writefile mine_of_a_test.py\n"
        + BASE.replace("from densenet_tutorial import check", "")
        + WHOLE,
        "from mine_of_a_test import DenseLayer",
        CHECK,
    ],
    "what only the main module runs": [
        "if __name__ == '__main__':\n    relu = F.relu",
        WHOLE.replace("F.relu", "relu"),
        CHECK,
    ],
    "a finished piece that is not called": [
        "from densenet_tutorial import DenseLayer as Finished",
        WHOLE + "    def check(self):\n        return Finished\n",
        "Finished(8, 4, 4, 0.0)(torch.ones(1, 8, 4, 4))",
        CHECK,
    ],
    "an attribute with a room's name": [WHOLE.replace("self.drop_rate", "self.memory"), CHECK],
    "a display": ["display(1)\nrelu = F.relu", WHOLE.replace("F.relu", "relu"), CHECK],
}

_ARGUMENTS = "num_input_features, growth_rate, bn_size, drop_rate"
_CALL = "growth_rate, block_config, num_init_features, bn_size, num_classes"


def network(body, before=""):
    """A DenseNet for `network`, question 1, that is built by `body`."""
    return [before, f"def DenseNet({_CALL}):\n    {body}", "check.dense_net(DenseNet)"]


_TO = "growth_rate, block_config, num_init_features, bn_size, 0, num_classes"
#: Cells after BASE, and what of theirs is refused.
REFUSED = {
    "the package's layer": (
        ["from densenet_tutorial import DenseLayer", CHECK],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "a class that inherits": (
        ["import densenet_tutorial as d\nclass DenseLayer(d.DenseLayer):\n    pass", CHECK],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "a class of other arguments": (
        [
            "import densenet_tutorial as d",
            (
                f"class DenseLayer(d.DenseLayer):\n    def __init__(self, {_ARGUMENTS}):\n        "
                f"super().__init__({_ARGUMENTS})"
            ),
            CHECK,
        ],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "a method of the package's": (
        [
            "from densenet_tutorial import layers",
            INIT,
            "DenseLayer.forward = layers.DenseLayer.forward",
            CHECK,
        ],
        "densenet_tutorial.layers.DenseLayer.forward",
    ),
    "through the checks": (
        ["DenseLayer = check.questions.building_layers.layers.DenseLayer", CHECK],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "through sys.modules": (
        [
            "import sys, densenet_tutorial",
            (
                f"def DenseLayer({_ARGUMENTS}):\n    return "
                f"sys.modules['densenet_tutorial'].DenseLayer({_ARGUMENTS})"
            ),
            CHECK,
        ],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "a partial": (
        [
            "import densenet_tutorial as d, functools",
            "DenseLayer = functools.partial(d.DenseLayer)",
            CHECK,
        ],
        "densenet_tutorial.layers.DenseLayer",
    ),
    "a model in a variable": (
        network(
            "return made(" + _TO + ")", "import torchvision\nmade = torchvision.models.DenseNet"
        ),
        "torchvision.models.densenet.DenseNet",
    ),
    "torchvision.models as m": (
        network(f"return m.DenseNet({_TO})", "import torchvision.models as m"),
        "torchvision.models.densenet.DenseNet",
    ),
    "torchvision whole": (
        network(f"return torchvision.models.densenet.DenseNet({_TO})", "import torchvision"),
        "torchvision.models.densenet.DenseNet",
    ),
    "an import in the answer": (
        network(f"from torchvision.models import DenseNet as D; return D({_TO})"),
        "torchvision.models.densenet.DenseNet",
    ),
    "an import by name": (
        network(
            "import importlib; return getattr(importlib.import_module('torchvision.models'), "
            f"'Dense' + 'Net')({_TO})"
        ),
        "torchvision.models.densenet.DenseNet",
    ),
    "a helper": (
        network(
            "return helper()",
            "import torchvision.models as m\ndef helper():\n    return m.get_model('densenet121')",
        ),
        "torchvision.models._api.get_model",
    ),
    "a model by a function": (
        network("return m.densenet121()", "import torchvision.models as m"),
        "torchvision.models.densenet.densenet121",
    ),
    "the package's model": (
        network(
            "return densenet_tutorial.densenet121(num_classes=num_classes)",
            "import densenet_tutorial",
        ),
        "densenet_tutorial.network.densenet",
    ),
    "PyTorch's hub": (
        network("return torch.hub.load('pytorch/vision', 'densenet121', source='nowhere')"),
        "torch.hub.load",
    ),
}


def assignment_of(cells):
    return (
        ("network", "dense_net")
        if any("dense_net(" in c for c in cells)
        else ("layers", "dense_layer")
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """By name: what a kernel's checks say, in order."""
    cases = RIGHT | {name: cells for name, (cells, _) in REFUSED.items()}
    done = subprocess.run(
        [sys.executable, "-c", PAGE],
        input=json.dumps([[BASE, *cells] for cells in cases.values()]),
        cwd=tmp_path_factory.mktemp("page"),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_on_the_page_is_right_in_grading(name, page):
    assert page[name][-1][1:] == [True, []]
    cells = [BASE, *RIGHT[name]]
    reports = grading.grade(*assignment_of(cells), cells, seed=1)
    assert reports["public"] and reports["hidden"], reports["public"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_grading_is_refused_on_the_page(name, page):
    cells, used = REFUSED[name]
    _, right, borrowed = page[name][-1]
    assert not right and any(one.startswith(used) for one in borrowed), borrowed
    reports = grading.grade(*assignment_of(cells), [BASE, *cells], seed=1)
    for report in reports.values():
        assert not report
        assert list(report.borrowed) == borrowed
        assert f"REFUSED  it uses {borrowed[0]}" in str(report)


# ------------------------------------------------------------------------------ one bad cell

CHANNELS = """
def layer_inputs(num_input_features, growth_rate, num_layers):
    {line}
    return [num_input_features + i * growth_rate for i in range(num_layers)]

def block_output(num_input_features, growth_rate, num_layers):
    return num_input_features + num_layers * growth_rate

def transition_output(channels, compression):
    return int(channels * compression)
"""
RIGHT_CHANNELS = CHANNELS.format(line="pass")
CHECK_CHANNELS = "check.channels(layer_inputs, block_output, transition_output)"


def graded(*cells):
    return grading.grade("layers", "channels", [BASE, *cells], seed=1)


def graded_with(line):
    return graded(CHANNELS.format(line=line), CHECK_CHANNELS)


def test_the_reports_are_those_of_the_checks():
    reports = graded(RIGHT_CHANNELS, CHECK_CHANNELS)
    assert reports["public"] and reports["hidden"]
    assert (reports["public"].seed, reports["hidden"].seed) == (None, 1)


@pytest.mark.parametrize(
    "cells",
    [
        [RIGHT_CHANNELS],
        [CHECK_CHANNELS, RIGHT_CHANNELS],
        [RIGHT_CHANNELS.replace("range(", "count("), CHECK_CHANNELS, "count = range"],
        ["def broken(:", RIGHT_CHANNELS],
        ["import no_such_module\n" + RIGHT_CHANNELS],
        ["exit()", "raise SystemExit", "1 / 0", "input()", RIGHT_CHANNELS],
        ["import os; os._exit(0)", RIGHT_CHANNELS, "import os; os._exit(0)"],
        ["import os; os.kill(os.getpid(), 9)", RIGHT_CHANNELS],
        ["print('x' * 2**20)", "[0] * 10**12", RIGHT_CHANNELS, "print('x' * 2**20)"],
        [
            "%pip install something",
            "!rm -rf /nowhere",
            "files = !ls",
            "%%bash\nexit",
            "len?",
            RIGHT_CHANNELS,
        ],
        ["\ufeff# coding\n" + RIGHT_CHANNELS],
        [
            "from __future__ import annotations\n"
            + RIGHT_CHANNELS.replace("num_layers):", "num_layers: no | such):")
        ],
        [RIGHT_CHANNELS, "check.channels()", CHECK_CHANNELS],
    ],
)
def test_a_bad_cell_costs_nothing_but_itself(cells):
    reports = graded(*cells)
    assert reports["public"] and reports["hidden"], reports["public"]


def test_a_loop_in_a_cell_is_stopped_and_not_run_for_the_next_question():
    left_out = set()
    for name, cells in (("channels", [RIGHT_CHANNELS]), ("dense_layer", [WHOLE])):
        cells = [BASE, "while True: pass", *cells]
        reports = grading.grade("layers", name, cells, 1, left_out)
        assert reports["public"] and reports["hidden"], reports["public"]
        assert len(left_out) == 1


def test_the_last_definition_counts_where_no_check_is_called():
    wrong = RIGHT_CHANNELS.replace("i * growth", "growth")
    assert not graded(RIGHT_CHANNELS, wrong)["public"]
    assert graded(wrong, RIGHT_CHANNELS)["public"]


def test_what_is_missing_is_named_with_what_went_wrong():
    reports = graded(RIGHT_CHANNELS.replace("layers):", "layers:"))
    assert "layer_inputs, block_output, transition_output not defined" in _said(reports)
    assert "cell 2, line 2: SyntaxError" in _said(reports)
    reports = graded("import no_such_module as m", RIGHT_CHANNELS.replace("int(", "m.floor("))
    assert "ModuleNotFoundError: No module named 'no_such_module'" in _said(reports)


def _said(reports):
    return " ".join(str(reports["public"]).split())


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("import os; os._exit(0)", "it ended the process"),
        ("import os; os.kill(os.getpid(), 9)", "it ended the process"),
        ("import os; os.kill(os.getppid(), 9)", "took the grading process down"),
        ("bytearray(10**10)", "MemoryError"),
        ("open('x', 'wb').write(bytes(10**8)); print(1 / 0)", "File too large"),
        ("while True: pass", "still running"),
    ],
)
def test_a_hostile_answer_loses_its_question_and_the_next_one_is_graded(line, cause):
    reports = graded_with(line)
    assert not reports["public"] and not reports["hidden"]
    assert cause in _said(reports)
    assert graded_with("pass")["hidden"]


def test_an_answer_that_catches_everything_is_killed():
    loop = (
        "\n    while True:\n        try:\n            while True: pass\n        except "
        "BaseException: pass"
    )
    assert not graded_with(loop)["public"]
    assert graded_with("pass")["hidden"]


def test_what_an_answer_leaves_running_is_ended(tmp_path):
    note = tmp_path / "note"
    loop = (
        f"import pathlib, time\nwhile True:\n    pathlib.Path('{note}').touch()\n    "
        "time.sleep(0.01)"
    )
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {loop!r}])"
    wait = f"import pathlib, time\n    while not pathlib.Path('{note}').exists(): time.sleep(0.1)"
    assert graded_with(f"{start}; {wait}")["hidden"]
    note.unlink(missing_ok=True)
    time.sleep(1)
    assert not note.exists()


def test_printing_costs_nothing():
    assert graded_with("print('x' * 2**20)")["hidden"]


def test_a_mistake_costs_its_points_once_on_the_page_and_in_grading():
    """The block is built of the package's layers, whatever the student's do."""
    wrong = WHOLE.replace("torch.cat(inputs, 1)", "inputs[0]")
    block = """class DenseBlock(nn.Module):
    def __init__(self, num_layers, num_input_features, bn_size, growth_rate, drop_rate):
        super().__init__()
        for i in range(num_layers):
            channels = num_input_features + i * growth_rate
            layer = DenseLayer(channels, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)
    def forward(self, x):
        features = [x]
        for layer in self.children():
            features = features + [layer(features)]
        return torch.cat(features, 1)"""
    cells = [BASE, wrong, block, CHECK, "check.dense_block(DenseBlock)"]
    assert not grading.grade("layers", "dense_layer", cells, 1)["public"]
    assert grading.grade("layers", "dense_block", cells, 1)["hidden"]
    names = {}
    exec("\n".join(cells[:3]), names)  # noqa: S102
    theirs = names["DenseLayer"]
    assert check.dense_block(names["DenseBlock"])
    assert names["DenseLayer"] is theirs and "block_output" not in names
