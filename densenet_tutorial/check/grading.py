"""Grade a notebook for otter-grader, each question in a separate process.

Otter runs its tests in the process that ran the notebook. Here, :class:`Isolated`, a plugin of
otter, grades the notebook first, and otter runs one cell that holds the results. For each question,
a server, which has imported the checks but no answer, forks a child, which runs the notebook. When
the notebook calls the self-check of the question, the child checks the answer at that moment, on
the fixed inputs and on random ones from the seed; it does so again at the end, unless every point
is reached. The best of these counts.

The child sends each result through a pipe, and is killed when none comes for too long. So an answer
that loops, exits or prints without end loses only the results that come after. This is no sandbox:
an answer runs with the grader's rights (see the instructor's guide).
"""

import contextlib
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from densenet_tutorial import check
from densenet_tutorial.check import engine
from densenet_tutorial.check.engine import Question, Report, Result
from densenet_tutorial.check.notebook import STATEMENT, Notebook

PARTS = ("public", "hidden")
#: What a child may take of the machine: bytes of memory, bytes in a file, seconds of the processor.
LIMITS = {
    resource.RLIMIT_DATA: 6 * 2**30,
    resource.RLIMIT_FSIZE: 64 * 2**20,
    resource.RLIMIT_CPU: 3600,
}
START = 120  # seconds that importing torch may take
SLACK = 15  # seconds without a message, beyond a child's own limits, after which it is killed
ATTEMPTS = 20  # calls of a check that count
QUESTION = 1800  # seconds for everything that one question takes
RUNS = 4  # of a notebook, each without the statements that ended the ones before
_SENT = 2**22  # bytes that are read of what a child sends


def question_named(assignment: str, name: str) -> Question:
    return next(question for question in check.ASSIGNMENTS[assignment] if question.name == name)


@dataclass
class _Attempt:
    """The results of one check of an answer, and why other properties have no result."""

    end: str
    hint: str
    results: dict[str, dict[str, Result]] = field(default_factory=lambda: {p: {} for p in PARTS})

    def report(self, question: Question, part: str, seed: int) -> Report:
        found = self.results[part]
        results = [
            found.get(tried.name)
            or engine.failed(tried, "", "an answer that runs", self.end, self.hint)
            for tried in question.properties
        ]
        # What is used for one property is used: the answer gets no points for the others either.
        borrowed = {name for p in PARTS for r in self.results[p].values() for name in r.borrowed}
        results = [replace(result, borrowed=tuple(sorted(borrowed))) for result in results]
        return Report(question.name, tuple(results), seed if part == "hidden" else None)

    def worth(self) -> int:
        every = [result for part in PARTS for result in self.results[part].values()]
        return sum(r.passed for r in every) if not any(r.borrowed for r in every) else -1


def grade(
    assignment: str,
    name: str,
    cells: Sequence[str],
    seed: int,
    left_out: set[int] | None = None,
) -> dict[str, Report]:
    """Check the answer to a question in `cells`, on the fixed inputs and on those of `seed`.

    Args:
        assignment, name: the question.
        cells: the sources of a notebook's code cells, in order.
        seed: for the random inputs.
        left_out: numbers of statements to skip. Statements that end the process, or are stopped,
            are added, for the next question.

    Returns:
        The report of each of :data:`PARTS`.
    """
    question = question_named(assignment, name)
    left_out = set() if left_out is None else left_out
    attempts: list[_Attempt] = []
    for _ in range(RUNS):
        request = {"assignment": assignment, "name": name, "cells": list(cells), "seed": seed}
        answer = _server().ask(request | {"left_out": sorted(left_out)})
        fatal = _read_messages(question, answer, attempts, left_out)
        if fatal is None:
            break
        left_out.add(fatal)
    best = max(reversed(attempts), key=_Attempt.worth)
    return {part: best.report(question, part, seed) for part in PARTS}


def _read_messages(
    question: Question, answer: dict[str, Any], attempts: list[_Attempt], left_out: set[int]
) -> int | None:
    """Add the messages of a child to `attempts` and `left_out`.

    Returns:
        The number of the top-level statement in which it ended, if any.
    """
    died = "it was stopped, since it took too long", question.slow
    if answer["ended"]:
        hint = "Leave a function with return; nothing in an answer may end Python."
        died = answer.get("end", "it ended the process"), hint
    statement: int | None = None
    checking = done = False
    for message in answer["messages"]:
        match message:
            case {"statement": statement}:
                pass
            case {"late": late}:
                left_out.add(late)
            case {"attempt": checking}:
                if checking:
                    attempts.append(_Attempt(*died))
            case {"part": part, "result": row}:
                result = Result(**row | {"borrowed": tuple(row["borrowed"])})
                attempts[-1].results[part][result.name] = result
            case {"end": end, "hint": hint}:
                attempts[-1].end, attempts[-1].hint = end, hint
            case {"done": done}:
                pass
    if not attempts:
        attempts.append(_Attempt(*died))
    return None if done or checking else statement


# ------------------------------------------------------------------------------ the server


class _Server:
    """A process that forks one child per question; restarted if a child stops it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self.process
        if process is None or process.poll() is not None:
            serve = "from densenet_tutorial.check import grading; grading.serve()"
            process = self.process = subprocess.Popen(
                # -P: whatever lies in the folder of a submission is not imported.
                [sys.executable, "-P", "-c", serve],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # One thread: forked processes must not wait for the threads of their parent.
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
                start_new_session=True,  # an interruption is for the kernel
            )
            _next_line(process, START)  # it is there
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = _next_line(process, QUESTION + SLACK)
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        process.kill()
        process.wait()
        self.process = None
        return {"messages": [], "ended": True, "end": "it took the grading process down"}


def _next_line(process: subprocess.Popen[str], seconds: float | None) -> str:
    """The next line of the process's output; "" if none comes in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else ""


@functools.cache
def _server() -> _Server:
    return _Server()


def serve() -> None:
    """Report that it is ready, and answer one request per line, until the input ends."""
    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line))), flush=True)


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    question = question_named(request["assignment"], request["name"])
    readable, writable = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.close(readable)
            try:
                _child(question, request, writable, folder)
            finally:
                os._exit(0)
        os.close(writable)
        patience = engine.Clock.BUSY * max(STATEMENT, question.limit) + SLACK
        lines, ended = _lines(readable, patience)
        for target in (-child, child):  # its group, which exists once it has begun, and itself
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(target, signal.SIGKILL)
        os.waitpid(child, 0)
    messages = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut off
            messages.append(json.loads(line))
    return {"messages": messages, "ended": ended}


def _lines(pipe: int, patience: float) -> tuple[list[bytes], bool]:
    """All messages from `pipe`, and whether the child ended by itself."""
    content, end = b"", time.monotonic() + QUESTION
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while len(content) < _SENT and not content.endswith(b'"done": true}\n'):
            left = min(patience, max(end - time.monotonic(), 0))
            if not select.select([file], [], [], left)[0]:
                return content.splitlines(), False
            piece = file.read(2**16)
            if not piece:
                break
            content += piece
    return content.splitlines(), True


# ------------------------------------------------------------------------------ the child


def _child(question: Question, request: dict[str, Any], pipe: int, folder: str) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.chdir(folder)
    sys.path.insert(0, folder)  # for modules that the notebook writes
    for kind, most in LIMITS.items():
        # A lower limit holds, or the system knows none.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))

    def send(**message: Any) -> None:
        os.write(pipe, (json.dumps(message) + "\n").encode())

    notebook = Notebook(request["cells"])
    tried: Sequence[Any] | None = None  # in the last attempt
    attempts = 0
    busy = changed = late = False

    def results(answers: Sequence[Any], part: str) -> list[Result]:
        found = []
        for result in question.results(answers, request["seed"] if part == "hidden" else None):
            if notebook.problems and result.got.startswith("NameError"):
                before = "; ".join(notebook.problems)[:600]
                result = replace(result, hint=f"Something before it failed: {before}")
            send(part=part, result=vars(result))
            found.append(result)
        return found

    def attempt(answers: Sequence[Any]) -> Report:
        """Check `answers`; exit if they get every point."""
        nonlocal tried, attempts, busy, changed, late
        clock, busy = engine.Clock(), True
        send(attempt=True)
        with engine.time_limit(QUESTION):  # the statement's own limit stands still meanwhile
            report = Report(question.name, tuple(results(answers, "public")))
            stopped = [result for result in report.results if result.late]
            if stopped:  # the hidden inputs would take as long
                send(end=stopped[0].got, hint=stopped[0].hint)
            elif all(result.passed for result in results(answers, "hidden")) and report:
                send(done=True)
                os._exit(0)
        send(attempt=False)
        tried, attempts, busy, changed, late = answers, attempts + 1, False, False, bool(stopped)
        notebook.seconds += clock.seconds()
        return report

    def called(other: Question, answers: Sequence[Any]) -> Report:
        if other.name != question.name or busy or attempts == ATTEMPTS:
            return Report(other.name, ())
        return attempt(answers)

    def starts(number: int) -> None:
        nonlocal changed
        changed = True
        send(statement=number)

    engine.grader = called
    notebook.run(request["left_out"], starts, lambda number: send(late=number))
    if missing := [name for name in question.targets if name not in notebook.names]:
        why = f" ({'; '.join(notebook.problems)[:600]})" if notebook.problems else ""
        hint = "Run the notebook from top to bottom once before you hand it in."
        send(attempt=True)
        send(end=f"{', '.join(missing)} not defined{why}", hint=hint)
    else:
        answers = [notebook.names[target] for target in question.targets]
        same = tried is not None and all(a is b for a, b in zip(answers, tried))
        if not same or changed and not late:
            attempt(answers)
    send(done=True)


# ------------------------------------------------------------------------------ otter

#: What otter runs in place of a submission. The tests of a master notebook call these two
#: functions: ``public("dense_layer")`` raises an AssertionError, whose text is the report, unless
#: the self-check passes; ``hidden("dense_layer", "order")`` unless that property holds on the
#: inputs that the seed draws.
CELL = """
graded = {graded!r}

def public(question):
    report = graded[question]["public"]
    assert not report, report

def hidden(question, name):
    report = graded[question]["hidden"][name]
    assert not report, report
"""


def texts(assignment: str, cells: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """By question: reports of the public part and of each hidden property; "" if right."""
    found: dict[str, dict[str, Any]] = {}
    left_out: set[int] = set()
    for question in check.ASSIGNMENTS[assignment]:
        reports = grade(assignment, question.name, cells, seed, left_out)
        again = f"\n  to see it again: check.{question.name}(…, seed={seed})"
        hidden = {r.name: Report(question.name, (r,), seed) for r in reports["hidden"].results}
        found[question.name] = {
            "public": "" if reports["public"] else str(reports["public"]),
            "hidden": {name: "" if one else f"{one}{again}" for name, one in hidden.items()},
        }
    return found


class Isolated:
    """Otter's plugin: grade the submission here; otter runs a cell that holds the results.

    (Not a subclass of otter's abstract plugin, so that this module can be imported without otter.
    The events that it does not name here raise what otter expects of a plugin that lacks them.)
    """

    def __init__(self, submission_path: str, submission_metadata: Any, plugin_config: Any):
        self.config = plugin_config

    def before_execution(self, submission: Any) -> Any:
        """The notebook `submission`, with all its cells replaced by one."""
        import nbformat

        cells = [cell.source for cell in submission.cells if cell.cell_type == "code"]
        graded = texts(self.config["assignment"], cells, self.config["seed"])
        submission.cells = [nbformat.v4.new_code_cell(CELL.format(graded=graded))]
        # Whatever kernel the student's machine had, ours runs this.
        submission.metadata = nbformat.from_dict({"kernelspec": {"name": "python3"}})
        return submission

    def __getattr__(self, event: str) -> Callable[..., None]:
        if event.startswith("_"):
            raise AttributeError(event)
        from otter.plugins import PluginEventNotSupportedException

        def not_supported(*_: Any) -> None:
            raise PluginEventNotSupportedException

        return not_supported
