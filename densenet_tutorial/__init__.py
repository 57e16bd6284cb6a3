"""DenseNet, step by step: the finished version of every piece that the book builds."""

import importlib
from types import ModuleType

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.memory import set_memory_efficient
from densenet_tutorial.network import (
    DenseNet,
    densenet,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    densenet264,
    densenet_40_12,
    densenet_bc,
    densenet_bc_100_12,
    densenet_bc_190_40,
    densenet_bc_250_24,
    list_models,
)

__version__ = "0.2.0"

__all__ = [
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "Transition",
    "densenet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "densenet_40_12",
    "densenet_bc",
    "densenet_bc_100_12",
    "densenet_bc_190_40",
    "densenet_bc_250_24",
    "list_models",
    "set_memory_efficient",
]

#: Subpackages and modules that are imported on first use: ``densenet_tutorial.training``, …
_SUBMODULES = (
    "check",
    "data",
    "experiments",
    "figures",
    "insight",
    "memory",
    "training",
    "utils",
    "weights",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
