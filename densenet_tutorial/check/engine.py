"""The self-checks: a question has properties, which are tested on inputs; a report has the results.

Answers are code that may raise, loop, exit or print; the report has a line for each of these. Only
:mod:`densenet_tutorial.check.grading` handles what cannot be caught inside a process, such as
``os._exit``. It calls questions as a notebook does, so both give the same report.
"""

import contextlib
import copy
import io
import linecache
import numbers
import random
import signal
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densenet_tutorial.check import borrowing

_PACKAGE = str(Path(__file__).resolve().parents[1])
_TORCH = str(Path(torch.__file__).resolve().parent)
_LONGEST = 500  # characters of what was expected, or came instead
_SHOWN = 10_000  # characters that an answer may print without being told


class Wrong(Exception):
    """A property does not hold: what was expected, what was found, and a hint."""

    def __init__(self, expected: str, got: str, hint: str = "") -> None:
        super().__init__(expected, got, hint)
        self.expected, self.got, self.hint = _cut(expected), _cut(got), hint


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


class TimeIsUp(BaseException):
    """Raised at a time limit; no Exception, so that an answer's `except Exception` ignores it."""


@dataclass(frozen=True)
class Result:
    """The result for one property.

    `input`, `expected`, `got` and `hint` are empty if it holds. `borrowed` lists the finished
    implementations that the answer has used; `late` says that it was stopped.
    """

    name: str
    text: str
    passed: bool
    input: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""
    borrowed: tuple[str, ...] = ()
    late: bool = False


@dataclass(frozen=True)
class Report:
    """The results for all properties, shown as text.

    A report is true if the answer gets every point. An answer that uses finished implementations
    gets none.
    """

    question: str
    results: tuple[Result, ...]
    seed: int | None = None

    @property
    def borrowed(self) -> tuple[str, ...]:
        """The finished implementations that the answer has used."""
        return tuple(sorted({name for result in self.results for name in result.borrowed}))

    def __bool__(self) -> bool:
        return all(result.passed for result in self.results) and not self.borrowed

    def __repr__(self) -> str:
        hints = [result.hint for result in self.results]
        if hints and all(hint.startswith(NOT_YET) for hint in hints):
            return f"{self.question}: {hints[0][0].lower()}{hints[0][1:]}"
        right = sum(result.passed for result in self.results)
        with_seed = "" if self.seed is None else f" (seed {self.seed})"
        refused = ", and refused" if self.borrowed else ""
        lines = [f"{self.question}: {right} of {len(self.results)} right{refused}{with_seed}"]
        said = set()
        for result in self.results:
            if result.passed:
                lines.append(f"  ok     {result.text}")
                continue
            lines.append(f"  WRONG  {result.text}")
            cause = (result.expected, result.got, result.hint)
            if cause in said:
                lines.append("         for the same reason as above")
                continue
            said.add(cause)
            for label in ("input", "expected", "got", "hint"):
                if text := getattr(result, label):
                    lines += _block(label, text)
        if self.borrowed:
            lines.append(f"  REFUSED  it uses {', '.join(self.borrowed)}")
            lines += _block("hint", "Write that yourself: finished pieces get no points.")
        return "\n".join(lines)

    __str__ = __repr__


def _block(label: str, text: str) -> list[str]:
    first, rest = f"         {label:<10}", " " * 19
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, 80, initial_indent=rest, subsequent_indent=rest) or [""]
    return [first + lines[0].removeprefix(rest), *lines[1:]]


@dataclass(frozen=True)
class Property:
    """A property of every right answer: `function` takes an input and answers, or raises Wrong."""

    name: str
    text: str
    function: Callable[..., None]
    hint: str


@dataclass
class Question:
    """A question of an assignment; calling it checks answers.

    Attributes:
        name: also the name of its self-check.
        targets: the names that a student defines, in the order in which they are passed.
        inputs: inputs of the self-check. Their `str` is code that a student could type.
        draw: makes an input from a random generator; the hidden tests use `draws` of them.
        given: solutions of earlier questions, by name, that the answer may use. They replace the
            student's while the answer is checked, so that a mistake costs its points once.
        limit: seconds that a property may take on all its inputs together, many times as long as a
            right answer needs.
        slow: the hint after the time limit.
    """

    name: str
    targets: tuple[str, ...]
    inputs: Sequence[Any]
    draw: Callable[[random.Random], Any]
    given: dict[str, Any] = field(default_factory=dict)
    draws: int = 4
    limit: float = 10
    slow: str = "Is there a loop that never ends?"
    properties: list[Property] = field(default_factory=list)

    def property(
        self, name: str, text: str, hint: str = ""
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Add the decorated function; `hint` is for errors in it without a plain cause."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            self.properties.append(Property(name, text, function, hint))
            return function

        return add

    def __call__(self, *answers: Any, seed: int | None = None) -> Report:
        """Check `answers` on the fixed inputs, or on random ones from `seed`."""
        if grader is not None:
            return grader(self, answers)
        return Report(self.name, tuple(self.results(answers, seed)), seed)

    def results(self, answers: Sequence[Any], seed: int | None = None) -> Iterator[Result]:
        """Yield the result of each property."""
        if len(answers) != len(self.targets):
            call = f"check.{self.name}({', '.join(self.targets)})"
            for tried in self.properties:
                yield failed(tried, "", call, f"{len(answers)} answers", "What is to be checked?")
            return
        inputs = copy.deepcopy(self.inputs)  # what they keep for one answer is not for the next
        if seed is not None:
            generator = random.Random(f"{seed} {self.name}")
            inputs = [self.draw(generator) for _ in range(self.draws)]
        borrowed = {name for one in answers for name in borrowing.borrowed_by(one, self.given)}
        late = None
        for tried in self.properties:
            if late:  # the others would loop as well
                yield replace(late, name=tried.name, text=tried.text, input="")
                continue
            with _in_place(self.given, answers), borrowing.watched(self.given) as used:
                result = _run(self, tried, inputs, answers)
            yield replace(result, borrowed=tuple(sorted(used | borrowed)))
            late = result if result.late else None


#: What is called in place of a check, with the question and the answers; set where a notebook is
#: graded.
grader: Callable[[Question, Sequence[Any]], Report] | None = None


def failed(tried: Property, input: str, expected: str, got: str, hint: str) -> Result:
    return Result(tried.name, tried.text, False, input, expected, got, hint)


@contextlib.contextmanager
def _in_place(given: dict[str, Any], answers: Sequence[Any]) -> Iterator[None]:
    """Replace the names in `given` in the namespaces of `answers`."""
    functions = [function for answer in answers for function in borrowing.functions_of(answer)]
    spaces = list({id(f.__globals__): f.__globals__ for f in functions}.values())
    before = [{name: names[name] for name in given if name in names} for names in spaces]
    for names in spaces:
        names.update(given)
    try:
        yield
    finally:
        for names, old in zip(spaces, before, strict=True):
            for name in given.keys() - old.keys():
                names.pop(name, None)
            names.update(old)


def _run(
    question: Question, tried: Property, inputs: Sequence[Any], answers: Sequence[Any]
) -> Result:
    """Test a property on each input, up to the first failure."""
    printed, input, late = Printed(), "", False
    try:
        with contained(printed, question.limit):
            for number, input in enumerate(inputs):
                torch.manual_seed(number)
                tried.function(input, *answers)
        return Result(tried.name, tried.text, True)
    except Wrong as wrong:
        expected, got, hint = wrong.expected, wrong.got, wrong.hint or tried.hint
    except TimeIsUp:
        expected, got, late = f"an answer within {question.limit:g} seconds", "still running", True
        hint = question.slow
    except NotImplementedError as error:
        expected, got, hint = "an answer", _where(error), _hint(error) or f"{NOT_YET}."
    except Exception as error:  # noqa: BLE001 - an answer may raise anything
        expected, got, hint = "no error", _where(error), _hint(error) or tried.hint
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001
        expected, got = "a value", f"your code ended the program ({type(error).__name__})"
        hint = "Leave a function with return, not with exit()."
    if printed.length > _SHOWN:
        hint += f" (Your code printed {printed.length} characters.)"
    return replace(failed(tried, str(input), expected, got, hint.strip()), late=late)


#: How a hint begins where nothing may have been written yet. A report in which all hints do is this
#: hint alone.
NOT_YET = "Not answered yet"
NO_RETURN = f"{NOT_YET}, or it ends without return."

#: Errors that say by themselves what is wrong: a part of their text, and what to say.
_PLAIN = {
    "ellipsis": f"{NOT_YET}.",
    'the required "forward"': "Is there a method that is called forward?",
    "before Module.__init__": "Call super().__init__() before anything is assigned to self.",
    "positional argument": "Take the arguments that the question names, in its order.",
    "unexpected keyword argument": (
        "Is the argument spelled as in the question, or in PyTorch's documentation?"
    ),
    "must be tuple of Tensors, not Tensor": "torch.cat joins a list or a tuple of tensors: [a, b].",
    "'list' object has no attribute": "A list does not have that. Should it be one tensor by then?",
    "inplace operation": (
        "An operation in place (x += …, x.relu_()) overwrites what the backward pass needs."
    ),
}


def text_of(error: BaseException) -> str:
    """The message of an error, if it has one."""
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001 - an answer may define its own
        return ""


def _hint(error: Exception) -> str:
    text = text_of(error)
    for part, hint in _PLAIN.items():
        if part in text:
            return hint
    if isinstance(error, RecursionError):
        return "Does something call itself?"
    if isinstance(error, (AttributeError, NameError)):
        return "Is that name spelled right, and set before it is used?"
    return ""


def _where(error: BaseException) -> str:
    """The error, and the line of the answer that raised it, without our frames."""
    text = f"{type(error).__name__}: {text_of(error) or 'no message'}"[:_LONGEST]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_PACKAGE, _TORCH, "<frozen")):
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{text}\nat: {line}" if line else text
    return text


class Printed(io.TextIOBase):
    """A stream that counts what is printed and discards it."""

    length = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.length += len(text)
        return len(text)


@contextlib.contextmanager
def contained(printed: Printed, limit: float) -> Iterator[None]:
    """Capture output, restore random state and settings, and stop after a time limit.

    Everything runs in one thread: small computations are not faster in several, and many times
    slower with more threads than free cores.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            time_limit(limit),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


class Clock:
    """Measures time for limits that work on a busy machine.

    It counts the CPU time of this thread, or, if that is longer, the elapsed time divided by
    `BUSY`, for a thread that waits or sleeps.
    """

    BUSY = 5

    def __init__(self) -> None:
        self._begun = time.thread_time(), time.monotonic()

    def seconds(self) -> float:
        computed, passed = self._begun
        return max(time.thread_time() - computed, (time.monotonic() - passed) / self.BUSY)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in the code inside after `seconds` of a :class:`Clock`.

    It is raised again each second, for code that catches everything. An outer limit is paused
    meanwhile. On systems other than Unix, and outside of the main thread, there is no limit.
    """
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    inside, clock = True, Clock()

    def ring(*_: object) -> None:
        if inside and clock.seconds() >= seconds:
            raise TimeIsUp

    handler = signal.signal(signal.SIGALRM, ring)
    before = signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, *before)


# ------------------------------------------------------------------------- what properties say


def shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"


def tensor(value: Any, what: str) -> Tensor:
    """Return `value`, or raise an error unless it is a tensor."""
    if isinstance(value, Tensor):
        # A subclass may have its own idea of what is equal.
        return value if type(value) is Tensor else value.as_subclass(Tensor)
    raise not_a(value, what, "a tensor")


def not_a(value: Any, what: str, expected: str) -> Wrong:
    """The error for `what` that returned `value`, which is not of the `expected` kind."""
    if value is None or value is ...:
        got, hint = ("nothing", NO_RETURN) if value is None else ("...", f"{NOT_YET}.")
        return Wrong(f"{expected} from {what}", got, hint)
    return Wrong(f"{expected} from {what}", f"{type(value).__name__}: {str(value)[:80]}")


def whole_number(value: Any, what: str, expected: str = "a whole number") -> int:
    """Return `value` as an int, or raise an error; NumPy's and those in tensors are accepted."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        hint = "Divide whole numbers with //; int() drops what stands behind the point."
        raise Wrong(f"{expected} from {what}", f"{value!r}, which is no int", hint)
    raise not_a(value, what, expected)


def same_shape(got: Tensor, expected: Sequence[int], hints: Mapping[tuple[int, ...], str]) -> None:
    """Raise unless `got` has the shape `expected`; `hints` explain other shapes."""
    if tuple(got.shape) != tuple(expected):
        hint = {tuple(key): hint for key, hint in hints.items()}.get(tuple(got.shape), "")
        raise Wrong(f"shape {tuple(expected)}", shape(got), hint)


def close(a: Tensor, b: Tensor, *, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree up to rounding."""
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=tolerance, atol=tolerance
    )


def same_values(
    got: Tensor, expected: Tensor, what: str, mistakes: dict[str, Callable[[], Tensor]]
) -> None:
    """Raise unless `got` is `expected`; `mistakes` compute, by hint, results of common mistakes."""
    if close(got, expected):
        return
    for hint, mistaken in mistakes.items():
        with contextlib.suppress(Exception):
            if close(got, mistaken()):
                raise_hint = hint
                break
    else:
        raise_hint = ""
    difference = (
        f"up to {(got - expected).abs().max():.3g} away"
        if got.shape == expected.shape
        else shape(got)
    )
    raise Wrong(what, f"other numbers, {difference}", raise_hint)
