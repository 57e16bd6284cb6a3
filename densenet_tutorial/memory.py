"""Memory-efficient forward passes: fewer tensors kept between forward and backward.

This module knows tensors and functions of tensors; it does not know our layers. Chapter 07 builds it up.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: What the argument ``memory_efficient`` may be; ``True`` means ``"checkpoint"``.
MODES = (False, True, "checkpoint")


def checkpointed(function: Callable[[list[Tensor]], Tensor], inputs: list[Tensor]) -> Tensor:
    """Compute ``function(inputs)`` now, keep only `inputs`, and compute it again in the backward pass.

    As in torchvision, nothing is checkpointed when no input requires a gradient, and everything inside
    `function` runs twice: batch norm's running statistics therefore move twice per training step.
    `function` must not draw random numbers, since the generator's state is not kept.

    Source: Pleiss et al. 2017, https://arxiv.org/abs/1707.06990, section 3.
    """
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return function(inputs)
    # One positional argument per tensor: a list passed as a single argument would be opaque to autograd.
    return checkpoint(
        lambda *tensors: function(list(tensors)),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
    )
