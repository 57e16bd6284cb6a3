"""The engine of the self-checks: reports, limits, and what is refused."""

import copy
import functools
import importlib
import signal
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from densenet_tutorial import check, layers, network
from densenet_tutorial.check import engine
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
    for asked, finished in (
        (check.dense_layer, layers.DenseLayer),
        (check.dense_block, layers.DenseBlock),
        (check.transition, layers.Transition),
    ):
        assert all(result.passed for result in asked(finished, seed=seed).results)


def test_the_self_check_says_what_the_grader_will_refuse():
    report = check.dense_layer(layers.DenseLayer)
    assert not report and all(result.passed for result in report.results)
    assert report.borrowed == ("densenet_tutorial.layers.DenseLayer",)
    text = str(report)
    assert "dense_layer: 5 of 5 right, and refused" in text
    assert "REFUSED  it uses densenet_tutorial.layers.DenseLayer" in text


def borrowing(**given):
    """The question above, with `given`."""
    made = question()
    made.given = given
    return made


def test_what_is_used_is_refused_and_what_is_there_is_not():
    def there(x):
        return len(check.ASSIGNMENTS) and layers and 2 * x

    def used(x):
        return [layers.DenseLayer(1, 1, 1, 0.0) for _ in (1,)] and 2 * x

    def wrapped(x):
        return functools.partial(network.densenet, "densenet_bc", block_config=(1,))() and 2 * x

    assert borrowing()(there)
    assert borrowing()(used).borrowed == ("densenet_tutorial.layers.DenseLayer",)
    assert borrowing()(wrapped).borrowed == ("densenet_tutorial.network.densenet",)
    assert borrowing(DenseLayer=layers.DenseLayer)(used)
    assert borrowing(other=network.densenet)(wrapped)


def test_methods_of_what_is_handed_in_may_be_called():
    made = Question("run", ("run",), [layers.DenseLayer(2, 2, 1, 0.0).eval()], lambda g: 0)

    @made.property("runs", "runs a layer")
    def _(layer, run):
        x = torch.ones(1, 2, 3, 3)
        if not engine.close(run(layer, x), layer(x)):
            raise Wrong("the layer's output", "another one")

    assert made(lambda layer, x: layer.conv2(layer.relu2(layer.norm2(layer.bn_function([x])))))
    assert made(lambda layer, x: copy.deepcopy(layer)(x))
    assert made(lambda layer, x: layers.DenseLayer.forward(layer, x))


def test_a_densenet_of_another_library_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "some_densenet.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "my_densenet.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(tmp_path)
    some, mine = importlib.import_module("some_densenet"), importlib.import_module("my_densenet")
    assert question()(lambda x: some.twice(x)).borrowed == ("some_densenet.twice",)
    assert question()(some.twice).borrowed == ("some_densenet.twice",)
    assert question()(lambda x: mine.twice(x))


def test_an_import_in_an_answer_is_no_use():
    def double(x):
        sys.modules.pop("densenet_tutorial.insight", None)
        import densenet_tutorial.insight

        return 2 * x if densenet_tutorial.insight else 0

    assert question()(double)


def test_what_is_given_stands_in_for_the_students_and_goes_again():
    names = {"half": lambda x: 0}
    exec("def double(x): return 4 * half(x) + more(x)", names)  # noqa: S102
    made = borrowing(half=lambda x: x // 2 if x % 2 == 0 else x / 2, more=lambda x: 0)
    before = dict(names)
    assert made(names["double"]).results[0].passed
    assert names == before


# ------------------------------------------------------------------------------ time and threads


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_endless_loop_is_stopped_with_any_number_of_threads(threads, restored_threads):
    torch.set_num_threads(threads)
    seen = []

    def double(x):
        seen.append(torch.get_num_threads())
        torch.set_num_threads(3)
        while True:
            torch.ones(300, 300) @ torch.ones(300, 300)

    report = question(limit=0.5)(double)
    assert report.results[0].late and "still running" in str(report)
    assert seen == [1]
    assert torch.get_num_threads() == threads


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_alarms_of_the_notebook_still_ring():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert question()(lambda x: time.sleep(0.2) or 2 * x)
        assert not rung
        while not rung:
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------ odd answers


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
