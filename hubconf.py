"""Entry points of ``torch.hub.load("densenet-tutorial/densenet-tutorial", "densenet121")``."""

from densenet_tutorial import (  # noqa: F401
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

#: Packages that ``torch.hub`` requires before it imports this file.
dependencies = ["torch", "numpy", "tqdm"]
