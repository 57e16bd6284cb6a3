"""The device to compute on, and the versions that a bug report should quote.

The environment variable ``DENSENET_TUTORIAL_DEVICE`` chooses the device: ``auto`` (the default),
``cpu``, ``cuda`` or ``mps``.
"""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from densenet_tutorial.utils import arguments

#: The values of ``DENSENET_TUTORIAL_DEVICE``; ``"auto"`` is a GPU if there is one.
DEVICES = ("auto", "cpu", "cuda", "mps")
_REPORTED = (
    "torch", "torchvision", "numpy", "pillow", "matplotlib", "torchinfo", "densenet-tutorial"
)  # fmt: skip


@arguments.check(name=arguments.optional(arguments.text))
def device(name: str | None = None) -> torch.device:
    """The device called `name`, by default the one that ``DENSENET_TUTORIAL_DEVICE`` names.

    ``auto`` chooses a GPU if there is one.

    Raises:
        ValueError: an unknown device, or one that this machine lacks.
    """
    variable = "DENSENET_TUTORIAL_DEVICE"
    chosen = (os.environ.get(variable) or "auto") if name is None else name
    chosen = arguments.one_of(DEVICES)(variable if name is None else "name", chosen.lower())
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if chosen == "auto":
        chosen = next(choice for choice, found in present.items() if found)
    if not present[chosen]:
        here = ", ".join(choice for choice, found in present.items() if found)
        whose = f"the device of {variable}" if name is None else "the device"
        raise ValueError(
            f"{whose} is {chosen!r}, but PyTorch finds no such device here; it finds {here}"
        )
    return torch.device(chosen)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@arguments.check(device=arguments.device)
def machine(device: torch.device | str) -> str:
    """What computes on `device`, and with which torch: in results, beside what was measured."""
    there = torch.device(device)
    name = f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"
    if there.type == "cuda":
        name = torch.cuda.get_device_name(there)
    return f"{name}, torch {_version('torch')}"


def summary_line() -> str:
    """Device and versions in one line, for the top of a notebook."""
    packages = " · ".join(
        f"{name} {_version(name)}" for name in ("torch", "torchvision", "densenet-tutorial")
    )
    return f"device: {device()} · Python {platform.python_version()} · {packages}"


def report() -> str:
    """System, device and versions for a bug report, one per line, without user or path names."""
    try:
        chosen: torch.device | str = device()
    except ValueError as error:  # the report may be about this
        chosen = f"none: {error}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = [
        f"system: {platform.system()} {platform.release()} {platform.machine()}",
        f"python: {platform.python_version()}",
        f"processor: {_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        f"device: {chosen} (GPU: {gpu}; {torch.get_num_threads()} CPU threads)",
        f"CUDA of torch: {torch.version.cuda or 'none'}",
    ]
    return "\n".join(lines + [f"{name}: {_version(name)}" for name in _REPORTED])
