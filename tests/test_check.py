"""The engine of the self-checks, and how answers are found and contained."""

import json
import time
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from densenet_tutorial import check, layers
from densenet_tutorial.check import answers, engine, grading
from densenet_tutorial.check.engine import Question, Wrong

ROOT = Path(__file__).resolve().parents[1]


def question(limit=4.0):
    """Is it twice the number?"""
    made = Question("double", ("double",), [1, 2], lambda g: g.randrange(3, 10**6), limit=limit)

    @made.property("value", "doubles a number")
    def _(number, double):
        if double(number) != 2 * number:
            raise Wrong(str(2 * number), str(double(number)), "Is that all of it?")

    @made.property("type", "returns a whole number")
    def _(number, double):
        if not isinstance(double(number), int):
            raise Wrong("an int", type(double(number)).__name__)

    return made


def test_a_right_answer_is_true_and_says_what_holds():
    report = question()(lambda x: 2 * x)
    assert report
    assert (
        str(report)
        == "double: 2 of 2 right\n  ok     doubles a number\n  ok     returns a whole number"
    )


def test_a_wrong_answer_says_on_which_input_what_and_why():
    report = question()(lambda x: x + 1)
    assert not report
    wrong = report.results[0]
    assert (wrong.input, wrong.expected, wrong.got, wrong.hint) == (
        "2",
        "4",
        "3",
        "Is that all of it?",
    )
    for words in ("input     2", "expected  4", "got       3", "hint      Is that all of it?"):
        assert words in str(report)
    assert report.results[1].passed


def test_the_same_seed_draws_the_same_inputs():
    seen = []
    for seed in (5, 5, 6):
        seen.append([])
        question()(lambda x: seen[-1].append(x) or 2 * x, seed=seed)
    assert seen[0] == seen[1] != seen[2]
    assert "seed 5" in str(question()(lambda x: 2 * x, seed=5))


def test_an_error_is_shown_with_the_line_of_the_answer_and_no_traceback():
    def double(x):
        return x.twice

    report = question()(double)
    assert "AttributeError" in str(report) and "return x.twice" in str(report)
    assert "Traceback" not in str(report) and "engine.py" not in str(report)


def test_an_answer_that_is_not_there_yet_is_called_that():
    class DenseLayer(nn.Module):
        def __init__(self, num_input_features, growth_rate, bn_size, drop_rate):
            super().__init__()

        def forward(self, inputs): ...

    text = "dense_layer: not answered yet, or it ends without return."
    assert str(check.dense_layer(DenseLayer)) == text


def test_leaving_the_program_is_contained():
    def double(x):
        raise SystemExit

    assert "ended the program" in str(question()(double))


def test_a_loop_is_stopped_and_tried_once():
    calls = []

    def double(x):
        calls.append(x)
        while True:
            pass

    report = question(limit=0.2)(double)
    assert "still running" in report.results[0].got
    assert not report.results[1].passed and len(calls) == 1


def test_what_is_printed_is_not_shown_but_counted(capsys):
    def double(x):
        print("x" * 2**20)
        raise ValueError

    report = question()(double)
    assert "Your code printed 1048577 characters." in " ".join(str(report).split())
    assert capsys.readouterr().out == ""


def test_random_numbers_and_settings_of_the_notebook_stay():
    def double(x):
        torch.set_default_dtype(torch.float64)
        return 2 * x

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    question()(double)
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.rand(1), expected)


def test_a_call_without_an_answer_is_a_report_as_well():
    text = str(question()())
    assert "check.double(double)" in text and "0 answers" in text


def test_errors_that_cannot_be_shown_and_other_exits_are_contained():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    class Other(BaseException):
        pass

    for raised in (Mute, Other):

        def double(x, raised=raised):
            raise raised

        assert raised.__name__ in str(question()(double))


def test_a_long_value_is_cut():
    assert len(str(question()(lambda x: "9" * 10**6))) < 2000


@pytest.mark.parametrize("seed", [None, *range(8)])
def test_the_package_itself_passes(seed):
    assert check.dense_layer(layers.DenseLayer, seed=seed)
    assert check.dense_block(layers.DenseBlock, seed=seed)
    assert check.transition(layers.Transition, seed=seed)


# ------------------------------------------------------------------------------ finding answers


def found(*cells, given=None):
    made = question()
    made.given = given or {}
    return answers.namespace(cells, made)[0]


def test_what_an_answer_needs_is_run_and_nothing_else():
    names = found(
        "%pip install something\nimport math\nimport no_such_module\nFACTOR = 1 + 1",
        "def double(x):\n    result = times(x)\n    return result",
        "while True:\n    pass",
        "exit()",
        "result = [0] * 10**12\nprint(result)",
        "!rm -rf /nowhere",
        "from functools import partial\nif True:\n    times = partial(lambda a, b: a * b, FACTOR)",
        "%%time\ndouble(3)",
        "%%bash\nif true; then exit; fi",
        "double(3)?",
        "files = !ls",
    )
    assert names["double"](4) == 8
    assert not {"result", "math"} & names.keys()


@pytest.mark.parametrize(
    "cell",
    [
        "double = lambda x: 2 * x",
        "import operator\ndouble = lambda x: operator.mul(2, x)",
        "from operator import *\ndef double(x):\n    return mul(2, x)",
        "class Twice:\n    pass\nTwice.by = lambda self, x: 2 * x\ndef double(x):\n    return Twice().by(x)",
        "for factor in (1, 2):\n    pass\ndef double(x):\n    return factor * x",
        "try:\n    import no_such_module as m\nexcept ImportError:\n    m = 2\ndef double(x):\n    return m * x",
        "def setup():\n    global FACTOR\n    FACTOR = 2\nFACTOR = 2\ndef double(x):\n    return FACTOR * x",
        "def double(x: 'no_such_type') -> int:\n    return 2 * x",
        "from __future__ import annotations\ndef double(x: no_such | type) -> int:\n    return 2 * x",
        "from dataclasses import dataclass\n@dataclass\nclass Twice:\n    by: 'int'\ndouble = lambda x: Twice(2 * x).by",
        "%%time\ndef double(x):\n    return 2 * x",
        "\ufeffdef double(x):  # is it that?\n    '''Is it?'''\n    return 2 * x  # is it?",
        "!pip install \\\n    nothing\ndef double(x):\n    text = '100 %s'\\\n    % x\n    return 2 * x",
    ],
)
def test_answers_of_every_style_are_found(cell):
    assert found(cell)["double"](4) == 8


def test_the_last_definition_counts():
    assert found("def double(x): return 0", "def double(x): return 2 * x")["double"](1) == 2


def test_answers_to_earlier_questions_come_from_the_package():
    cell = "def half(x):\n    return 1 / 0\ndef double(x):\n    return 4 * half(x)"
    assert found(cell, given={"half": lambda x: x / 2})["double"](3) == 6


def test_a_cell_that_is_no_python_costs_what_stands_in_it():
    assert found("def broken(:", "def double(x): return 2 * x")["double"](2) == 4
    with pytest.raises(ValueError, match="double not defined .cell 1, line 1: SyntaxError"):
        found("def double(x: return 2 * x")


@pytest.mark.parametrize(
    "line",
    [
        "from densenet_tutorial import DenseLayer as double",
        "from densenet_tutorial.layers import DenseLayer as double",
        "import densenet_tutorial.layers as double",
        "from torchvision.models.densenet import _DenseLayer as double",
        "from torchvision.models import DenseNet as double",
        "def double(x):\n    import densenet_tutorial.memory",
        "from densenet_tutorial import check\ndouble = check.questions.building_layers.layers.DenseLayer",
        "from densenet_tutorial import check\nclass double(check.questions.building_layers.layers.DenseLayer): pass",
        "from densenet_tutorial import memory\ndef double(x):\n    return memory.saved_activation_bytes(x)",
    ],
)
def test_the_answer_is_not_to_be_imported(line):
    with pytest.raises(ValueError, match="the answer uses (densenet_tutorial|torchvision)"):
        found(line)


def test_what_a_question_gives_may_be_imported_under_any_name():
    cell = "from densenet_tutorial import DenseLayer as L, check\ndef double(x):\n    return L and 2 * x"
    assert found(cell, given={"DenseLayer": layers.DenseLayer})["double"](2) == 4


def test_the_self_check_says_what_the_grader_will_refuse():
    report = check.dense_layer(layers.DenseLayer)
    assert report and report.borrowed
    assert "densenet_tutorial.layers.DenseLayer: write that yourself" in str(report)

    def double(x):
        return len(check.ASSIGNMENTS) and layers and 2 * x

    def inside(x):
        return [layers for _ in (1,)] and 2 * x

    def attribute(x):
        return 2 * x if not hasattr(x, "layers") else x.layers

    assert question()(double).borrowed == ("densenet_tutorial.layers",)
    assert question()(inside).borrowed == ("densenet_tutorial.layers",)
    assert question()(attribute).borrowed == ()
    made = question()
    made.given = {"layers": layers}
    assert made(double).borrowed == ()


# ------------------------------------------------------------------------------ containing them

CHANNELS = """
from densenet_tutorial import check

def layer_inputs(num_input_features, growth_rate, num_layers):
    {line}
    return [num_input_features + i * growth_rate for i in range(num_layers)]

def block_output(num_input_features, growth_rate, num_layers):
    return num_input_features + num_layers * growth_rate

def transition_output(channels, compression):
    return int(channels * compression)
"""


def graded(line):
    return grading.grade("layers", "channels", [CHANNELS.format(line=line)], seed=1)


def test_right_answers_pass_in_a_process_of_their_own():
    reports = graded("pass")
    assert reports["public"] and reports["hidden"]
    assert reports["hidden"].seed == 1


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("import os; os._exit(0)", "ended the process"),
        ("import os; os.kill(os.getpid(), 9)", "ended the process"),
        ("import os; os.kill(os.getppid(), 9)", "took the grading process down"),
        ("import torch; torch.equal = max", "it changes torch.equal"),
        ("import builtins; builtins.list = tuple", "it changes builtins.list"),
        ("import densenet_tutorial.check.engine as e; e.Wrong = max", "uses densenet_tutorial"),
        (
            "import sys; sys.modules['densenet_tutorial.check.questions.building_layers']._number.__code__ = (lambda *a: 0).__code__",
            "_number",
        ),
        ("import os; os.kill(os.getppid(), 19)", "took the grading process down"),
        ("check.channels.inputs.clear()", "it changes check.channels.inputs"),
        ("check.engine.close.__kwdefaults__ = {'tolerance': 9}", "it changes"),
        (
            "object.__setattr__(check.channels.properties[0], 'function', max)",
            "it changes check.channels, layer_inputs",
        ),
        ("bytearray(10**10)", "MemoryError"),
        ("open('x', 'wb').write(bytes(10**8)); print(1 / 0)", "File too large"),
    ],
)
def test_a_hostile_answer_fails_and_the_next_one_is_graded(line, cause, monkeypatch):
    monkeypatch.setattr(grading, "SLACK", 1 - grading._seconds(check.channels) / 2)
    reports = graded(line)
    assert not reports["public"] and not reports["hidden"]
    assert cause in " ".join(str(reports["public"]).split())
    assert graded("pass")["hidden"]


def test_an_answer_that_was_late_without_computing_is_tried_again(monkeypatch):
    asked, real = [], grading._server()

    class Stalled:
        def ask(self, request):
            asked.append(request)
            late = {"results": {}, "end": "it was stopped", "hint": "", "late": True}
            return real.ask(request) if len(asked) > 1 else late | {"cpu": cpu, "seconds": 10.0}

    monkeypatch.setattr(grading, "_server", Stalled)
    cpu = 0.1
    assert graded("pass")["hidden"] and len(asked) == 2
    asked.clear()
    cpu = 8.0
    assert not graded("pass")["hidden"] and len(asked) == 1


def test_what_an_answer_leaves_running_is_ended(tmp_path):
    note = tmp_path / "note"
    loop = f"import pathlib, time\nwhile True:\n    pathlib.Path('{note}').touch()\n    time.sleep(0.01)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {loop!r}], start_new_session=True)"
    assert graded(f"{start}; import time; time.sleep(0.5)")["hidden"]
    assert note.exists()
    note.unlink()
    time.sleep(0.3)
    assert not note.exists()


def test_results_that_are_not_the_checkers_do_not_count():
    row = {"part": "hidden", "result": vars(engine.Result("layer_inputs", "", True)), "token": "0"}
    line = f"import os, json; [os.write(fd, b'{json.dumps(row)}\\n') for fd in range(3, 40) if os.path.exists(f'/proc/self/fd/{{fd}}')]"
    assert not graded(f"{line}; os._exit(0)")["hidden"]


def test_equal_to_everything_is_not_right():
    class Liar(int):
        __eq__ = lambda self, other: True
        __ne__ = lambda self, other: False
        __hash__ = int.__hash__

    assert engine.whole_number(Liar(3), "f") != 4

    class Lying(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return (
                True
                if func is torch.allclose
                else super().__torch_function__(func, types, args, kwargs)
            )

    assert not engine.close(engine.tensor(torch.ones(2).as_subclass(Lying), "f"), torch.zeros(2))


def test_printing_costs_nothing():
    reports = graded("print('x' * 2**20)")
    assert reports["public"] and reports["hidden"]


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "densenet_tutorial").rglob("__init__.py")
    }
    assert set(listed["tool"]["setuptools"]["packages"]) == packages


def test_the_report_of_a_missing_tensor_names_the_method():
    with pytest.raises(Wrong) as caught:
        engine.tensor(None, "DenseLayer.forward")
    assert "DenseLayer.forward" in caught.value.expected
