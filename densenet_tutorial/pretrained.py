"""Trained weights: the ones that ship with this package, and the checkpoints that a training run writes."""

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from densenet_tutorial import checkpoints

#: The weights in ``assets/NAME.pt``, each with the SHA-256 of its file.
SHIPPED: dict[str, str] = {}


def read(weights: str | Path) -> dict[str, Any]:
    """What `weights` holds, as :func:`checkpoints.read` returns it, in float32.

    Args:
        weights: a name from :data:`SHIPPED`, or the path of a checkpoint (``runs/a/best.pt``).

    Raises:
        ValueError: neither, or the file is damaged or of another kind.
    """
    if weights in SHIPPED:
        path = Path(str(resources.files("densenet_tutorial"))) / "assets" / f"{weights}.pt"
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHIPPED[weights]:
            raise ValueError(
                f"{path.name} in the package is damaged (wrong SHA-256); install it again"
            )
    elif Path(weights).is_file():
        path = Path(weights)
    else:
        names = ", ".join(repr(name) for name in SHIPPED)
        raise ValueError(
            f"weights must be {names} or the path of a checkpoint, got {str(weights)!r}, "
            "and there is no such file"
        )
    content = checkpoints.read(path)
    # Shipped weights take half the space in half precision.
    content["model"] = {
        key: value.float() if value.is_floating_point() else value
        for key, value in content["model"].items()
    }
    return content
