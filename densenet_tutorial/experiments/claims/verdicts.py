"""The rules that turn rows of measurements into verdicts.

A difference between two networks is *clear* if zero is outside of its 95 % confidence interval, by
Student's t distribution. The differences are those of runs with the same seed, and so with the same
images, in the same order.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from densenet_tutorial.experiments.claims.trained import DRAWS

Row = dict[str, Any]

HOLDS, CONDITION, NOT_HERE = "holds", "holds with a condition", "does not hold here"
NOT_DECIDED = "not decided"

#: With fewer seeds, nothing is decided.
LEAST_SEEDS = 5

#: 97.5 % quantiles of Student's t distribution, by degrees of freedom.
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

#: What a unit may say besides data and seed.
_SAID = (
    *("kind", "family", "blocks", "growth_rate", "labels", "steps", "batch_size", "lr", "budget"),
    *("drop_rate", "augment", "shuffled", "variant", "init", "norm"),
)

#: From this ratio on, something costs more.
_MORE = 1.1


@dataclass(frozen=True)
class Verdict:
    """The outcome of a rule.

    Attributes:
        outcome: "holds", "holds with a condition", "does not hold here"; or "not decided", if what
            is random has fewer than :data:`LEAST_SEEDS` seeds, or if a part is missing.
        sentence: the numbers from which it follows.
    """

    outcome: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.sentence}"


def check_row(row: Row) -> None:
    """Check that the result of a unit is whole, and that its values can be.

    Raises:
        ValueError: a value that a rule reads is missing or cannot be: an accuracy outside of 0 to
            1, a time or a size that is not above 0, lists that are shorter than the unit's.
    """
    kind, checks = row["kind"], _CHECKS
    if kind not in checks:
        raise ValueError(f"rows must have kind {', '.join(checks)}, got {kind!r}")
    try:
        checks[kind](row)
    except KeyError as error:
        raise ValueError(f"rows must have {error} in each of kind {kind!r}") from None


_SHARE, _AMOUNT, _FINITE = "from 0 to 1", "above 0 and finite", "that is finite"


def _number(name: str, value: Any, valid: str) -> None:
    number = isinstance(value, float) or (type(value) is int and abs(value) < 10**300)
    x = float(value) if number else math.nan
    good = {_SHARE: 0 <= x <= 1, _AMOUNT: 0 < x < math.inf, _FINITE: math.isfinite(x)}
    if not good[valid]:
        raise ValueError(f"rows must have {name!r} a number {valid}, got {str(value)[:80]}")


def _numbers(name: str, values: Any, valid: str, count: int) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"rows must have {count} numbers in {name!r}, got {str(values)[:80]}")
    for value in values:
        _number(name, value, valid)


def _entries(name: str, values: Any, expected: list[Row]) -> None:
    """Check that `values` is a list of dicts, each of which says what is expected of it."""
    fits = isinstance(values, list) and len(values) == len(expected)
    if not fits or not all(isinstance(value, dict) for value in values):
        raise ValueError(
            f"rows must have {len(expected)} dicts in {name!r}, got {str(values)[:80]}"
        )
    for value, said in zip(values, expected, strict=True):
        if not said.items() <= value.items():
            raise ValueError(f"rows must have {said} in {name!r}, got {str(value)[:80]}")


def _check_train(row: Row) -> None:
    for name in ("train_accuracy", "test_accuracy"):
        _number(name, row[name], _SHARE)
    for name in ("parameters", "multiply_adds"):
        _number(name, row[name], _AMOUNT)


def _check_gradients(row: Row) -> None:
    steps = row.get("steps")
    moments = [0, steps // 4, steps] if steps else [0]
    if row["moments"] != moments or not isinstance(row["log10_norms"], list):
        raise ValueError(f"rows must have norms after {moments} steps, got {row['moments']}")
    if len(row["log10_norms"]) != len(moments):
        raise ValueError(f"rows must have {len(moments)} lists in 'log10_norms'")
    for norms in row["log10_norms"]:
        _numbers("log10_norms", norms, _FINITE, min(20, sum(row["blocks"]) + 1))  # and the stem


def _check_cuts(row: Row) -> None:
    _number("test_accuracy", row["test_accuracy"], _SHARE)
    _number("connections", row["connections"], _AMOUNT)
    ages = range(2, max(row["blocks"]) + 2)
    _entries("cuts", row["cuts"], [{"age": age} for age in ages])
    for cut in row["cuts"]:
        _number("connections", cut["connections"], _AMOUNT)
        _number("old", cut["old"], _SHARE)
        _numbers("random", cut["random"], _SHARE, DRAWS)


def _check_probes(row: Row) -> None:
    names = ["stem", *(f"block{i}" for i in range(1, len(row["blocks"]) + 1))]
    _entries("stages", row["stages"], [{"name": name} for name in names])
    for stage in row["stages"]:
        _number("test_accuracy", stage["test_accuracy"], _SHARE)
    if row["family"] == "dense":
        _numbers("classifier", row["classifier"], _AMOUNT, row["blocks"][-1] + 1)


def _check_held(row: Row) -> None:
    _number("bytes_per_image", row["bytes_per_image"], _AMOUNT)


def _check_timed(row: Row) -> None:
    _entries("times", row["times"], row["networks"])
    for entry in row["times"]:
        _number("multiply_adds", entry["multiply_adds"], _AMOUNT)
        for task in ("predict", "train"):
            _numbers(task, entry[task], _AMOUNT, row["repeats"])


_CHECKS: dict[str, Callable[[Row], None]] = {
    "train": _check_train,
    "gradients": _check_gradients,
    "cuts": _check_cuts,
    "probes": _check_probes,
    "held": _check_held,
    "timed": _check_timed,
}


def clear(differences: Sequence[float]) -> int:
    """1 or -1 if the mean is clearly above or below zero, otherwise 0."""
    if len(differences) < 2:
        return 0
    t = _T[min(len(differences), len(_T)) - 1]  # for more, a little too cautious
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    if abs(mean) < 1e-9:  # rounding errors
        return 0
    return (mean > 0) - (mean < 0) if abs(mean) > t * error else 0


def seeds(rows: Iterable[Row]) -> int:
    """The number of seeds of the networks that have fewest; costs, which have one, are left out.

    A network is what the units say that differ in the seed alone.
    """
    found: dict[str, set[int]] = {}
    for row in rows:
        if row["kind"] not in ("held", "timed") and not row.get("held_out"):
            said = [row.get(name) for name in _SAID]
            found.setdefault(str(said), set()).add(row["seed"])
    return min(map(len, found.values()), default=0)


def _by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.get(name) for name in names)
        found.setdefault(tuple(str(k) if isinstance(k, list) else k for k in key), []).append(row)
    return found


def _differences(
    ours: Iterable[Row], theirs: Iterable[Row], value: Callable[[Row], float]
) -> list[float]:
    """Ours minus theirs, for the seeds of both."""
    first = {row["seed"]: value(row) for row in ours}
    second = {row["seed"]: value(row) for row in theirs}
    return [first[seed] - second[seed] for seed in first if seed in second]


def _runs(rows: list[Row], kind: str = "train") -> list[Row]:
    """The rows of this kind, without those that chose a learning rate."""
    return [row for row in rows if row["kind"] == kind and not row.get("held_out")]


def _need(rows: Sequence[Any], what: str) -> None:
    if not rows:
        raise ValueError(f"rows must have {what}, got none")


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(list(values))


def _list(words: Iterable[str]) -> str:
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "none"


def _outcome(better: int, worse: int, total: int) -> str:
    """Holds: better in at least half, worse in none. With a condition: better somewhere."""
    if better * 2 >= total and not worse and better:
        return HOLDS
    return CONDITION if better else NOT_HERE


def _accuracy(row: Row) -> float:
    return row["test_accuracy"]


def _against_others(
    rows: list[Row], value: Callable[[Row], float], *names: str
) -> tuple[dict[tuple[Any, ...], int], dict[tuple[Any, ...], float]]:
    """By values of `names`, budget and other family: how DenseNet compares, and the difference."""
    signs, means = {}, {}
    dense = _by((row for row in rows if row["family"] == "dense"), *names)
    others = _by((row for row in rows if row["family"] != "dense"), *names, "budget", "family")
    for key, theirs in others.items():
        found = _differences(dense.get(key[:-2], []), theirs, value)
        if found:
            signs[key], means[key] = clear(found), _mean(found)
    _need([*signs], "runs of a DenseNet and of another family with the same seeds")
    return signs, means


def gradients(rows: list[Row]) -> Verdict:
    """Are gradients of equal size at all depths?

    For the deepest networks of each kind, the unevenness of a run is the absolute log10 of the
    ratio of the median gradient norms in the first and the last fifth of the layers. There are four
    conditions at the start (two initialisations, with and without batch norm), and one after
    training. Holds: DenseNet is clearly more even than the plain network in all of them. With a
    condition: in some. What it is against the residual network, the sentence says.
    """
    rows = _runs(rows, "gradients")
    _need(rows, "gradients")

    def uneven(row: Row) -> float:
        norms = row["log10_norms"][-1]
        fifth = max(1, len(norms) // 5)
        return abs(statistics.median(norms[:fifth]) - statistics.median(norms[-fifth:]))

    wins: dict[str, list[str]] = {"plain": [], "residual": []}
    losses: dict[str, list[str]] = {"plain": [], "residual": []}
    conditions, sizes = [], {}
    for (init, norm, steps), some in _by(rows, "init", "norm", "steps").items():
        layers = max(sum(row["blocks"]) for row in some)
        some = [row for row in some if sum(row["blocks"]) == layers]
        name = f"{init} initialisation {'with' if norm else 'without'} batch norm"
        name += f" after {steps} steps" if steps else ""
        conditions.append(name)
        family = {key[0]: group for key, group in _by(some, "family").items()}
        sizes[name] = {key: _mean(map(uneven, group)) for key, group in family.items()}
        for other in wins:
            sign = clear(_differences(family["dense"], family[other], uneven))
            if sign:
                (wins if sign < 0 else losses)[other].append(name)
    plain = len(wins["plain"])
    outcome = HOLDS if plain == len(conditions) else CONDITION if plain else NOT_HERE
    first = sizes[conditions[0]]
    return Verdict(
        outcome,
        f"between first and last layers of the deepest networks, gradients are clearly more even "
        f"in DenseNet than in the plain network in {plain} of {len(conditions)} conditions, and "
        f"clearly less in {len(losses['plain'])}; than in the residual network in "
        f"{len(wins['residual'])}, and less in {len(losses['residual'])} ({conditions[0]}: a "
        f"factor of 10 to the power of {first['dense']:.1f}, against {first['plain']:.1f} plain "
        f"and {first['residual']:.1f} residual)",
    )


def reuse(rows: list[Row]) -> Verdict:
    """Do later layers use the features of much earlier ones?

    Connections are old if at least half of the block's layers lie between. Holds: cutting all of
    them clearly costs accuracy, at least half as much as cutting as many at random. With a
    condition: it clearly costs something, but less. Otherwise it does not hold.
    """
    rows = _runs(rows, "cuts")
    _need(rows, "cuts")
    losses, controls = [], []
    for row in rows:
        half = math.ceil((max(cut["age"] for cut in row["cuts"]) + 1) / 2)
        (cut,) = (cut for cut in row["cuts"] if cut["age"] == half)
        losses.append(row["test_accuracy"] - cut["old"])
        controls.append(row["test_accuracy"] - _mean(cut["random"]))
    loss, control = _mean(losses), _mean(controls)
    costs = clear(losses) > 0
    outcome = HOLDS if costs and loss >= control / 2 else CONDITION if costs else NOT_HERE
    return Verdict(
        outcome,
        f"without the {cut['connections']} of {row['connections']} connections of age {half} and "
        f"above the accuracy is {100 * loss:.1f} points lower, without as many at random "
        f"{100 * control:.1f} (means of {len(rows)} seeds, from {_mean(map(_accuracy, rows)):.1%})",
    )


def parameters(rows: list[Row]) -> Verdict:
    """Is DenseNet more accurate at an equal budget?

    It is compared with each other family at each size. Holds: at equal parameters and at equal
    multiply-adds alike, it is clearly more accurate in at least half of the comparisons, and
    clearly less in none. With a condition: it is so for one budget, or clearly more accurate
    somewhere. Otherwise it does not hold.
    """
    signs, means = _against_others(_runs(rows), _accuracy, "growth_rate")
    parts, outcomes = [], []
    for budget, name in (("parameters", "parameters"), ("multiply_adds", "multiply-adds")):
        some = [key for key in signs if key[-2] == budget]
        if some:
            better = sum(signs[key] > 0 for key in some)
            worse = sum(signs[key] < 0 for key in some)
            outcomes.append(_outcome(better, worse, len(some)))
            parts.append(
                f"at equal {name} DenseNet is clearly more accurate in {better} of {len(some)} "
                f"comparisons and clearly less in {worse} (on average "
                f"{100 * _mean(means[key] for key in some):+.1f} points)"
            )
    everywhere = set(outcomes)
    outcome = everywhere.pop() if len(everywhere) == 1 else CONDITION
    return Verdict(outcome, "; ".join(parts))


def scales(rows: list[Row]) -> Verdict:
    """Are early stages already useful to a linear classifier, and does the last one use them all?

    Holds: a linear probe after the first block is clearly more accurate for DenseNet than for each
    other family, and in DenseNet's classifier the earlier half of the sources has at least half of
    the mean weight of the later half. With a condition: one of the two, or some families only.
    """
    rows = _runs(rows, "probes")
    _need(rows, "probes")

    def first(row: Row) -> float:
        return next(s["test_accuracy"] for s in row["stages"] if s["name"] == "block1")

    signs, means = _against_others(rows, first)
    shares = []
    for row in rows:
        if row["family"] == "dense":
            weights = row["classifier"]
            half = len(weights) // 2
            shares.append(_mean(weights[:half]) / _mean(weights[half:]))
    better, share = sum(sign > 0 for sign in signs.values()), _mean(shares)
    both = better == len(signs), share >= 0.5
    outcome = HOLDS if all(both) else CONDITION if better or both[1] else NOT_HERE
    differences = _list(f"{100 * means[key]:+.1f} points to {key[-1]}" for key in means)
    return Verdict(
        outcome,
        f"after the first block, a linear probe is clearly more accurate for DenseNet than for "
        f"{better} of {len(signs)} other families, and clearly less than for "
        f"{sum(sign < 0 for sign in signs.values())} ({differences}); the earlier half of the last "
        f"block's sources has {share:.2f} times the later half's weight in the classifier",
    )


def small_samples(rows: list[Row]) -> Verdict:
    """Is DenseNet more accurate with at most 500 labels, at equal parameters?

    Holds: clearly more accurate in at least half of the comparisons, and clearly less in none. With
    a condition: clearly more accurate in some.
    """
    rows = _runs(rows)
    signs, means = _against_others(rows, _accuracy, "labels")
    few = [key for key in signs if key[0] <= 500]
    _need(few, "runs with at most 500 labels")
    better, worse = sum(signs[k] > 0 for k in few), sum(signs[k] < 0 for k in few)
    by_labels = {}
    for labels in sorted({key[0] for key in signs}):
        mean = _mean(means[key] for key in means if key[0] == labels)
        by_labels[labels] = f"{100 * mean:+.1f} points with {labels:,} labels"
    return Verdict(
        _outcome(better, worse, len(few)),
        f"with at most 500 labels DenseNet is clearly more accurate than other families in "
        f"{better} of {len(few)} comparisons, and clearly less in {worse} (on average "
        f"{_list(by_labels.values())})",
    )


def _equally_accurate(rows: list[Row]) -> dict[int, Row]:
    """By growth rate of a DenseNet: the smallest residual network that is not clearly worse.

    Smallest by its number of parameters, among both kinds of residual networks and both budgets.
    """
    runs = _runs(rows)
    residual = [row for row in runs if row["family"].startswith("residual")]
    groups = list(_by(residual, "family", "budget", "growth_rate").values())
    groups.sort(key=lambda group: group[0].get("parameters", math.inf))
    found = {}
    dense = _by((row for row in runs if row["family"] == "dense"), "growth_rate")
    for (size,), ours in dense.items():
        for theirs in groups:
            if clear(_differences(theirs, ours, _accuracy)) >= 0:
                found[size] = theirs[0]
                break
    return found


def _same_network(row: Row, other: Row) -> bool:
    names = ("family", "growth_rate", "budget")
    return all(row.get(name) == other.get(name) for name in names)


def memory(rows: list[Row]) -> Verdict:
    """Does DenseNet hold more memory for the backward pass, at equal accuracy?

    For each size, it is compared with the smallest residual network that is not clearly less
    accurate; more is more than 1.1 times as much. Holds: more at half of the sizes or more, even
    with the most memory-efficient layers. With a condition: more with plain layers, but not with
    those. Where no residual network is as accurate, that size is left out.
    """
    held = _runs(rows, "held")
    _need(held, "held bytes")
    blocks = next((row["blocks"] for row in _runs(rows)), None)
    ratios: dict[Any, list[float]] = {}
    for size, other in _equally_accurate(rows).items():
        theirs = [r for r in held if _same_network(r, other) and r["blocks"] == blocks]
        for row in held:
            ours = row["family"] == "dense" and row["growth_rate"] == size
            if ours and row["blocks"] == blocks and theirs:
                ratio = row["bytes_per_image"] / theirs[0]["bytes_per_image"]
                ratios.setdefault(row["mode"], []).append(ratio)
    _need([*ratios], "held bytes of residual networks as accurate as a DenseNet")
    more = {mode: sum(r > _MORE for r in some) * 2 >= len(some) for mode, some in ratios.items()}
    outcome = HOLDS if all(more.values()) else CONDITION if more.get(False) else NOT_HERE
    words = _list(
        f"{statistics.median(some):.2f} times with {mode or 'plain'} layers"
        for mode, some in ratios.items()
    )
    deepest = max(sum(row["blocks"]) for row in held if row["family"] == "dense")
    deep = {
        r["mode"]: r["bytes_per_image"]
        for r in held
        if sum(r["blocks"]) == deepest and r["family"] == "dense"
    }
    _need([*ratios.get(False, [])], "held bytes of plain DenseNets")
    if not {False, "minimal"} <= deep.keys():
        raise ValueError("rows must have held bytes of the deepest DenseNet in each mode")
    return Verdict(
        outcome,
        f"at equal accuracy DenseNet holds {words} of what the residual network holds (medians of "
        f"{len(ratios[False])} sizes); with {deepest} layers in the blocks, the minimal mode holds "
        f"{deep['minimal'] / deep[False]:.0%} of the plain one's bytes",
    )


def time(rows: list[Row]) -> Verdict:
    """Does DenseNet take more time?

    It is compared with the residual network of equal multiply-adds, and with the smallest residual
    network that is not clearly less accurate; for prediction and training, and for both sizes of
    batches: more is a median time above 1.1 times the other's, in the median over the sizes. Holds:
    more in all of these conditions. With a condition: in some.
    """
    timed = _runs(rows, "timed")
    _need(timed, "times")
    equal = _equally_accurate(rows)
    ratios: dict[tuple[str, str, int], list[float]] = {}
    rates: dict[str, list[float]] = {}
    for row in timed:
        times = row["times"]
        for ours in (entry for entry in times if entry["family"] == "dense"):
            size = ours["growth_rate"]
            alike = {"family": "residual", "growth_rate": size, "budget": "multiply_adds"}
            for name, other in (("multiply-adds", alike), ("accuracy", equal.get(size))):
                for theirs in times:
                    if other and _same_network(theirs, other):
                        for task in ("predict", "train"):
                            ratio = statistics.median(ours[task]) / statistics.median(theirs[task])
                            key = name, task, row["batch_size"]
                            ratios.setdefault(key, []).append(ratio)
        if row["batch_size"] == max(r["batch_size"] for r in timed):
            for entry in times:
                if entry["family"] in ("dense", "residual"):
                    work = row["batch_size"] * entry["multiply_adds"]
                    rate = work / statistics.median(entry["predict"]) / 1e9
                    rates.setdefault(entry["family"], []).append(rate)
    _need([*ratios], "times of a residual network to compare with")
    slower = [key for key, some in ratios.items() if statistics.median(some) > _MORE]
    outcome = HOLDS if len(slower) == len(ratios) else CONDITION if slower else NOT_HERE
    words = _list(
        f"{statistics.median(some):.2f} times at equal {name} ({task}, batch {batch})"
        for (name, task, batch), some in ratios.items()
    )
    speeds = _list(f"{max(some):.0f} ({family})" for family, some in rates.items())
    return Verdict(
        outcome,
        f"DenseNet takes more than {_MORE} times the residual network's time in {len(slower)} of "
        f"{len(ratios)} conditions: {words}; most multiply-adds per nanosecond in a prediction: "
        f"{speeds}",
    )


def overfitting(rows: list[Row]) -> Verdict:
    """Is the gap between training and test accuracy larger than that of other families?

    Gaps are compared at equal parameters, without anything, with augmentation and with dropout.
    Holds: DenseNet's is clearly larger in at least half of the comparisons, and clearly smaller in
    none. With a condition: clearly larger in some.
    """

    def gap(row: Row) -> float:
        return row["train_accuracy"] - row["test_accuracy"]

    rows = _runs(rows)
    normal = [row for row in rows if not row.get("shuffled")]
    signs, means = _against_others(normal, gap, "drop_rate", "augment")
    larger, smaller = (sum(s == sign for s in signs.values()) for sign in (1, -1))
    shuffled = _by((row for row in rows if row.get("shuffled")), "family")
    learnt = _list(
        f"{_mean(row['train_accuracy'] for row in some):.0%} {family}"
        for (family,), some in shuffled.items()
    )
    dense = [row for row in normal if row["family"] == "dense"]
    return Verdict(
        _outcome(larger, smaller, len(signs)),
        f"DenseNet's gap is clearly larger in {larger} of {len(signs)} comparisons and clearly "
        f"smaller in {smaller} (on average {100 * _mean(means.values()):+.1f} points; its own is "
        f"{100 * _mean(map(gap, dense)):.1f}); of shuffled labels each learns by heart: {learnt}",
    )


def choices(rows: list[Row]) -> Verdict:
    """Does each of the paper's choices pay, one at a time?

    A bottleneck or compression pays if DenseNet without it is clearly less accurate, or costs more
    parameters and multiply-adds and is not clearly more accurate; the growth rate, if half of it is
    clearly less accurate; pre-activation and average pooling, if the other order or pooling is
    clearly less accurate. Holds: all five pay. With a condition: some.
    """
    by_name = {name: some for (name,), some in _by(_runs(rows), "variant").items()}
    base = by_name.pop("as in the paper", [])
    _need(base, "runs as in the paper")
    paying, parts = [], []
    for name, some in by_name.items():
        found = _differences(some, base, _accuracy)
        if not found:
            continue
        sign = clear(found)
        cheaper = all(base[0][cost] < some[0][cost] for cost in ("parameters", "multiply_adds"))
        if name in ("no bottleneck", "no compression"):
            pays = sign < 0 or (cheaper and sign == 0)
        else:
            pays = sign < 0
        if name != "twice the growth rate":
            paying.append(pays)
        cost = some[0]["parameters"] / base[0]["parameters"]
        parts.append(
            f"{name} {100 * _mean(found):+.1f} points{'' if sign else ', not clear,'} "
            f"with {cost:.2f} times the parameters"
        )
    _need(parts, "runs of a variant")
    outcome = HOLDS if all(paying) else CONDITION if any(paying) else NOT_HERE
    return Verdict(
        outcome,
        f"{sum(paying)} of {len(paying)} choices pay: {_list(parts)} (from "
        f"{_mean(map(_accuracy, base)):.1%}, {len(base)} seeds)",
    )


RULES: dict[str, Callable[[list[Row]], Verdict]] = {
    "gradients": gradients,
    "reuse": reuse,
    "parameters": parameters,
    "scales": scales,
    "small-samples": small_samples,
    "memory": memory,
    "time": time,
    "overfitting": overfitting,
    "choices": choices,
}
