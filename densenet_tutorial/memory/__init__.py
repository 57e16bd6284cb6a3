"""Memory-efficient training: the same network, weights and gradients, with less kept between forward and backward.

| mode | what a dense block keeps, per pixel | what is computed again |
|---|---|---|
| ``False`` | 2 L k0 + k L (L - 1) + 8 k L | nothing |
| ``"checkpoint"``, ``True`` | 8 k L + k (L - 1) | concatenation, first norm and ReLU |
| ``"recompute"`` | k0 + 5 k L | norms and ReLUs |
| ``"minimal"`` | k0 + k L | the 1x1 convolutions as well |

Chapter 07 builds it up.
"""

from torch import nn

from densenet_tutorial.layers import DenseBlock
from densenet_tutorial.memory.measure import saved_activation_bytes
from densenet_tutorial.memory.variants import VARIANTS
from densenet_tutorial.utils import arguments

#: What the argument ``memory_efficient`` may be; ``True`` means ``"checkpoint"``.
MODES = (False, True, *VARIANTS)

_PLAIN = {variant: plain for variants in VARIANTS.values() for plain, variant in variants.items()}


@arguments.check(mode=arguments.one_of(MODES))
def set_memory_efficient(model: nn.Module, mode: bool | str) -> nn.Module:
    """Let the dense blocks in `model` keep less for the backward pass, or again as much as usual.

    Modules change their class in place: parameters, buffers, hooks, names and ``state_dict`` keys stay.

    Args:
        model: a :class:`DenseNet`, or any module that holds our layers, blocks or transitions, or is one.
        mode: one of :data:`MODES`.

    Returns:
        `model`.

    Raises:
        ValueError: there is no such mode, or nothing in `model` that it could be set for.
    """
    variants = VARIANTS["checkpoint" if mode is True else mode] if mode else {}
    found = False
    for module in model.modules():
        plain = _PLAIN.get(type(module), type(module))
        if plain is nn.Sequential and not any(isinstance(m, DenseBlock) for m in module):
            continue  # somebody else's
        if plain in VARIANTS["recompute"]:
            module.__class__ = variants.get(plain, plain)
            found = True
    if not found:
        raise ValueError(
            "model must hold a DenseLayer, DenseBlock or Transition of this package (not a subclass, nor "
            f"torchvision's), got a {type(model).__name__} without one"
        )
    return model


__all__ = ["MODES", "saved_activation_bytes", "set_memory_efficient"]
