"""Grading a notebook: each question in a process of its own, behind otter-grader's tests.

Otter runs its tests in the process in which the notebook ran. Here no notebook is run there: :class:`Isolated`, a plugin
of otter, grades it first, and leaves otter a cell that holds the results. For each question, a server that has imported
the checks, and never an answer, forks a child. The child runs the answer and sends one result after the other through a
pipe, and is killed when its time is up. So an answer that loops, exits or fills the screen loses what it had not shown
by then, and nothing else.

The child notes what the checks and torch consist of before the answer runs, and looks again before each result is sent.
This catches answers that replace a function of the checker or of torch. It is no sandbox: an answer runs with the
grader's rights (the instructor's guide says what to do about that).
"""

import builtins
import contextlib
import ctypes
import functools
import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial import check
from densenet_tutorial.check import answers, engine
from densenet_tutorial.check.engine import Question, Report, Result

PARTS = ("public", "hidden")
MEMORY = 6 * 2**30  # bytes that an answer may ask for
FILES = 64 * 2**20  # bytes that it may write to a file
START = 120  # seconds that importing torch may take
SLACK = 15  # seconds that a question may take beyond its limits
_SENT = 2**20  # characters of results that are read: a child that sends more is not ours


def question_named(assignment: str, name: str) -> Question:
    return next(question for question in check.ASSIGNMENTS[assignment] if question.name == name)


def grade(
    assignment: str, name: str, cells: Sequence[str], seed: int, second_try: bool = True
) -> dict[str, Report]:
    """Check the answer to a question in `cells`, as the self-check does ("public") and with `seed` ("hidden").

    An answer that is late without having computed for most of the time gets a `second_try`: the machine may have stood
    still, which is not its fault.
    """
    question = question_named(assignment, name)
    request = {"assignment": assignment, "name": name, "cells": list(cells), "seed": seed}
    answer = _server().ask(request)
    if second_try and answer["late"] and answer["cpu"] < 0.6 * answer["seconds"]:
        answer = _server().ask(request)
    reports = {}
    for part in PARTS:
        found = {row["name"]: Result(**row) for row in answer["results"].get(part, [])}
        results = [
            found.get(tried.name)
            or engine.failed(tried, "", "an answer that runs", answer["end"], answer["hint"])
            for tried in question.properties
        ]
        reports[part] = Report(name, tuple(results), seed if part == "hidden" else None)
    return reports


# ------------------------------------------------------------------------------ the server


class _Server:
    """A process that forks one child per question; it is started again if a child takes it down."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                # -P: whatever lies in the folder of a submission is not imported.
                [sys.executable, "-P", "-m", "densenet_tutorial.check.grading"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Threads that wait for each other on a busy machine would use up an answer's seconds.
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,  # an interruption is for the kernel
            )
            self._line(START)  # it is there
        # It keeps to the limits of its questions, unless an answer has stopped it.
        patience = _seconds(question_named(request["assignment"], request["name"])) + SLACK
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self._line(patience)
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.process.kill()
        self.process.wait()
        self.process = None
        hint = "An answer may not send signals to other processes."
        end = "it took the grading process down"
        return {"results": {}, "end": end, "hint": hint, "late": False, "cpu": 0.0, "seconds": 0.0}

    def _line(self, seconds: float) -> str:
        """The next line of the process; "" if none comes in time."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else ""


def _seconds(question: Question) -> float:
    """What an answer may take on the clock. A property that is late stops by itself; this is for what does not."""
    return 3 * question.limit


@functools.cache
def _server() -> _Server:
    return _Server()


def serve() -> None:
    """Say that it is there, and answer one request a line, until the input ends."""
    _adopt_orphans()
    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line))), flush=True)


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    question = question_named(request["assignment"], request["name"])
    limit, token = _seconds(question), secrets.token_hex(8)  # which comes with each message
    readable, writable = os.pipe()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.close(readable)
            try:
                _child(request, writable, folder, token)
            finally:
                os._exit(0)
        os.close(writable)
        sent, ended = _read(readable, limit, f'"{token}"}}\n')
        seconds = time.monotonic() - start
        for target in (-child, child):  # its group, which exists once it has begun, and itself
            try:
                os.kill(target, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        _, _, used = os.wait4(child, 0)
        _end_orphans()
    results: dict[str, list[dict]] = {}
    end = "it ended the process" if ended else f"it was stopped after {limit:g} seconds"
    hint = (
        "Leave a function with return; nothing in an answer may end Python."
        if ended
        else question.slow
    )
    for line in sent.splitlines():
        try:
            message = json.loads(line)
            if message["token"] != token:
                continue
            if "done" in message:
                continue
            if "end" in message:
                end, hint = message["end"], message["hint"]
            else:
                results.setdefault(message["part"], []).append(message["result"])
        except (ValueError, KeyError, TypeError):
            continue  # not a line of ours, or cut off
    late = not ended or any(
        row["expected"] == engine.time_text(question.limit)
        for part in results.values()
        for row in part
    )
    cpu = used.ru_utime + used.ru_stime
    return {
        "results": results,
        "end": end,
        "hint": hint,
        "late": late,
        "cpu": cpu,
        "seconds": seconds,
    }


def _read(pipe: int, limit: float, last: str) -> tuple[str, bool]:
    """What comes through `pipe` within `limit` seconds, up to the text `last`, and whether it ended by itself."""
    deadline, content, end = (
        time.monotonic() + limit,
        b"",
        f'"done": true, "token": {last}'.encode(),
    )
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while len(content) < _SENT and not content.endswith(end):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return content.decode("utf-8", "replace"), False
            piece = file.read(2**16)
            if not piece:
                break
            content += piece
    return content.decode("utf-8", "replace"), True


def _adopt_orphans() -> None:
    """Let what an answer starts and leaves behind become a child of this process (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end_orphans() -> None:
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    while own.exists() and (children := own.read_text().split()):
        for process in map(int, children):
            with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


# ------------------------------------------------------------------------------ the child


def _child(request: dict[str, Any], pipe: int, folder: str, token: str) -> None:
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL, 0, 0, 0
        )  # PR_SET_PDEATHSIG: not to outlive the server
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.chdir(folder)
    for kind, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, FILES)):
        with contextlib.suppress(
            ValueError, OSError
        ):  # a lower limit holds, or the system knows none
            resource.setrlimit(kind, (most, most))

    question = question_named(request["assignment"], request["name"])
    intact = _witness()
    write, dumps = os.write, json.dumps

    def send(message: dict[str, Any]) -> None:
        write(pipe, (dumps(message | {"token": token}) + "\n").encode())

    def stop(end: str, hint: str = "") -> None:
        send({"end": end, "hint": hint})
        os._exit(0)

    printed = engine.Printed()
    try:
        with engine.contained(printed, question.limit):
            names, problems = answers.namespace(request["cells"], question)
    except ValueError as error:
        stop(str(error), "Run the notebook from top to bottom once before you hand it in.")
    except engine.TimeIsUp:
        stop("a definition takes too long", "Is there a loop that never ends?")
    except BaseException as error:  # noqa: BLE001 - SystemExit included
        stop(f"a definition ended with {type(error).__name__}")
    given = [names[target] for target in question.targets]
    for part in PARTS:
        for result in question.results(given, request["seed"] if part == "hidden" else None):
            if changed := intact():
                stop(
                    f"it changes {changed}",
                    "An answer may not replace anything in torch, in Python or in the checker.",
                )
            row = vars(result)
            if problems and result.got.startswith("NameError"):
                row = row | {"hint": f"Something before it failed: {'; '.join(problems)[:600]}"}
            send({"part": part, "result": row})
            if result.expected == engine.time_text(question.limit) and part == "public":
                stop(result.got, result.hint)  # the hidden inputs would take as long
    send({"done": True})


def _witness() -> Callable[[], str]:
    """A function that names the first thing that has changed since, in what the checks rely on; "" for nothing."""
    watched: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    functions: list[tuple[str, types.FunctionType, tuple]] = []
    lists: list[tuple[str, list, tuple]] = []

    def parts(function: types.FunctionType) -> tuple:
        return function.__code__, function.__defaults__, *(function.__kwdefaults__ or {}).values()

    def watch(name: str, thing: Any) -> None:
        content = dict(vars(thing))
        watched.append((name, vars(thing), content))
        for key, value in content.items():
            if isinstance(value, types.FunctionType):
                functions.append((f"{name}.{key}", value, parts(value)))
            if isinstance(value, list):
                lists.append((f"{name}.{key}", value, tuple(value)))

    ours = [module for name, module in sys.modules.items() if name.startswith("densenet_tutorial")]
    trusted = (builtins, json, torch, torch.nn, torch.nn.functional, torch.nn.init)
    autograd = (torch.autograd.graph, torch.utils.checkpoint)
    for module in [*trusted, *autograd, *ours, sys.modules["__main__"]]:
        watch(module.__name__, module)
    for cls in (torch.Tensor, torch.nn.Module, torch.nn.BatchNorm2d, torch.nn.Conv2d, Question):
        watch(cls.__name__, cls)
    for module in ours:
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                watch(value.__name__, value)
    for question in (one for several in check.ASSIGNMENTS.values() for one in several):
        watch(f"check.{question.name}", question)
        for tried in question.properties:
            watch(f"check.{question.name}, {tried.name}", tried)

    missing = object()

    def first_change() -> str:
        for name, now, before in watched:
            for key, value in before.items():
                if now.get(key, missing) is not value and not key.startswith("__"):
                    return f"{name}.{key}"
        for name, function, before in functions:
            if any(a is not b for a, b in zip(parts(function), before)):
                return name
        for name, now, before in lists:
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before)):
                return name
        return ""

    return first_change


# ------------------------------------------------------------------------------ otter

#: What otter runs in place of a submission. The tests of a master notebook call these two functions:
#: ``public("dense_layer")`` raises an AssertionError, whose text is the report, unless the self-check passes;
#: ``hidden("dense_layer", "order")`` unless that property holds on the inputs that the seed draws.
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
    """By question: the report of what is public, and of each hidden property; "" for what is right."""
    found, second_try = {}, True
    for question in check.ASSIGNMENTS[assignment]:
        start = time.monotonic()
        reports = grade(assignment, question.name, cells, seed, second_try)
        # One submission has two minutes: the second try is for one question.
        second_try = second_try and time.monotonic() - start < 2 * question.limit
        again = f"\n  to see it again: check.{question.name}(…, seed={seed})"
        found[question.name] = {
            "public": "" if reports["public"] else str(reports["public"]),
            "hidden": {
                result.name: ""
                if result.passed
                else str(Report(question.name, (result,), seed)) + again
                for result in reports["hidden"].results
            },
        }
    return found


class Isolated:
    """Otter's plugin: grade the submission here, and let otter run one cell that holds what came out.

    (Not a subclass of otter's abstract plugin, so that this module can be imported without otter. The events that it
    does not name here raise what otter expects of a plugin that lacks them.)
    """

    def __init__(self, submission_path: str, submission_metadata: dict, plugin_config: dict):
        self.config = plugin_config

    def before_execution(self, submission: Any) -> Any:
        """The notebook `submission` with one cell in place of all."""
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


if __name__ == "__main__":
    serve()
