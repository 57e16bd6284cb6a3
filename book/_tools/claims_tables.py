"""Write the tables of the claims on the results page, from the results files of the package.

    python book/_tools/claims_tables.py

After a run of ``python -m densenet_tutorial claims --full`` and a copy of its ``claims-*.json`` and
``claims-*.csv`` into ``densenet_tutorial/experiments/results``.
"""

import csv
import io
import json
import statistics
from collections import Counter

import notebooks

from densenet_tutorial.experiments import claims
from densenet_tutorial.experiments.claims.verdicts import seeds

RESULTS = notebooks.ROOT / "densenet_tutorial" / "experiments" / "results"
TABLES = notebooks.ROOT / "book" / "results"


def verdicts():
    """A row for each claim: verdict, sentence, command, devices, versions and date."""
    yield (
        "claim",
        "verdict",
        "numbers",
        "fewest seeds",
        "units",
        "missing",
        "device",
        "written with",
        "on",
    )
    for name, words in claims.list_claims().items():
        content = json.loads((RESULTS / f"claims-{name}.json").read_text(encoding="utf-8"))
        rows = claims.results(name)
        verdict = claims.verdict(name, rows)
        devices = Counter(row["device"] for row in rows)
        machine = content["machine"]
        yield (
            f"{name}: {words}",
            verdict.outcome,
            verdict.sentence,
            seeds(rows),
            len(rows),
            content["setting"]["missing"],
            ", ".join(f"{count} {device}" for device, count in devices.items()),
            f"Python {machine['python']}, torch {machine['torch']}",
            content["date"][:10],
        )


def accuracies():
    """A row for each network of the claim `parameters`: its budget, and accuracies over seeds."""
    yield (
        *("family", "equal to k =", "in", "parameters", "multiply-adds"),
        *("mean accuracy, %", "lowest", "highest", "seeds"),
    )
    found = {}
    for row in claims.results("parameters"):
        if not row.get("held_out"):
            key = row["family"], row["growth_rate"], row.get("budget", "").replace("_", "-")
            found.setdefault(key, []).append(row)
    for key, some in sorted(found.items(), key=lambda item: item[1][0]["parameters"]):
        values = [100 * row["test_accuracy"] for row in some]
        spread = (f"{pick(values):.1f}" for pick in (statistics.mean, min, max))
        costs = (f"{some[0][name]:,}" for name in ("parameters", "multiply_adds"))
        yield (*key, *costs, *spread, len(values))


def text(rows):
    """The rows as the content of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


#: The content of each table, by the name of its file.
FILES = {"claims.csv": verdicts, "claims-accuracy.csv": accuracies}


if __name__ == "__main__":
    for name, rows in FILES.items():
        notebooks.write_text(TABLES / name, text(rows()))
