"""Files of tensors, read so that nothing in them runs.

This module knows file formats and nothing of networks: PyTorch's two (a zip archive since 1.6, a chain of pickles
before) and safetensors. A file is recognised by its content, never by its name.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densenet_tutorial.utils import files

_WHAT_ELSE = {
    b"version https://git-lfs": "a Git LFS pointer; the file itself is still to be fetched (git lfs pull)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x89HDF": "an HDF5 file (Keras), which is read by other libraries",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"%PDF": "a PDF document",
}


def read(path: str | Path) -> Any:
    """What the file at `path` holds, on the CPU: tensors, and the plain containers around them.

    Raises:
        ValueError: the reason why it cannot be read, without the path. A pickle that asks for anything but tensors
            and plain values is refused before any of it runs (``weights_only=True``).
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except OSError as error:
        raise ValueError(f"it cannot be opened ({error.strerror})") from error
    if what := _something_else(content):
        raise ValueError(f"it is {what}")
    if _is_safetensors(content):
        return _read_safetensors(content)
    return _read_torch(content)


def write(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path`, whole or not at all: as safetensors if it ends so, else as ``torch.save`` does.

    Raises:
        ValueError: safetensors is asked for and not installed.
        OSError: the disk is full, say.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if Path(path).suffix == ".safetensors":
        content = memoryview(_safetensors().save(own))
    else:
        buffer = io.BytesIO()
        torch.save(own, buffer)
        content = buffer.getbuffer()
    files.write(path, content)


def _something_else(content: bytes) -> str | None:
    """What `content` is, in words, if it plainly holds no tensors."""
    if not content:
        return "empty"
    if content.lstrip()[:1] == b"<":
        return "a web page (HTML or XML), not weights: some server answered with a page instead of the file"
    return next((what for start, what in _WHAT_ELSE.items() if content.startswith(start)), None)


def _is_safetensors(content: bytes) -> bool:
    """Whether `content` starts as the format says: the header's length in 8 bytes, then the header, which is JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 100_000_000


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError(
            "files of this kind need the package safetensors: pip install safetensors"
        ) from error
    return safetensors.torch


def _read_safetensors(content: bytes) -> dict[str, Tensor]:
    library = _safetensors()
    try:
        return library.load(content)
    except Exception as error:  # its errors are of a type of its own
        raise ValueError(f"it is a damaged safetensors file ({_first_line(error)})") from error


def _read_torch(content: bytes) -> Any:
    file = io.BytesIO(content)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():  # torch.load does not compare checksums
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ValueError("a TorchScript program; save its state_dict() instead")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parts do; all of it means the same
        raise ValueError(f"it cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why torch.load failed, in our words: its own advise loading again and letting the file run what it likes."""
    text = str(error)
    if found := re.search(r"GLOBAL:? ([\w.]+)", text):
        return (
            f"its pickle asks for {found[1]}, which is no tensor or plain value; nothing of it was run. "
            "A state dict, saved alone, is read"
        )
    if isinstance(error, (pickle.UnpicklingError, KeyError, IndexError, EOFError, AttributeError)):
        return "cut short, or in none of PyTorch's formats"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
