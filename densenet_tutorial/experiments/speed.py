"""Time of prediction and of training steps: ``python -m densenet_tutorial benchmark speed``.

All models take turns in one process, so that changes of load or temperature affect all of them.
"""

import contextlib
import copy
import importlib.util
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

from densenet_tutorial import inference, memory, network
from densenet_tutorial.utils import arguments
from densenet_tutorial.utils.arguments import (
    Check,
    boolean,
    mapping_of,
    one_of,
    positive_int,
    sequence_of,
)

__all__ = [
    "MAX_SPREAD",
    "TASKS",
    "BytesAlone",
    "ConvolutionsAlone",
    "SpeedMeasurement",
    "compare_speed",
    "in_turns",
    "quantized",
    "results",
    "speed_rows",
]

#: What :func:`compare_speed` can measure: a prediction, or a training step.
TASKS = ("predict", "train")

#: A series is marked as busy if its median is above its fastest by more than this fraction.
MAX_SPREAD = 0.1


@dataclass(frozen=True)
class SpeedMeasurement:
    """Times of one model.

    Attributes:
        task: "predict", or "train" for a forward and a backward pass.
        batch_size: images per call.
        name: the model, its memory format and its precision.
        seconds: durations of the repeated calls, in order.
        ratio: the fastest of `seconds`, divided by that of the first model.
        ratio_of_medians: the same for the medians.
        busy: whether the median is above the fastest by more than :data:`MAX_SPREAD`: the machine
            did something else as well.
    """

    task: str
    batch_size: int
    name: str
    seconds: list[float]
    ratio: float
    ratio_of_medians: float
    busy: bool


class ConvolutionsAlone(nn.Module):
    """The convolutions of a model, back to back, each on an input of its own.

    What a model computes besides can be saved, these cannot: a limit for the time of this model.

    Args:
        model: a model with ``nn.Conv2d`` modules.
        x: (N, C, H, W), an input of `model`, for the shapes. In training mode the inputs of all
            convolutions but the first need gradients, as in `model`.
    """

    @arguments.check(model=arguments.module, x=arguments.tensor("floats", "N, C, H, W"))
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self._calls: list[tuple[nn.Conv2d, Tensor]] = []
        plain = copy.deepcopy(model).eval()
        for module in plain.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(self._record)
        with torch.no_grad():
            plain(x)
        self.convolutions = nn.ModuleList(module for module, _ in self._calls)
        for module in self.convolutions:
            module._forward_pre_hooks.clear()
        self._inputs = [
            torch.randn_like(read).requires_grad_(i > 0) for i, (_, read) in enumerate(self._calls)
        ]
        del self._calls

    def _record(self, module: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        self._calls.append((module, inputs[0]))

    def forward(self, x: Tensor | None = None) -> list[Tensor]:
        """The outputs of the convolutions, in order; `x` is ignored."""
        for read in self._inputs:
            read.grad = None  # of the last call
        return [conv(read) for conv, read in zip(self.convolutions, self._inputs, strict=True)]


class BytesAlone(nn.Module):
    """As many bytes as the passes of a model read and write, copied, and nothing computed.

    To be compared with the time of a model whose tensors do not fit into the caches: its bytes at
    the bandwidth of this machine's memory. It is no strict limit: what is computed in one pass, as
    by :class:`inference.BottleneckLayer` on a GPU, counts as two, and what no module computes does
    not count.

    Args:
        model: a model, whose modules without children are its passes; in-place ones count as well.
        x: (N, C, H, W), an input of `model`, for the shapes.

    Attributes:
        total: number of bytes, read and written.
    """

    #: Bytes of a copy, above those of any cache.
    _PIECE = 2**28

    @arguments.check(model=arguments.module, x=arguments.tensor("floats", "N, C, H, W"))
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.total = 0
        counted = copy.deepcopy(model).eval()
        for module in counted.modules():
            if not list(module.children()):
                module.register_forward_hook(self._count)
        with torch.no_grad():
            counted(x)
        self._read = torch.zeros(self._PIECE, dtype=torch.uint8, device=x.device)
        self._written = torch.zeros_like(self._read)

    def _count(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weights = sum(tensor.nbytes for tensor in module.parameters())
        self.total += inputs[0].nbytes + weights + output.nbytes

    def forward(self, x: Tensor | None = None) -> None:
        """Copy them; `x` is ignored."""
        left = self.total // 2  # a copy reads and writes
        while left > 0:
            self._written[:left].copy_(self._read[:left])
            left -= self._PIECE


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


@arguments.check(
    steps=mapping_of(Check("a function", _function)),
    repeats=positive_int,
    device=arguments.device,
)
def in_turns(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of each call of each of `steps`, which take turns, after two rounds of warm-up.

    Args:
        steps: functions without arguments, by name.
        repeats: calls of each that are timed.
        device: where they compute; a GPU is waited for.
    """
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(-2, repeats):
        turns = list(steps.items())
        for name, step in turns if i % 2 else reversed(turns):  # every other round backwards
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def check_image_size(name: str, image_size: int) -> None:
    """Raise a ValueError if images of this size are too small for the model of this name."""
    with torch.device("meta"):  # needs no memory
        least = network.densenet(name).min_size
    arguments.integer(least)("image_size", image_size)


def _leave_two_values(
    name: str, tasks: Sequence[str], batch_sizes: Sequence[int], image_size: int
) -> None:
    if "train" not in tasks or min(batch_sizes) > 1:
        return
    with torch.device("meta"):
        image = torch.empty(1, 3, image_size, image_size)
        last = network.densenet(name).eval().forward_features(image)
    if last.shape[2:].numel() == 1:
        raise ValueError(
            "image_size must leave more than one pixel of a single image, to train with it, "
            f"got {image_size}"
        )


@arguments.check(
    check_image_size,
    _leave_two_values,
    name=one_of(network.CONFIGS),
    tasks=sequence_of(one_of(TASKS)),
    batch_sizes=sequence_of(positive_int),
    image_size=positive_int,
    repeats=positive_int,
    device=arguments.device,
    amp=boolean,
    compiled=boolean,
)
def compare_speed(
    name: str = "densenet121",
    *,
    tasks: Sequence[str] = TASKS,
    batch_sizes: Sequence[int] = (1, 8),
    image_size: int = 224,
    repeats: int = 15,
    device: torch.device | str = "cpu",
    amp: bool = False,
    compiled: bool = False,
) -> list[SpeedMeasurement]:
    """Time of the models of torchvision, timm (if installed) and this package, in turns.

    Args:
        name: a named model; torchvision's and timm's are left out if they have none of this name.
        tasks: of :data:`TASKS`; each is measured with each of `batch_sizes`.
        batch_sizes, image_size: of the images, random numbers.
        repeats: calls that are timed, per model.
        device: a device of PyTorch.
        amp: whether every model computes under ``torch.autocast`` in bfloat16.
        compiled: whether to add models that ``torch.compile`` compiled.
    """
    device = torch.device(device)
    found = []
    for task, batch_size in itertools.product(tasks, batch_sizes):
        x = torch.randn(batch_size, 3, image_size, image_size, device=device)
        last = x.contiguous(memory_format=torch.channels_last)
        steps = {
            label: _step(task, model, last if "channels_last" in label else x, amp)
            for label, model in _models(name, task, x, amp, compiled).items()
        }
        seconds = in_turns(steps, repeats, device)
        first = next(iter(seconds.values()))
        found += [
            SpeedMeasurement(
                task,
                batch_size,
                label,
                times,
                ratio=min(times) / min(first),
                ratio_of_medians=statistics.median(times) / statistics.median(first),
                busy=statistics.median(times) > (1 + MAX_SPREAD) * min(times),
            )
            for label, times in seconds.items()
        ]
    return found


def _step(task: str, model: nn.Module, x: Tensor, amp: bool) -> Callable[[], object]:
    precision = _precision(x.device, amp)

    def predict() -> object:
        with torch.no_grad(), precision:
            return model(x)

    def train() -> None:
        with precision:
            output = model(x)
        outputs = output if isinstance(output, list) else [output]
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
        model.zero_grad()

    return predict if task == "predict" else train


def _precision(device: torch.device, amp: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=amp)


def _models(name: str, task: str, x: Tensor, amp: bool, compiled: bool) -> dict[str, nn.Module]:
    """The models to compare, by label; all with the same weights."""
    ours = network.densenet(name).to(x.device)
    plain: dict[str, nn.Module] = {}
    for library in (torchvision, _timm()):
        theirs = getattr(getattr(library, "models", None), name, None)
        if theirs is not None:
            version = f" {library.__version__}" if library is not torchvision else ""
            plain[library.__name__ + version] = theirs().to(x.device)
    if "torchvision" in plain:
        plain["torchvision"].load_state_dict(ours.state_dict())
    plain["ours"] = ours
    found: dict[str, nn.Module] = {}
    for label, model in plain.items():
        found[label] = model
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found[f"{label}, channels_last"] = last
    fastest = found["ours, channels_last"]
    if task == "predict":
        for model in found.values():
            model.eval()
        optimize = partial(inference.optimize_for_inference, ours)
        found["optimized"] = optimize()
        if not amp:
            found["optimized, bfloat16"] = optimize(dtype=torch.bfloat16)
        if not amp and x.is_cuda:
            found["optimized, CUDA graph"] = optimize(cuda_graphs=True)
            graphs = optimize(dtype=torch.bfloat16, cuda_graphs=True)
            found["optimized, bfloat16, CUDA graph"] = graphs
        if not amp and x.device.type == "cpu" and _can_quantize():
            found["ours, int8"] = quantized(ours, x[:1])
    else:
        for mode in memory.VARIANTS:
            copied = memory.set_memory_efficient(copy.deepcopy(fastest), mode)
            found[f"ours, {mode}, channels_last"] = copied
        if x.is_cuda:
            for base in ("torchvision", "ours", "ours, recompute", "ours, fused"):
                label = f"{base}, channels_last"
                if label in found:
                    found[f"{label}, CUDA graph"] = _graphed(found[label], x, amp)
    if compiled:
        for label in list(found):
            if label.split(",")[0] in ("torchvision", "ours", "optimized") and not (
                "bf" in label or "graph" in label
            ):
                found[f"{label}, compiled"] = cast(
                    nn.Module, torch.compile(copy.deepcopy(found[label]))
                )
    limited = found["optimized"] if task == "predict" else fastest
    images = x.contiguous(memory_format=torch.channels_last)
    found["convolutions alone"] = ConvolutionsAlone(limited, images)
    if task == "predict" and not amp:
        found["bytes alone"] = BytesAlone(limited, images)
    return found


@arguments.check(model=arguments.module, x=arguments.tensor("floats", "N, C, H, W"))
def quantized(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of a model for prediction on a CPU that computes with 8-bit integers.

    That is PyTorch's static quantisation of an FX graph, which it has deprecated in favour of
    another package, torchao.

    Args:
        model: in evaluation mode.
        x: (N, C, H, W), images from which it finds the range of each tensor's values.
    """
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        settings = quantization.get_default_qconfig_mapping(torch.backends.quantized.engine)
        prepared = quantize_fx.prepare_fx(copy.deepcopy(model), settings, (x,))
        prepared(x)
        return quantize_fx.convert_fx(prepared)


def _can_quantize() -> bool:
    found = importlib.util.find_spec("torch.ao.quantization.quantize_fx")
    return found is not None and torch.backends.quantized.engine != "none"


def _graphed(model: nn.Module, x: Tensor, amp: bool) -> nn.Module:
    """A copy of `model` whose forward and backward passes are one CUDA graph each."""
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp, cache_enabled=False):
        return cast(nn.Module, torch.cuda.make_graphed_callables(copy.deepcopy(model), (x,)))


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        return None


@arguments.check(figures=sequence_of(arguments.instance_of(SpeedMeasurement, "a SpeedMeasurement")))
def speed_rows(figures: list[SpeedMeasurement]) -> list[tuple[str, ...]]:
    """The rows of a table with a header; a series that was disturbed is marked."""
    header = ("Task", "Batch", "Model", "Ratio", "Of medians", "Spread")
    rows: list[tuple[str, ...]] = [(*header, "Fastest, s", "Median", "Slowest")]
    for f in figures:
        times = (min(f.seconds), statistics.median(f.seconds), max(f.seconds))
        rows.append(
            (
                *(f.task, str(f.batch_size), f.name),
                *(f"{f.ratio:.2f}", f"{f.ratio_of_medians:.2f}", "busy" if f.busy else ""),
                *(f"{value:.4f}" for value in times),
            )
        )
    return rows


@arguments.check(name=arguments.text)
def results(name: str = "speed-densenet121-cpu") -> list[SpeedMeasurement]:
    """The measurements in a results file that comes with the package."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("speed-*.json")))
        raise ValueError(f"name must be one of {there}, got {name!r}")
    content = json.loads(path.read_text(encoding="utf-8"))
    return [SpeedMeasurement(**figure) for figure in content["figures"]]
