"""Side by side with torchvision, on the reader's device: ``python -m densenet_tutorial benchmark memory``.

All models stand in one process and take turns, so that a change of the machine's load or temperature meets all of them.
"""

import copy
import csv
import ctypes
import gc
import io
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import memory, network
from densenet_tutorial.utils import arguments, environment, files
from densenet_tutorial.utils.arguments import Check, boolean, one_of, positive_int, sequence_of

_MIB = 2**20
_table = sequence_of(sequence_of(arguments.text))


def _of_a_dataclass(value: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError
    return value


@dataclass(frozen=True)
class MemoryFigures:
    """What one model needs for a training step, forward and backward.

    Attributes:
        name: whose model, and its `memory_efficient`.
        saved: bytes that autograd holds between forward and backward (:func:`memory.saved_activation_bytes`).
        resident: bytes by which the forward pass makes the process grow (on a GPU, what it has allocated there).
        peak: most bytes allocated on the GPU during a step, with the model.
        largest_batch: images that fit on the GPU for one step, to within an eighth.
        seconds: of the repeated steps, in order.
        ratio: the median of `seconds`, divided by that of the first model.
        from_plain: how far the gradients are from our plain model's.
        from_float64: how far they are from those that our plain model has in float64.

    What was not measured is ``None``, such as `peak` and `largest_batch` on a CPU.
    """

    name: str
    saved: int
    resident: int | None
    peak: int | None
    largest_batch: int | None
    seconds: list[float]
    ratio: float
    from_plain: float | None = None
    from_float64: float | None = None


@arguments.check(name=one_of(network.CONFIGS))
def models(name: str) -> dict[str, Callable[[], nn.Module]]:
    """What builds each model to compare: torchvision's two, where it has a model of this `name`, and our modes."""
    found: dict[str, Callable[[], nn.Module]] = {}
    theirs = getattr(torchvision.models, name, None)
    if theirs is not None:
        found["torchvision"] = theirs
        found["torchvision, memory-efficient"] = lambda: theirs(memory_efficient=True)
    for mode in (mode for mode in memory.MODES if mode is not True):
        label = f"ours, {mode}" if mode else "ours"
        found[label] = lambda mode=mode: network.densenet(name, memory_efficient=mode)
    return found


def _fits_the_model(name: str, image_size: int) -> None:
    with torch.device("meta"):  # without its memory
        least = network.densenet(name).min_size
    arguments.integer(least)("image_size", image_size)


@arguments.check(
    _fits_the_model,
    name=one_of(network.CONFIGS),
    batch_size=positive_int,
    image_size=positive_int,
    repeats=positive_int,
    device=arguments.device,
    quick=boolean,
)
def compare_memory(
    name: str = "densenet121",
    *,
    batch_size: int = 8,
    image_size: int = 224,
    repeats: int = 10,
    device: torch.device | str = "cpu",
    quick: bool = False,
) -> list[MemoryFigures]:
    """Memory and time of a training step of each of :func:`models`.

    If `quick`, what is saved and the seconds alone: the rest takes a fresh process for every model, or fills the GPU.
    """
    device = torch.device(device)
    shape = (batch_size, 3, image_size, image_size)
    x = torch.randn(shape, device=device)
    built = {label: build().to(device) for label, build in models(name).items()}
    seconds = _step_seconds(list(built.values()), x, repeats)
    distances = {} if quick else _gradient_distances(built, x)
    first = statistics.median(seconds[0])

    found = []
    for (label, model), times in zip(built.items(), seconds, strict=True):
        resident = peak = largest_batch = None
        if device.type == "cuda" and not quick:
            resident = resident_bytes(model, x)
            peak = _peak_bytes(model, x)
            largest_batch = _largest_batch(model, x)
        elif not quick:
            resident = _resident_apart(name, label, shape)
        found.append(
            MemoryFigures(
                name=label,
                saved=memory.saved_activation_bytes(model, x),
                resident=resident,
                peak=peak,
                largest_batch=largest_batch,
                seconds=times,
                ratio=statistics.median(times) / first,
                **distances.get(label, {}),
            )
        )
    return found


def _step(model: nn.Module, x: Tensor) -> None:
    model(x).mean().backward()
    model.zero_grad()


def _step_seconds(models: list[nn.Module], x: Tensor, repeats: int) -> list[list[float]]:
    """Seconds of a step, `repeats` times for every model, in turns; every other round the other way round."""
    seconds: list[list[float]] = [[] for _ in models]
    for i in range(-1, repeats):  # the first round warms up
        turns = list(zip(models, seconds, strict=True))
        for model, times in turns if i % 2 else reversed(turns):
            _wait(x.device)
            start = time.perf_counter()
            _step(model, x)
            _wait(x.device)
            if i >= 0:
                times.append(time.perf_counter() - start)
    return seconds


def _gradient_distances(models: dict[str, nn.Module], x: Tensor) -> dict[str, dict[str, float]]:
    """How far the gradients of each model are from those of our plain one, and from float64.

    All models get the weights of the one that is called "ours". The distance of two gradients is the
    norm of their difference over the norm of the second; of a model, the median over its parameters.

    Returns:
        by label, ``from_plain`` and ``from_float64``.
    """
    plain = models["ours"]
    labels = torch.arange(len(x), device=x.device) % plain.num_classes

    def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
        model.load_state_dict(plain.state_dict())
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        found = [p.grad.double() for p in model.parameters()]
        model.zero_grad()
        return found

    def distance(found: list[Tensor], others: list[Tensor]) -> float:
        pairs = zip(found, others, strict=True)
        return statistics.median(((a - b).norm() / b.norm()).item() for a, b in pairs if b.any())

    start = copy.deepcopy(plain.state_dict())
    exact = gradients(copy.deepcopy(plain).double(), x.double())
    single = gradients(plain, x)
    plain.load_state_dict(start)  # its running statistics have moved
    found = {}
    for label, model in models.items():
        ours = single if model is plain else gradients(model, x)
        found[label] = {
            "from_plain": distance(ours, single),
            "from_float64": distance(ours, exact),
        }
    return found


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@arguments.check(model=arguments.module, x=arguments.tensor("floats", "N, C, H, W"))
def resident_bytes(model: nn.Module, x: Tensor) -> int | None:
    """Bytes by which ``model(x)`` makes this process, or what it has allocated on the GPU, grow.

    On a CPU, call it in a process that has done nothing else. ``None`` on systems other than Linux.
    """
    _step(model, x)  # what is allocated once, for good
    before = _held(x.device)
    output = model(x)
    after = _held(x.device)
    del output
    return None if before is None or after is None else after - before


def _held(device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # give freed memory back to the system
        libc.malloc_trim(0)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def _resident_apart(name: str, label: str, shape: tuple[int, ...]) -> int | None:
    """:func:`resident_bytes` of one of :func:`models`, in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_resident_of, name, label, shape).result()


def _resident_of(name: str, label: str, shape: tuple[int, ...]) -> int | None:
    return resident_bytes(models(name)[label](), torch.randn(shape))


def _peak_bytes(model: nn.Module, x: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats(x.device)
    _step(model, x)
    return torch.cuda.max_memory_allocated(x.device)


def _largest_batch(model: nn.Module, x: Tensor) -> int:
    """Images of `x`'s size that fit for one step: doubled until they do not, then to within an eighth."""

    def fits(images: int) -> bool:
        try:
            _step(model, x.new_zeros(images, *x.shape[1:]))
            return True
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            model.zero_grad()
            torch.cuda.empty_cache()

    fitting = len(x)
    while fits(2 * fitting):
        fitting *= 2
    step = fitting // 2
    while step >= max(1, fitting // 8):
        if fits(fitting + step):
            fitting += step
        step //= 2
    return fitting


@arguments.check(
    figures=sequence_of(arguments.instance_of(MemoryFigures, "a MemoryFigures")),
    batch_size=positive_int,
)
def memory_rows(figures: list[MemoryFigures], batch_size: int) -> list[tuple[str, ...]]:
    """The figures as the rows of a table with a heading, memory in MiB per image; without columns that say nothing."""

    def mib(value: int | None) -> str:
        return "–" if value is None else f"{value / batch_size / _MIB:.1f}"

    def distance(value: float | None) -> str:
        return "–" if value is None else f"{value:.0e}" if value else "0"

    rows = [
        ("Model", "Saved", "Resident", "Peak", "Batch", "Step, s", "from", "to", "Ratio")
        + ("From plain", "From float64")
    ]
    for f in figures:
        times = (statistics.median(f.seconds), min(f.seconds), max(f.seconds))
        rows.append(
            (
                f.name,
                *(mib(value) for value in (f.saved, f.resident, f.peak)),
                "–" if f.largest_batch is None else str(f.largest_batch),
                *(f"{value:.3f}" for value in times),
                f"{f.ratio:.2f}",
                distance(f.from_plain),
                distance(f.from_float64),
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"–"}]
    return list(zip(*columns, strict=True))


def _equal_lengths(rows: list[tuple[str, ...]]) -> None:
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"rows must be of the same length, got {arguments.shown(rows)}")


@arguments.check(_equal_lengths, rows=_table)
def as_text(rows: list[tuple[str, ...]]) -> str:
    """`rows` as lines, with columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if i else f"{cell:<{width}}" for i, (cell, width) in cells)
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    )


def _is_no_table(path: str | Path) -> None:
    if Path(path).suffix == ".csv":
        raise ValueError(
            f"path must not end in .csv, as the table beside it does, got {str(path)!r}"
        )


@arguments.check(
    _is_no_table,
    _equal_lengths,
    path=arguments.path,
    command=arguments.text,
    setting=arguments.instance_of(dict, "a dict"),
    figures=sequence_of(Check("an object of a dataclass", _of_a_dataclass)),
    rows=_table,
)
def write_results(
    path: str | Path,
    command: str,
    setting: dict[str, Any],
    figures: Sequence[Any],
    rows: list[tuple[str, ...]],
) -> None:
    """Write the figures, and what they were measured with, on and when, to `path`; and `rows` to a .csv beside it."""
    content = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(line.split(": ", 1) for line in environment.report().splitlines()),
        "setting": setting,
        "figures": [asdict(figure) for figure in figures],
    }
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    files.write(Path(path).with_suffix(".csv"), table.getvalue().encode())
