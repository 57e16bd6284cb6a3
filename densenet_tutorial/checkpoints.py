"""Checkpoints: files that hold a model's weights and say how they came about.

They are read with ``weights_only=True``: nothing in a file runs code.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from densenet_tutorial import files

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
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except Exception as error:  # torch.load raises whatever its parts do; all of it means the same
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or is no checkpoint ({reason})") from error
    if not (isinstance(content, dict) and content.get("format") == FORMAT):
        raise ValueError(f"{path} is not a checkpoint of this package ({FORMAT!r} is missing)")
    return content


def reason(error: Exception) -> str:
    """Why a checkpoint did not fit, in one line: torch names every tensor, and the first one will do."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
