"""DenseNet, step by step: the finished version of every piece that the book builds."""

from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
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
)

__version__ = "0.1.0"

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
]
