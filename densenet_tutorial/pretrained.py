"""Trained weights: the ones that ship with this package, and the checkpoints that a training run writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from densenet_tutorial import checkpoints

_ASSETS = Path(__file__).parent / "assets"


def shipped() -> list[str]:
    """The names of the weights that come with this package."""
    return sorted(path.stem for path in _ASSETS.glob("*.json"))


def results(name: str) -> dict[str, Any]:
    """How the shipped weights `name` were trained, and how accurate they are; a test holds them to it."""
    return json.loads((_ASSETS / f"{name}.json").read_text(encoding="utf-8"))


def read(weights: str | Path) -> dict[str, Any]:
    """What `weights` holds, as :func:`checkpoints.read` returns it, in float32.

    Args:
        weights: a name from :func:`shipped`, or the path of a checkpoint (``runs/a/best.pt``).

    Raises:
        ValueError: neither, or the file is damaged or of another kind.
    """
    if weights in shipped():
        path = _ASSETS / f"{weights}.pt"
        if hashlib.sha256(path.read_bytes()).hexdigest() != results(str(weights))["sha256"]:
            raise ValueError(
                f"{path.name} in the package is damaged (wrong SHA-256); install it again"
            )
    elif Path(weights).is_file():
        path = Path(weights)
    else:
        names = ", ".join(repr(name) for name in shipped())
        raise ValueError(
            f"weights must be {names} or the path of a checkpoint, got {str(weights)!r}, "
            "and there is no such file"
        )
    content = checkpoints.read(path)
    # Shipped weights take half the space, in half precision.
    content["model"] = {
        key: value.float() if value.is_floating_point() else value
        for key, value in content["model"].items()
    }
    return content
