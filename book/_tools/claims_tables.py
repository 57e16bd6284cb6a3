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


def spread(rows, value, *names, counted="seeds"):
    """A line for each combination of the entries `names` of some rows: the mean of `value` over
    them, the lowest and the highest, and how many they are.
    """
    yield (*names, "mean", "lowest", "highest", counted)
    found = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(value(row))
    for key, values in found.items():
        numbers = (f"{pick(values):.2f}" for pick in (statistics.mean, min, max))
        yield (*key, *numbers, len(values))


def compared(name, kind="train"):
    """The rows of a claim, without those that chose learning rates."""
    return [r for r in claims.results(name) if r["kind"] == kind and not r.get("held_out")]


def accuracy(row):
    return 100 * row["test_accuracy"]


def gradients():
    """How many powers of ten the first fifth of the convolutions has more than the last."""

    def difference(row):
        fifth = max(1, len(row["norms"]) // 5)
        first, last = row["norms"][:fifth], row["norms"][-fifth:]
        return statistics.median(first) - statistics.median(last)

    yield from spread(
        [
            row | {"weights": row["init"], "batch norm": norm, "steps": step, "norms": norms}
            for row in compared("gradients", "gradients")
            for norm in ["yes" if row["norm"] else "no"]
            for step, norms in zip(row["moments"], row["log10_norms"], strict=True)
            if step or "steps" not in row  # those that train begin as the others do
        ],
        difference,
        *("weights", "batch norm", "steps", "layers", "family"),
    )


def reuse():
    """Accuracy after all connections of an age or older were cut, or as many at random."""
    yield from spread(
        [
            {"cut": cut, "connections": each["connections"], "accuracy": 100 * accuracy}
            for row in compared("reuse", "cuts")
            for each in row["cuts"]
            for cut, accuracies in (
                (f"age {each['age']} and above", [each["old"]]),
                (f"as many as of age {each['age']} and above, at random", each["random"]),
            )
            for accuracy in accuracies
        ],
        lambda row: row["accuracy"],
        *("cut", "connections"),
        counted="seeds and draws",
    )


def scales():
    """Accuracy of a linear probe on each stage."""
    yield from spread(
        [
            row | stage | {"stage": stage["name"]}
            for row in compared("scales", "probes")
            for stage in row["stages"]
        ],
        accuracy,
        *("stage", "family", "channels"),
    )


def small_samples():
    """Accuracy by the number of labels."""
    rows = sorted(compared("small-samples"), key=lambda row: row["labels"])
    yield from spread(rows, accuracy, "labels", "steps", "family")


def memory():
    """MiB for each picture, which are counted and have no spread."""
    yield ("family", "layers", "k", "layers' mode", "equal in", "parameters", "MiB a picture")
    for row in compared("memory", "held"):
        mode = (row["mode"] or "plain") if row["family"] == "dense" else ""
        size = f"{row['bytes_per_image'] / 2**20:.2f}"
        equal = row.get("budget", "").replace("_", "-")
        yield (
            *(row["family"], row["layers"], row["growth_rate"], mode, equal),
            *(f"{row['parameters']:,}", size),
        )


def times():
    """Milliseconds of a call: the median of 20, and the middle half."""
    yield ("task", "batch", "family", "k", "equal in", "multiply-adds", "ms", "from", "to")
    for row in compared("time", "timed"):
        for entry in row["times"]:
            for task in ("predict", "train"):
                low, middle, high = statistics.quantiles(entry[task], n=4)
                yield (
                    *(task, row["batch_size"], entry["family"], entry["growth_rate"]),
                    (entry.get("budget") or "").replace("_", "-"),
                    f"{entry['multiply_adds']:,}",
                    *(f"{1000 * seconds:.2f}" for seconds in (middle, low, high)),
                )


def overfitting():
    """Training minus test accuracy, in points."""

    def regime(row):
        if row.get("shuffled"):
            return "shuffled labels"
        if row.get("augment"):
            return "crops, flips"
        return "dropout 0.2" if row.get("drop_rate") else "as it is"

    yield from spread(
        [row | {"regime": regime(row)} for row in compared("overfitting")],
        lambda row: 100 * (row["train_accuracy"] - row["test_accuracy"]),
        *("regime", "family"),
    )


def choices():
    """Accuracy of DenseNet with one factor changed."""
    rows = [row | {"parameters": f"{row['parameters']:,}"} for row in compared("choices")]
    yield from spread(rows, accuracy, "variant", "parameters")


def text(rows):
    """The rows as the content of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


#: The content of each table, by the name of its file.
FILES = {
    "claims.csv": verdicts,
    "claims-accuracy.csv": accuracies,
    "claims-gradients.csv": gradients,
    "claims-reuse.csv": reuse,
    "claims-scales.csv": scales,
    "claims-small-samples.csv": small_samples,
    "claims-memory.csv": memory,
    "claims-time.csv": times,
    "claims-overfitting.csv": overfitting,
    "claims-choices.csv": choices,
}


if __name__ == "__main__":
    for name, rows in FILES.items():
        notebooks.write_text(TABLES / name, text(rows()))
