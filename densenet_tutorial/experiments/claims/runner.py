"""Measures units, one after another or in several processes, and keeps what is done.

Each finished unit is a line in ``units.jsonl``, written through to the disk: a run that is killed
loses the units under way, and the next one goes on with the others.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from densenet_tutorial.experiments.benchmarks import not_interrupted
from densenet_tutorial.experiments.claims import costs, plans, trained
from densenet_tutorial.experiments.claims.plans import key
from densenet_tutorial.experiments.claims.trained import Unit
from densenet_tutorial.experiments.claims.verdicts import check_row
from densenet_tutorial.utils import environment

Row = dict[str, Any]

KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": trained.train,
    "gradients": trained.gradients,
    "cuts": trained.cuts,
    "probes": trained.probes,
    "held": costs.held,
    "timed": costs.timed,
}


class Store:
    """The finished units, by :func:`plans.key`, in a folder or in memory.

    A row says on which ``device`` and ``machine`` it was measured. A folder may have rows of
    several, so that a run can go on elsewhere; only times of another one are measured again.

    Args:
        folder: where ``units.jsonl`` is; ``None`` for memory only.
        device: where units are measured.

    Raises:
        ValueError: the folder's file is damaged.
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self.rows: dict[str, Row] = {}
        self.elsewhere: dict[str, Row] = {}  # times of other machines
        self.path = None if folder is None else folder / "units.jsonl"
        self.here = {"device": device.type, "machine": environment.machine(device)}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OSError(error.errno, f"output: {error.strerror}", str(self.path.parent)) from None
        whole, _, torn = data.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found = json.loads(line)
                unit, result = found["unit"], found["result"]
                where = {name: str(found[name]) for name in self.here}
                if unit.keys() & result.keys():
                    raise ValueError("its result repeats what the unit says")
                row = unit | result | where
                check_row(row)
                here = unit["kind"] != "timed" or where == self.here
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path} is damaged in line {number}: {error!r}") from None
            rows = self.rows if here else self.elsewhere
            rows[key(unit)] = row
        if torn:  # a line that was being written when the process was killed
            with self.path.open("r+b") as file:
                file.truncate(len(data) - len(torn))

    def add(self, unit: Unit, result: dict[str, Any]) -> None:
        """Keep the result of a unit."""
        self.rows[key(unit)] = unit | result | self.here
        if self.path is not None:
            line = json.dumps({"unit": unit, "result": result, **self.here}) + "\n"
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())


def measure(unit: Unit, device: str) -> dict[str, Any]:
    """The result of a unit, or ``{"error": …}`` with the reason why there is none."""
    try:
        result = KINDS[unit["kind"]](unit, device)
        check_row(unit | result)
        return result
    except Exception as error:  # noqa: BLE001 the other units go on
        words = " ".join(str(error).split()) or "no reason given"
        return {"error": f"{type(error).__name__}: {words}"[:500]}


def run_units(
    wanted: Callable[[list[Row]], list[Unit]],
    store: Store,
    device: torch.device,
    *,
    workers: int = 1,
    seconds: float | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Measure all wanted units that are not in `store`.

    Args:
        wanted: from the rows so far to the units; it is asked again when all of them are done,
            since some units depend on the rows of others.
        store: keeps the results.
        device: where to compute.
        workers: number of processes; with 1, this one.
        seconds: no unit starts later than this.
        progress: whether to draw a bar.

    Returns:
        The reasons why units failed, by :func:`plans.key`.
    """
    failed: dict[str, str] = {}
    end = None if seconds is None else time.monotonic() + seconds

    def in_time() -> bool:
        return end is None or time.monotonic() < end

    def left_of(rows: list[Row]) -> list[Unit]:
        units = {key(unit): unit for unit in wanted(rows)}
        return [unit for k, unit in units.items() if k not in store.rows and k not in failed]

    def work_left(units: list[Unit]) -> float:
        """The cost of all that is left, what waits for learning rates included."""
        rows = [*store.rows.values(), *plans.assumed(units)]
        return sum(map(plans.cost, left_of(rows)))

    def missing() -> list[Unit]:
        left = left_of(list(store.rows.values()))
        # Tuning first, then seed by seed, so that what is there when time is up has whole seeds;
        # and long units first, so that no process waits for another one at the end.
        return sorted(
            left,
            key=lambda unit: (
                unit["kind"] != "timed",
                not unit.get("held_out"),
                unit["seed"],
                -plans.cost(unit),
            ),
        )

    with (
        tqdm(
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left",
            disable=not progress,
            file=sys.stderr,
        ) as bar,
        _pool(workers, str(device)) as pool,
    ):
        while (units := missing()) and in_time():
            bar.total = bar.n + work_left(units)
            # Times are measured while nothing else runs, with all threads of this process.
            alone = [unit for unit in units if unit["kind"] == "timed"]
            results = itertools.chain(
                _here(alone, str(device), in_time), pool(units[len(alone) :], in_time)
            )
            for unit, result in results:
                if "error" in result:
                    failed[key(unit)] = result["error"]
                    bar.write(f"failed: {result['error']}, in {key(unit)}", file=sys.stderr)
                else:
                    store.add(unit, result)
                ended = len(failed) + len(store.rows)
                bar.set_description_str(f"{ended} units", refresh=False)
                bar.update(plans.cost(unit))
    return failed


Results = Iterator[tuple[Unit, dict[str, Any]]]
Pool = Callable[[list[Unit], Callable[[], bool]], Results]


def _here(units: list[Unit], device: str, in_time: Callable[[], bool]) -> Results:
    return ((unit, measure(unit, device)) for unit in units if in_time())


@contextlib.contextmanager
def _pool(workers: int, device: str) -> Iterator[Pool]:
    """A function from units to their results, as they are finished in `workers` processes."""
    if workers == 1:
        yield lambda units, in_time: _here(units, device, in_time)
        return
    context = multiprocessing.get_context("spawn")
    idle: list[tuple[Any, Connection]] = []
    busy: dict[Connection, tuple[Any, Unit]] = {}

    def start() -> tuple[Any, Connection]:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, device), daemon=True)
        with not_interrupted():  # Ctrl-C reaches all processes, and this one ends the others
            process.start()
        there.close()
        return process, here

    def results(units: list[Unit], in_time: Callable[[], bool]) -> Results:
        left = list(reversed(units))
        while left or busy:
            while left and len(busy) < workers and in_time():
                process, pipe = idle.pop() if idle else start()
                unit = left.pop()
                busy[pipe] = process, unit
                with contextlib.suppress(ConnectionError):  # it has died, as `recv` will tell
                    pipe.send(unit)
            if not busy:
                return
            for ready in wait(list(busy)):
                pipe = cast(Connection, ready)
                process, unit = busy.pop(pipe)
                try:
                    yield unit, pipe.recv()
                    idle.append((process, pipe))
                except (EOFError, ConnectionError):
                    process.join()
                    yield unit, {"error": f"its process ended with status {process.exitcode}"}

    try:
        yield results
    finally:
        for process in [*(p for p, _ in idle), *(p for p, _ in busy.values())]:
            process.kill()


def _work(pipe: Connection, device: str) -> None:
    """Measure what comes through `pipe`, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            pipe.send(measure(pipe.recv(), device))
