"""DenseNet, step by step: the finished version of every piece that the book builds."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densenet_tutorial.inference import optimize_for_inference
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
    "optimize_for_inference",
    "set_memory_efficient",
]

#: Where these names come from, on first use. The commands need that: importing torch takes seconds,
#: in which Ctrl-C would otherwise be a traceback.
_HOMES = ("layers", "memory", "network", "inference")

#: Subpackages and modules that are imported on first use: ``densenet_tutorial.training``, …
_SUBMODULES = (
    "check",
    "data",
    "experiments",
    "figures",
    "inference",
    "insight",
    "layers",
    "memory",
    "network",
    "training",
    "utils",
    "weights",
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    for home in _HOMES if name in __all__ else ():
        module = importlib.import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            globals()[name] = getattr(module, name)  # from now on without this function
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
