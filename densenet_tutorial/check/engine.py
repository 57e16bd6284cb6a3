"""The engine of the self-checks: a question has properties, a property is tried on inputs, a report says what came out.

Answers are code that may raise, loop, exit or print. All of that is caught here and becomes a line in the report. What
cannot be caught inside a process (``os._exit``, say) is the business of :mod:`densenet_tutorial.check.grading`.
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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    """A property does not hold: what was expected, what came instead, and what to think about."""

    def __init__(self, expected: str, got: str, hint: str = "") -> None:
        super().__init__(expected, got, hint)
        self.expected, self.got, self.hint = _cut(expected), _cut(got), hint


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


class TimeIsUp(BaseException):
    """Not an Exception, so that an answer's own `except Exception` lets it pass."""


@dataclass(frozen=True)
class Result:
    """How one property came out; the last four fields say on which input, and are empty if it holds."""

    name: str
    text: str
    passed: bool
    input: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """What passed and what did not. It is true if everything passed, and shows itself as text.

    `borrowed` names what answers take from the package of what they were asked to write: the grader refuses that.
    """

    question: str
    results: tuple[Result, ...]
    seed: int | None = None
    borrowed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return all(result.passed for result in self.results)

    def __repr__(self) -> str:
        if all(result.hint.startswith(NOT_YET) for result in self.results):
            return f"{self.question}: {self.results[0].hint[0].lower()}{self.results[0].hint[1:]}"
        right = sum(result.passed for result in self.results)
        with_seed = "" if self.seed is None else f" (seed {self.seed})"
        lines = [f"{self.question}: {right} of {len(self.results)} right{with_seed}"]
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
            lines.append(
                f"  NOTE   {', '.join(self.borrowed)}: write that yourself. The grader refuses it."
            )
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
    """Something that holds for every right answer. `function` takes an input and the answers, and raises Wrong."""

    name: str
    text: str
    function: Callable[..., None]
    hint: str


@dataclass
class Question:
    """A question of an assignment; calling it checks answers.

    Attributes:
        name: also what its self-check is called.
        targets: the names that a student defines, in the order in which they are passed.
        inputs: what the self-check tries. Each shows itself, by `str`, as the code that a student could type.
        draw: makes an input from a random generator; the hidden tests try `draws` of them.
        given: names that an answer may use, since an earlier question asked for them.
        limit: processor seconds that a property may take on all its inputs together, and half the seconds on the clock.
        slow: what to think about if that was too short.
    """

    name: str
    targets: tuple[str, ...]
    inputs: Sequence[Any]
    draw: Callable[[random.Random], Any]
    given: dict[str, Any] = field(default_factory=dict)
    draws: int = 4
    limit: float = 4
    slow: str = "Is there a loop that never ends?"
    properties: list[Property] = field(default_factory=list)

    def property(self, name: str, text: str, hint: str = "") -> Callable[[Callable], Callable]:
        """Add the decorated function; `hint` is for answers that raise an error there whose cause is not plain."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            self.properties.append(Property(name, text, function, hint))
            return function

        return add

    def __call__(self, *answers: Any, seed: int | None = None) -> Report:
        """Check `answers`, on inputs that are always the same, or on those that `seed` draws, and report."""
        names = {name for answer in answers for name in borrowing.borrowed_by(answer, self.given)}
        return Report(self.name, tuple(self.results(answers, seed)), seed, tuple(sorted(names)))

    def results(self, answers: Sequence[Any], seed: int | None = None) -> Iterator[Result]:
        """The result of one property after the other, as they are found."""
        if len(answers) != len(self.targets):
            call = f"check.{self.name}({', '.join(self.targets)})"
            for tried in self.properties:
                yield failed(tried, "", call, f"{len(answers)} answers", "What is to be checked?")
            return
        inputs = copy.deepcopy(self.inputs)  # what they keep for one answer is not for the next
        if seed is not None:
            generator = random.Random(f"{seed} {self.name}")
            inputs = [self.draw(generator) for _ in range(self.draws)]
        late = None
        for tried in self.properties:
            result = late and failed(tried, "", *late) or _run(self, tried, inputs, answers)
            if result.expected == time_text(self.limit):
                late = result.expected, result.got, result.hint  # the others would loop as well
            yield result


def failed(tried: Property, input: str, expected: str, got: str, hint: str) -> Result:
    return Result(tried.name, tried.text, False, input, expected, got, hint)


def time_text(limit: float) -> str:
    return f"an answer within {limit:g} seconds"


def _run(
    question: Question, tried: Property, inputs: Sequence[Any], answers: Sequence[Any]
) -> Result:
    """Try a property on each input, up to the first on which it does not hold."""
    printed, input = Printed(), ""
    try:
        with contained(printed, question.limit):
            for number, input in enumerate(inputs):
                torch.manual_seed(number)
                tried.function(input, *answers)
        return Result(tried.name, tried.text, True)
    except Wrong as wrong:
        expected, got, hint = wrong.expected, wrong.got, wrong.hint or tried.hint
    except TimeIsUp:
        expected, got, hint = time_text(question.limit), "still running", question.slow
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
    return failed(tried, str(input), expected, got, hint.strip())


#: How a hint begins where nothing may have been written yet. A report in which all hints do is this hint alone.
NOT_YET = "Not answered yet"
NO_RETURN = f"{NOT_YET}, or it ends without return."

#: Errors that say by themselves what is wrong: a part of their text, and what to say.
_PLAIN = {
    "ellipsis": f"{NOT_YET}.",
    'the required "forward"': "Is there a method that is called forward?",
    "before Module.__init__": "Call super().__init__() before anything is assigned to self.",
    "positional argument": "Take the arguments that the question names, in its order.",
    "unexpected keyword argument": "Is the argument spelled as in the question, or in PyTorch's documentation?",
    "must be tuple of Tensors, not Tensor": "torch.cat joins a list or a tuple of tensors: [a, b].",
    "'list' object has no attribute": "A list does not have that. Should it be one tensor by then?",
    "inplace operation": "An operation in place (x += …, x.relu_()) overwrites what the backward pass needs.",
}


def _text(error: BaseException) -> str:
    """What an error says, if it can."""
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001 - an answer may define its own
        return ""


def _hint(error: Exception) -> str:
    text = _text(error)
    for part, hint in _PLAIN.items():
        if part in text:
            return hint
    if isinstance(error, RecursionError):
        return "Does something call itself?"
    if isinstance(error, (AttributeError, NameError)):
        return "Is that name spelled right, and set before it is used?"
    return ""


def _where(error: BaseException) -> str:
    """The error, and the line of the answer at which it came up: none of the frames is ours."""
    text = f"{type(error).__name__}: {_text(error) or 'no message'}"[:_LONGEST]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_PACKAGE, _TORCH, "<frozen")):
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{text}\nat: {line}" if line else text
    return text


class Printed(io.TextIOBase):
    """Takes what is printed, counts it, and keeps nothing."""

    length = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.length += len(text)
        return len(text)


@contextlib.contextmanager
def contained(printed: Printed, limit: float) -> Iterator[None]:
    """Take what is printed, leave the caller's random numbers and settings as they are, and stop what takes too long.

    The limit is `limit` seconds of the processor, since a busy machine is not the answer's fault, or twice that on the
    clock. The alarms need the main thread, and Unix; elsewhere there is no limit. They ring again each second, for
    answers that catch everything.
    """
    alarms = {}
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        alarms = {
            signal.SIGPROF: (signal.ITIMER_PROF, limit),
            signal.SIGALRM: (signal.ITIMER_REAL, 2 * limit),
        }

    def ring(*_: object) -> None:
        raise TimeIsUp

    dtype = torch.get_default_dtype()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
    ):
        before = {number: signal.signal(number, ring) for number in alarms}
        try:
            for timer, seconds in alarms.values():
                signal.setitimer(timer, seconds, 1)
            yield
        finally:
            for number, (timer, _) in alarms.items():
                signal.setitimer(timer, 0)
                signal.signal(number, before[number])
            torch.set_default_dtype(dtype)


# ------------------------------------------------------------------------- what properties say


def shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"


def tensor(value: Any, what: str) -> Tensor:
    """`value`, which has to be a tensor."""
    if isinstance(value, Tensor):
        # A subclass may have its own idea of what is equal.
        return value if type(value) is Tensor else value.as_subclass(Tensor)
    raise not_a(value, what, "a tensor")


def not_a(value: Any, what: str, expected: str) -> Wrong:
    """What to raise where `what` returned `value`, which is not the `expected` kind of thing."""
    if value is None or value is ...:
        got, hint = ("nothing", NO_RETURN) if value is None else ("...", f"{NOT_YET}.")
        return Wrong(f"{expected} from {what}", got, hint)
    return Wrong(f"{expected} from {what}", f"{type(value).__name__}: {str(value)[:80]}")


def whole_number(value: Any, what: str, expected: str = "a whole number") -> int:
    """`value`, which has to be a whole number; one of NumPy's, or in a tensor, will do."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        hint = "Divide whole numbers with //; int() drops what stands behind the point."
        raise Wrong(f"{expected} from {what}", f"{value!r}, which is no int", hint)
    raise not_a(value, what, expected)


def same_shape(got: Tensor, expected: Sequence[int], hints: dict[Sequence[int], str]) -> None:
    """Raise unless `got` has the shape `expected`; `hints` know what other shapes come from."""
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
    """Raise unless `got` is `expected`; `mistakes` know, by the hint to give, what common mistakes would compute."""
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
