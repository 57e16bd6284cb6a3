"""Benchmarks against torchvision: ``python -m densenet_tutorial benchmark memory``.

All models take turns in one process, so that changes of load or temperature affect all of them.
"""

import contextlib
import copy
import csv
import ctypes
import gc
import io
import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_tutorial import memory, network
from densenet_tutorial.experiments.speed import check_image_size, in_turns
from densenet_tutorial.utils import arguments, environment, files
from densenet_tutorial.utils.arguments import Check, boolean, one_of, positive_int, sequence_of

_MIB = 2**20
_table = sequence_of(sequence_of(arguments.text))


def _dataclass_instance(value: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError
    return value


@dataclass(frozen=True)
class MemoryMeasurement:
    """Memory and time of one model's training step, forward and backward.

    Attributes:
        name: "ours" or "torchvision", and the `memory_efficient` mode.
        saved: bytes that autograd holds between forward and backward pass
            (:func:`memory.saved_activation_bytes`).
        resident: growth of the process during the forward pass, in bytes (on a GPU: of the
            allocated memory).
        peak: maximum number of bytes that a step allocates on the GPU.
        largest_batch: number of images that fit on the GPU for one step, within an eighth.
        seconds: durations of the repeated steps, in order.
        ratio: the median of `seconds`, divided by that of the first model.
        from_plain: relative distance of the gradients from our plain model's.
        from_float64: relative distance of the gradients from our plain model's in float64.

    Values that were not measured are ``None``, such as `peak` and `largest_batch` on a CPU.
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
    """Builders of the models to compare: torchvision's two, if it has this model, and our modes."""
    found: dict[str, Callable[[], nn.Module]] = {}
    theirs = getattr(torchvision.models, name, None)
    if theirs is not None:
        found["torchvision"] = theirs
        found["torchvision, memory-efficient"] = partial(theirs, memory_efficient=True)
    # "fused" keeps what "recompute" keeps, and is another in channels_last alone.
    for mode in (mode for mode in memory.MODES if mode not in (True, "fused")):
        label = f"ours, {mode}" if mode else "ours"
        found[label] = partial(network.densenet, name, memory_efficient=mode)
    return found


@arguments.check(
    check_image_size,
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
) -> list[MemoryMeasurement]:
    """Memory and time of a training step of each of :func:`models`.

    If `quick`, only `saved` and `seconds` are measured; the rest needs a new process for every
    model, or fills the GPU.
    """
    device = torch.device(device)
    shape = (batch_size, 3, image_size, image_size)
    x = torch.randn(shape, device=device)
    built = {label: build().to(device) for label, build in models(name).items()}
    steps = {label: partial(_step, model, x) for label, model in built.items()}
    seconds = in_turns(steps, repeats, device)
    distances = {} if quick else _gradient_distances(built, x)
    first = statistics.median(next(iter(seconds.values())))

    found = []
    for label, model in built.items():
        resident = peak = largest_batch = None
        if device.type == "cuda" and not quick:
            resident = resident_bytes(model, x)
            peak = _peak_bytes(model, x)
            largest_batch = _largest_batch(model, x)
        elif not quick:
            resident = _resident_in_subprocess(name, label, shape)
        found.append(
            MemoryMeasurement(
                name=label,
                saved=memory.saved_activation_bytes(model, x),
                resident=resident,
                peak=peak,
                largest_batch=largest_batch,
                seconds=seconds[label],
                ratio=statistics.median(seconds[label]) / first,
                **distances.get(label, {}),
            )
        )
    return found


def _step(model: nn.Module, x: Tensor) -> None:
    model(x).mean().backward()
    model.zero_grad()


def _gradient_distances(models: dict[str, nn.Module], x: Tensor) -> dict[str, dict[str, float]]:
    """By label: distances of the gradients from the plain model's, and from those in float64.

    All models get the weights of "ours". The distance of two gradients is the norm of their
    difference divided by the norm of the second; a model's is the median over its parameters.
    """
    plain: Any = models["ours"]
    labels = torch.arange(len(x), device=x.device) % plain.num_classes

    def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
        model.load_state_dict(plain.state_dict())
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        found = [p.grad.double() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    def distance(found: list[Tensor], others: list[Tensor]) -> float:
        pairs = zip(found, others, strict=True)
        return statistics.median(((a - b).norm() / b.norm()).item() for a, b in pairs if b.any())

    start = copy.deepcopy(plain.state_dict())
    exact = gradients(copy.deepcopy(plain).double(), x.double())
    single = gradients(plain, x)
    plain.load_state_dict(start)  # restores the running statistics
    found = {}
    for label, model in models.items():
        ours = single if model is plain else gradients(model, x)
        found[label] = {
            "from_plain": distance(ours, single),
            "from_float64": distance(ours, exact),
        }
    return found


@arguments.check(model=arguments.module, x=arguments.tensor("floats", "N, C, H, W"))
def resident_bytes(model: nn.Module, x: Tensor) -> int | None:
    """Growth of this process, or of the memory allocated on the GPU, during ``model(x)``, in bytes.

    On a CPU, call it in a process that has done nothing else. ``None`` on systems other than Linux.
    """
    _step(model, x)  # warm-up, for memory that is allocated once
    before = _memory_in_use(x.device)
    output = model(x)
    after = _memory_in_use(x.device)
    del output
    return None if before is None or after is None else after - before


def _memory_in_use(device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # give freed memory back to the system
        libc.malloc_trim(0)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def _resident_in_subprocess(name: str, label: str, shape: tuple[int, ...]) -> int | None:
    """:func:`resident_bytes` of one of :func:`models`, in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        with not_interrupted():  # Ctrl-C reaches all processes: the new one leaves it to this one
            resident = process.submit(_resident_of, name, label, shape)
        return resident.result()


@contextlib.contextmanager
def not_interrupted() -> Iterator[None]:
    """Ignore SIGINT, as do processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _resident_of(name: str, label: str, shape: tuple[int, ...]) -> int | None:
    return resident_bytes(models(name)[label](), torch.randn(shape))


def _peak_bytes(model: nn.Module, x: Tensor) -> int:
    """Growth of the memory allocated on the GPU during a step, at its highest, in bytes."""
    before = _memory_in_use(x.device) or 0
    torch.cuda.reset_peak_memory_stats(x.device)
    _step(model, x)
    return torch.cuda.max_memory_allocated(x.device) - before


def _largest_batch(model: nn.Module, x: Tensor) -> int:
    """Number of images like `x` that fit on the GPU for one step, within an eighth."""

    def fits(images: int) -> bool:
        try:
            _step(model, x.new_zeros(images, *x.shape[1:]))
            return True
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            model.zero_grad()
            gc.collect()  # the error's frames hold tensors
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
    figures=sequence_of(arguments.instance_of(MemoryMeasurement, "a MemoryMeasurement")),
    batch_size=positive_int,
)
def memory_rows(figures: list[MemoryMeasurement], batch_size: int) -> list[tuple[str, ...]]:
    """The rows of a table with a header, memory in MiB per image; without empty columns."""

    def mib(value: int | None) -> str:
        return "–" if value is None else f"{value / batch_size / _MIB:.1f}"

    def distance(value: float | None) -> str:
        return "–" if value is None else f"{value:.0e}" if value else "0"

    header = ("Model", "Saved", "Resident", "Peak", "Batch", "Step, s", "from", "to", "Ratio")
    rows: list[tuple[str, ...]] = [(*header, "From plain", "From float64")]
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
    """`rows` as lines of text, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if i else f"{cell:<{width}}" for i, (cell, width) in cells)
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    )


@arguments.check(path=arguments.path)
def check_output(path: str | Path) -> None:
    """Raise a ValueError unless :func:`write_results` could write to `path`."""
    if Path(path).suffix.lower() == ".csv":
        raise ValueError(
            f"path must not end in .csv, as the table beside it does, got {str(path)!r}"
        )
    if not Path(path).parent.is_dir():
        raise ValueError(f"path must be a file in a folder that exists, got {str(path)!r}")
    table = Path(path).parent / f"{Path(path).stem}.csv"
    for file in (Path(path), table):
        if file.exists() and not file.is_file():
            raise ValueError(f"path must be a file, got {str(path)!r}; {file.name!r} is none")


@arguments.check(
    check_output,
    _equal_lengths,
    path=arguments.path,
    command=arguments.text,
    setting=arguments.instance_of(dict, "a dict"),
    figures=sequence_of(Check("an instance of a dataclass", _dataclass_instance)),
    rows=_table,
)
def write_results(
    path: str | Path,
    command: str,
    setting: dict[str, Any],
    figures: Sequence[Any],
    rows: list[tuple[str, ...]],
) -> None:
    """Write measurements and their metadata as JSON to `path`, and `rows` to a .csv beside it."""
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
