"""What is claimed for DenseNet and against it, measured: ``python -m densenet_tutorial claims``.

A claim is tested by independent *units*, each of which trains or measures one network and gives a
*row* of plain values; a *rule* turns the rows into a verdict. Modules: ``plans`` (which units),
``trained`` and ``costs`` (what a unit does), ``runner`` (processes and resuming), ``verdicts`` (the
rules).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial.data.datasets import LOADERS
from densenet_tutorial.experiments import benchmarks
from densenet_tutorial.experiments.claims import plans, runner
from densenet_tutorial.experiments.claims.verdicts import (
    LEAST_SEEDS,
    NOT_DECIDED,
    RULES,
    Verdict,
    seeds,
)
from densenet_tutorial.utils import arguments, environment
from densenet_tutorial.utils.arguments import boolean, one_of, optional, positive_int, sequence_of

__all__ = ["Verdict", "list_claims", "missing", "results", "run", "verdict"]

Row = dict[str, Any]

#: The results files that come with the package.
_RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class _Finished:
    unit: dict[str, Any]
    result: dict[str, Any]


def list_claims() -> dict[str, str]:
    """What is claimed, by the name of the claim."""
    return {name: words for name, (words, _) in plans.CLAIMS.items()}


@arguments.check(
    names=optional(sequence_of(one_of(plans.CLAIMS))),
    full=boolean,
    output=optional(arguments.path),
    device=optional(arguments.device),
    workers=positive_int,
    seconds=optional(arguments.positive_number),
    data=optional(one_of(LOADERS)),
    progress=boolean,
)
def run(
    names: Sequence[str] | None = None,
    *,
    full: bool = False,
    output: str | Path | None = None,
    device: torch.device | str | None = None,
    workers: int = 1,
    seconds: float | None = None,
    data: str | None = None,
    progress: bool = True,
) -> dict[str, list[Row]]:
    """Measure claims, and return their rows by name.

    Units that several claims share are measured once, and those that `output` has are not measured
    again. A unit that fails is reported on standard error, and the others go on.

    Args:
        names: of :func:`list_claims`; ``None`` for all.
        full: the full experiments, with five seeds, instead of tiny ones that take seconds.
        output: a folder for ``units.jsonl`` and ``claims-NAME.json``; ``None`` to write nothing.
        device: where to compute; ``None`` for that of :func:`environment.device`.
        workers: number of processes, all on that device; times are measured by one alone.
        seconds: no unit starts later than this. What is missing is said in the results.
        data: another data set of :func:`data.load_dataset`.
        progress: whether to show a progress bar, with the time left.

    Raises:
        ValueError: an argument is out of range, or a file in `output` is damaged.
        OSError: `output` cannot be written to.
    """
    names = list(plans.CLAIMS) if names is None else list(dict.fromkeys(names))
    device = environment.device() if device is None else torch.device(device)
    folder = None if output is None else Path(output)
    scale = plans.scale(full, data)
    store = runner.Store(folder, device)

    def wanted(rows: list[Row]) -> list[dict[str, Any]]:
        return [unit for name in names for unit in plans.CLAIMS[name][1](scale, rows)]

    try:
        runner.run_units(wanted, store, device, workers=workers, seconds=seconds, progress=progress)
    except KeyboardInterrupt:  # training has words of its own, for a run that it can resume
        words = "" if folder is None else f"; the same command goes on with what is in {folder}"
        raise KeyboardInterrupt(f"stopped{words}") from None
    rows = store.elsewhere | store.rows
    found = {}
    for name in names:
        units = plans.CLAIMS[name][1](scale, list(rows.values()))
        done = [unit for unit in units if plans.key(unit) in rows]
        found[name] = [rows[plans.key(unit)] for unit in done]
        if folder is not None and done:
            command = f"python -m densenet_tutorial claims {name}{' --full' if full else ''}"
            command += "" if data is None else f" --data {data}"
            about = {
                "claim": plans.CLAIMS[name][0],
                "missing": missing(name, found[name], full=full, data=data),
                "devices": dict(Counter(row["device"] for row in found[name])),
                "machines": dict(Counter(row["machine"] for row in found[name])),
                **plans.setting(scale),
            }
            figures = [
                _Finished(unit, {k: v for k, v in row.items() if k not in unit})
                for unit, row in zip(done, found[name], strict=True)
            ]
            path = folder / f"claims-{name}.json"
            benchmarks.write_results(path, command, about, figures, _table(found[name]))
    return found


def _table(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as a table with a header, without what is no single value."""
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if not any(isinstance(row.get(name), (list, dict)) for row in rows) or name == "blocks"
    ]
    return [
        tuple(columns),
        *(tuple("" if row.get(c) is None else str(row[c]) for c in columns) for row in rows),
    ]


_rows = sequence_of(arguments.instance_of(dict, "a row, a dict"), empty=True)


@arguments.check(
    name=one_of(plans.CLAIMS), rows=_rows, full=boolean, data=optional(one_of(LOADERS))
)
def missing(name: str, rows: Sequence[Row], *, full: bool = False, data: str | None = None) -> int:
    """The number of units of a claim that are not in `rows`, which are those of :func:`run`.

    Those whose learning rate has not been chosen yet count as well.

    Args:
        name: of :func:`list_claims`.
        rows: what :func:`run` returned for this claim.
        full: as for :func:`run`.
        data: as for :func:`run`.

    Raises:
        ValueError: there is no such claim or data set, there are two rows of the same unit, or a
            row's values cannot be.
    """
    return len(plans.measured(name, plans.scale(full, data), rows)[1])


@arguments.check(name=one_of(plans.CLAIMS))
def results(name: str) -> list[Row]:
    """The rows in the results file of a claim that comes with the package.

    Raises:
        ValueError: there is no such claim, or no results file of it.
    """
    path = _RESULTS / f"claims-{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in _RESULTS.glob("claims-*.json"))) or "none"
        raise ValueError(f"name must be one with a results file ({there}), got {name!r}")
    content = json.loads(path.read_text(encoding="utf-8"))
    return [figure["unit"] | figure["result"] for figure in content["figures"]]


@arguments.check(name=one_of(RULES), rows=sequence_of(arguments.instance_of(dict, "a row, a dict")))
def verdict(name: str, rows: Sequence[Row]) -> Verdict:
    """The verdict on a claim, by the rule in :mod:`verdicts`, from rows of :func:`run`.

    It is decided only if every unit of the claim's full experiment is there; of the tiny one, the
    numbers are told. Rows of other experiments are left out.

    Raises:
        ValueError: there is no such claim; or the rows have nothing of it, a unit twice, a value
            that cannot be, an unknown data set, or several.
    """
    sets = list(dict.fromkeys(str(row.get("data")) for row in rows))
    if len(sets) != 1:
        raise ValueError(f"rows must have the same data set, got {', '.join(sets)}")
    one_of(LOADERS)("the data set of rows", sets[0])
    sizes = [plans.scale(full, sets[0]) for full in (True, False)]
    found, absent = max((plans.measured(name, size, rows) for size in sizes), key=_how_many)
    if not found:
        raise ValueError(f"rows must have units of {name!r}, got none in {len(rows)} rows")
    if absent:
        share = f"{len(absent)} of {len(found) + len(absent)} units are missing"
        return Verdict(NOT_DECIDED, f"{share}, such as {plans.key(absent[0])}")
    said = RULES[name](found)
    least = seeds(found)
    if least < LEAST_SEEDS:
        sentence = f"with {least} of {LEAST_SEEDS} seeds, {said.sentence}"
        return Verdict(NOT_DECIDED, sentence)
    return said


def _how_many(measured: tuple[list[Row], list[Row]]) -> int:
    return len(measured[0])
