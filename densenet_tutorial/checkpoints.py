"""Checkpoints: files that hold a model's weights and say how they came about.

They are read with ``weights_only=True``: nothing in a file runs code.
"""

import io
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial import files, tensor_files

#: Written into every checkpoint, so that a file of another kind is recognised.
FORMAT = "densenet-tutorial checkpoint 1"


def write(path: str | Path, content: dict[str, Any], config: dict[str, Any]) -> None:
    """Write `content`, with the run's configuration, to `path`."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "config": config, **content}, buffer)
    files.write(path, buffer.getbuffer())


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns:
        A dict with at least ``model`` (a state dict) and ``config``.

    Raises:
        ValueError: there is no such file, or it is damaged or of another kind.
    """
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    try:
        content = tensor_files.read(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or is no checkpoint: {error}") from error
    if not is_ours(content):
        raise ValueError(f"{path} is not a checkpoint of this package ({FORMAT!r} is missing)")
    return content


def is_ours(content: Any) -> bool:
    """Whether `content`, read from some file, is a checkpoint that :func:`write` wrote."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def reason(error: Exception) -> str:
    """Why a checkpoint did not fit, in one line: torch names every tensor, and the first one will do."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
