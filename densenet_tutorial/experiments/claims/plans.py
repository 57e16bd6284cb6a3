"""The nine claims: which units each of them needs, in a tiny and in a full version.

Where families are compared, each is trained with its own learning rate: the best of three for its
middle size, by the accuracy on images on which no network is trained, with a seed that is used for
nothing else. So the units with a learning rate depend on the rows of those that chose it. All other
hyperparameters are the same for all families and were tuned for none.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from densenet_tutorial.experiments.claims.trained import Unit
from densenet_tutorial.experiments.claims.verdicts import check_row

Row = dict[str, Any]

#: The families that are compared.
FAMILIES = ("plain", "residual", "residual-v1", "dense")

#: The seed with which learning rates are chosen.
TUNING_SEED = 1000

#: One factor of the paper's choices changed at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "no bottleneck": {"bn_size": None},
    "no compression": {"compression": 1.0},
    "half the growth rate": {"growth": 0.5},
    "twice the growth rate": {"growth": 2},
    "convolution before norm and ReLU": {"order": "post"},
    "max pooling": {"pooling": "max"},
}


@dataclass(frozen=True)
class Scale:
    """The size of all experiments.

    Attributes:
        data: the data set.
        blocks: layers in each block.
        sizes: growth rates of the DenseNets, four sizes in the full version.
        middle: the growth rate where one size is compared.
        seeds: number of seeds.
        labels: number of training images.
        steps: optimizer steps, the same for all families.
        batch_size: images per step.
        rates: learning rates to choose from.
        few: numbers of labels, and the steps for each.
        reuse_blocks: layers in each block, where connections are cut.
        depths: layers in each of three blocks, for gradients and memory.
        gradient_steps: steps after which gradients are measured again.
        repeats: calls that are timed.
        batches: images per call that are timed.
    """

    data: str
    blocks: tuple[int, ...]
    sizes: tuple[int, ...]
    middle: int
    seeds: int
    labels: int
    steps: int
    batch_size: int
    rates: tuple[float, ...]
    few: tuple[tuple[int, int], ...]
    reuse_blocks: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    gradient_steps: int
    repeats: int
    batches: tuple[int, ...]


TINY = Scale(
    data="digits",
    blocks=(2, 2),
    sizes=(8, 12),
    middle=8,
    seeds=2,
    labels=300,
    steps=20,
    batch_size=30,
    rates=(0.05, 0.1, 0.2),
    few=((50, 10), (150, 10)),
    reuse_blocks=(3, 3),
    depths=((2, 2), (6, 6)),
    gradient_steps=10,
    repeats=3,
    batches=(1, 16),
)

FULL = Scale(
    data="fashion-mnist",
    blocks=(3, 3, 3),
    sizes=(6, 8, 12, 16),
    middle=12,
    seeds=5,
    labels=6400,
    steps=300,
    batch_size=64,
    rates=(0.05, 0.1, 0.2),
    few=((50, 100), (150, 150), (500, 200), (1500, 250), (5000, 300), (15000, 300)),
    reuse_blocks=(6, 6, 6),
    depths=((3, 3, 3), (8, 8, 8), (16, 16, 16), (33, 33, 33)),
    gradient_steps=60,
    repeats=20,
    batches=(1, 256),
)


def setting(scale: Scale) -> dict[str, Any]:
    """What a results file says about how its numbers were made."""
    return asdict(scale) | {
        "families": FAMILIES,
        "budgets": "networks that are compared are of equal depth, and of an equal number of "
        "parameters or multiply-adds within 3 %; all train for the same number of steps on the "
        "same images in batches of the same size",
        "tuning": f"each family at the best of {len(scale.rates)} learning rates, for its middle "
        "size, with one seed that is used for nothing else, by the accuracy on a sixth of the "
        "training images on which no network is trained; nothing else was tuned",
        "recipe": "SGD with Nesterov momentum 0.9, one cycle, weight decay 5e-4, no augmentation",
    }


def _train(scale: Scale, family: str, **more: Any) -> Unit:
    unit = {
        "kind": "train",
        "data": scale.data,
        "family": family,
        "blocks": list(scale.blocks),
        "growth_rate": scale.middle,
        "labels": scale.labels,
        "steps": scale.steps,
        "batch_size": scale.batch_size,
        **more,
    }
    if family != "dense":
        unit.setdefault("budget", "parameters")
    return unit


def _seeds(scale: Scale) -> Iterable[int]:
    return range(scale.seeds)


def _tuning(scale: Scale, **more: Any) -> list[Unit]:
    """The runs that choose a learning rate for each family."""
    return [
        _train(scale, family, seed=TUNING_SEED, held_out=True, lr=rate, **more)
        for family in FAMILIES
        for rate in scale.rates
    ]


def _rates(tuning: list[Unit], rows: list[Row]) -> dict[str, float]:
    """The best learning rate by family, for the families of which every run has ended."""
    found: dict[str, float] = {}
    for family in FAMILIES:
        units = [unit for unit in tuning if unit["family"] == family]
        ended = [row for unit in units for row in rows if unit.items() <= row.items()]
        if len(ended) == len(units):
            found[family] = max(ended, key=lambda row: row["test_accuracy"])["lr"]
    return found


def gradients(scale: Scale, rows: list[Row]) -> list[Unit]:
    families = ("plain", "residual", "dense")
    shared = {"kind": "gradients", "data": scale.data, "growth_rate": 4, "batch_size": 32}
    every = itertools.product(_seeds(scale), scale.depths, families)
    found = []
    for seed, blocks, family in every:
        network = {"family": family, "blocks": list(blocks), "labels": 320, "seed": seed}
        if family != "dense":
            network["budget"] = "parameters"
        for init, norm in itertools.product(("kaiming", "default"), (True, False)):
            found.append(shared | network | {"init": init, "norm": norm})
        if blocks in (scale.depths[0], scale.depths[-2]):
            more = {"init": "kaiming", "norm": True, "steps": scale.gradient_steps, "lr": 0.05}
            found.append(shared | network | more)
    return found


def reuse(scale: Scale, rows: list[Row]) -> list[Unit]:
    blocks = list(scale.reuse_blocks)
    return [
        _train(scale, "dense", blocks=blocks, seed=seed, lr=0.1) | {"kind": "cuts"}
        for seed in _seeds(scale)
    ]


def parameters(scale: Scale, rows: list[Row]) -> list[Unit]:
    found = _tuning(scale)
    rates = _rates(found, rows)
    # At equal multiply-adds, stacked networks have three times the parameters: there, half of the
    # sizes are compared.
    budgets = [("parameters", scale.sizes), ("multiply_adds", scale.sizes[::2])]
    for seed, (family, rate) in itertools.product(_seeds(scale), rates.items()):
        for budget, sizes in budgets:
            for size in sizes:
                more = {} if family == "dense" else {"budget": budget}
                unit = _train(scale, family, growth_rate=size, seed=seed, lr=rate, **more)
                if unit not in found:
                    found.append(unit)
    return found


def scales(scale: Scale, rows: list[Row]) -> list[Unit]:
    found = _tuning(scale)
    rates = _rates(found, rows)
    return found + [
        _train(scale, family, seed=seed, lr=rate) | {"kind": "probes"}
        for seed, (family, rate) in itertools.product(_seeds(scale), rates.items())
    ]


def small_samples(scale: Scale, rows: list[Row]) -> list[Unit]:
    found = []
    for labels, steps in scale.few:
        more = {"labels": labels, "steps": steps, "batch_size": min(50, scale.batch_size)}
        tuning = _tuning(scale, **more)
        rates = _rates(tuning, rows)
        found += tuning + [
            _train(scale, family, seed=seed, lr=rate, **more)
            for seed, (family, rate) in itertools.product(_seeds(scale), rates.items())
        ]
    return found


def memory(scale: Scale, rows: list[Row]) -> list[Unit]:
    shared = {"kind": "held", "data": scale.data, "labels": 320, "batch_size": 8, "seed": 0}
    found: list[Unit] = []
    for mode in (False, "checkpoint", "recompute", "minimal"):
        for size in scale.sizes:
            network = {"family": "dense", "growth_rate": size, "blocks": list(scale.blocks)}
            found.append(shared | network | {"mode": mode})
        for blocks in scale.depths:
            network = {"family": "dense", "growth_rate": scale.middle, "blocks": list(blocks)}
            found.append(shared | network | {"mode": mode})
    for family in ("residual", "residual-v1"):
        networks = [("parameters", size, scale.blocks) for size in scale.sizes]
        networks += [("multiply_adds", size, scale.blocks) for size in scale.sizes[::2]]
        networks += [("parameters", scale.middle, blocks) for blocks in scale.depths]
        for budget, size, blocks in networks:
            network = {"family": family, "growth_rate": size, "blocks": list(blocks)}
            found.append(shared | network | {"budget": budget, "mode": False})
    return _once(found) + parameters(scale, rows)


def time(scale: Scale, rows: list[Row]) -> list[Unit]:
    networks = []
    for family, size in itertools.product(FAMILIES, scale.sizes):
        if family == "dense":
            networks.append({"family": family, "growth_rate": size})
            continue
        for budget in ("parameters", "multiply_adds"):
            if budget == "parameters" or size in scale.sizes[::2]:  # as they are trained
                networks.append({"family": family, "growth_rate": size, "budget": budget})
    found: list[Unit] = [
        {
            "kind": "timed",
            "data": scale.data,
            "labels": max(320, *scale.batches),
            "blocks": list(scale.blocks),
            "networks": networks,
            "batch_size": batch_size,
            "repeats": scale.repeats,
            "seed": 0,
        }
        for batch_size in scale.batches
    ]
    return found + parameters(scale, rows)


def overfitting(scale: Scale, rows: list[Row]) -> list[Unit]:
    labels = min(1000, scale.labels)
    found = _tuning(scale, labels=labels)
    rates = _rates(found, rows)
    regimes: list[dict[str, Any]] = [
        {},
        {"augment": ["crop", "flip"]},
        {"drop_rate": 0.2},
        {"shuffled": True},
    ]
    every = itertools.product(_seeds(scale), regimes, rates.items())
    return found + [
        _train(scale, family, labels=labels, seed=seed, lr=rate, **regime)
        for seed, regime, (family, rate) in every
    ]


def choices(scale: Scale, rows: list[Row]) -> list[Unit]:
    found = []
    for seed, (name, changed) in itertools.product(_seeds(scale), VARIANTS.items()):
        changed = dict(changed)
        growth = int(scale.middle * changed.pop("growth", 1))
        more = {"growth_rate": growth, "seed": seed, "lr": 0.1, "variant": name}
        found.append(_train(scale, "dense", **more, **changed))
    return found


def _once(units: list[Unit]) -> list[Unit]:
    return [unit for i, unit in enumerate(units) if unit not in units[:i]]


#: What is claimed, and the units that test it.
CLAIMS: dict[str, tuple[str, Callable[[Scale, list[Row]], list[Unit]]]] = {
    "gradients": ("information and gradients flow better", gradients),
    "reuse": ("features are reused", reuse),
    "parameters": ("fewer parameters are needed", parameters),
    "scales": ("early layers give features of several scales", scales),
    "small-samples": ("small samples are enough", small_samples),
    "memory": ("more memory is needed", memory),
    "time": ("more computation and time are needed", time),
    "overfitting": ("the network may overfit", overfitting),
    "choices": ("the paper's own choices are good", choices),
}


@functools.lru_cache
def scale(full: bool, data: str | None) -> Scale:
    """The tiny or full size, with another data set if `data` is given."""
    size = FULL if full else TINY
    return size if data is None else Scale(**(asdict(size) | {"data": data}))


def cost(unit: Unit) -> float:
    """About how long a unit takes, in layers times steps: for the progress bar."""
    layers = sum(unit["blocks"])
    if unit["kind"] == "timed":
        return 4.0 * layers * unit["repeats"] * len(unit["networks"])
    return layers * (unit.get("steps", 0) + 20.0)


def key(unit: Unit) -> str:
    """A unit as text, which is the same for equal units."""
    return json.dumps(unit, sort_keys=True)


def measured(name: str, scale: Scale, rows: Iterable[Row]) -> tuple[list[Row], list[Unit]]:
    """Of a claim's units: the rows of those that were measured, and those that are missing.

    Units that wait for a learning rate are missing with any. Rows of other units are left out.

    Raises:
        ValueError: there are two rows of the same unit, or a row's values cannot be.
    """
    try:  # lists for tuples, and numbers of Python's own
        rows = [json.loads(json.dumps(row)) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"rows must have plain values, as in JSON: {error}") from None
    entries, found = _entries(scale), dict[str, list[Row]]()
    for row in rows:
        unit = {entry: row[entry] for entry in entries if entry in row}
        found.setdefault(key(unit), []).append(row)

    def rows_of(units: Iterable[Unit]) -> list[Row]:
        some = [found[key(unit)] for unit in units if key(unit) in found]
        for row, *more in some:
            if more:
                unit = key({entry: row[entry] for entry in entries if entry in row})
                raise ValueError(f"rows must have each unit once, got {1 + len(more)} of {unit}")
            check_row(row)
        return [row for (row,) in some]

    plan = CLAIMS[name][1]
    first = plan(scale, [])
    chosen = rows_of(unit for unit in first if unit.get("held_out"))
    waiting = assumed(unit for unit in first if key(unit) not in found)
    units = list({key(unit): unit for unit in plan(scale, chosen + waiting)}.values())
    return rows_of(units), [unit for unit in units if key(unit) not in found]


@functools.lru_cache
def _entries(scale: Scale) -> set[str]:
    """What units say, of whichever claim: a row has results besides."""
    units = [unit for _, plan in CLAIMS.values() for unit in plan(scale, assumed(plan(scale, [])))]
    return set().union(*units)


def assumed(units: Iterable[Unit]) -> list[Row]:
    """Rows as if the runs that choose learning rates had ended."""
    return [unit | {"test_accuracy": 0.0} for unit in units if unit.get("held_out")]
