"""Memory-efficient training: what a step keeps between its forward and its backward pass."""

from densenet_tutorial.memory.variants import (
    MODES,
    Sequential,
    _warn,
    checkpointed,
    grow,
    recomputes,
    refuse_to_script,
    saved_activation_bytes,
    sequence,
)

__all__ = [
    "MODES",
    "Sequential",
    "_warn",
    "checkpointed",
    "grow",
    "recomputes",
    "refuse_to_script",
    "saved_activation_bytes",
    "sequence",
]
