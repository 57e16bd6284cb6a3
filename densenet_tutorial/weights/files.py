"""Files of tensors, read so that nothing in them runs, and written.

This module knows file formats and nothing of networks: PyTorch's two (a zip archive since 1.6, a
chain of pickles before) and safetensors. A file is recognised by its content, never by its name.

PyTorch's files are read here and not by ``torch.load``: until torch 2.9 its ``weights_only=True``
could be made to run code (GHSA-63cw-57p8-fm3p), and no version compares the archive's checksums. So
one reader opens the archive, checks it, and hands the very bytes that it checked to the tensors;
the pickle, which says how these are named and shaped, is followed by :class:`_Unpickler`. What a
file costs in memory and time is bounded by its size.
"""

import io
import os
import pickle
import re
import stat
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from densenet_tutorial.utils import files

#: Bytes of the largest file that is read or fetched: 4 GiB. A DenseNet-264 with its optimizer's
#: state has 0.4.
LARGEST = 4 * 2**30

#: Bytes that a file may spend on names and shapes. The weights of a DenseNet-264, their average and
#: the optimizer's state together take 0.7 million.
_LARGEST_DIRECTORY = 2 * 2**20

_WHAT_ELSE = {
    b"version https://git-lfs": "a Git LFS pointer; the file is still to be fetched (git lfs pull)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x89HDF": "an HDF5 file (Keras), which is read by other libraries",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"%PDF": "a PDF document",
}


def read(path: str | os.PathLike[str]) -> Any:
    """What the file at `path` holds, on the CPU: tensors, and the plain containers around them.

    Raises:
        ValueError: the reason why it cannot be read, without the path. A pickle that asks for
            anything but tensors and plain values is refused, and nothing that it asks for is
            called.
    """
    try:
        if not stat.S_ISREG(kind := os.stat(path).st_mode):  # others may block, or never end
            raise ValueError("it is a folder" if stat.S_ISDIR(kind) else "it is no regular file")
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except OSError as error:
        raise ValueError(f"it cannot be opened ({error.strerror})") from error


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path`, whole or not at all.

    As safetensors, if `path` ends so, and else as ``torch.save`` does.

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


def _read(file: BinaryIO, size: int) -> Any:
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes; files of up to {LARGEST:,} are read")
    start = file.read(1000)
    if _is_safetensors(
        start
    ):  # before the rest: the length that it begins with may look like anything
        return _read_safetensors(start + file.read(size))
    if what := _something_else(start):
        raise ValueError(f"it is {what}")
    try:
        return _read_zip(file, size) if start[:4] == b"PK\3\4" else _read_chain(file, size)
    except Exception as error:  # a damaged file may make any part fail; all of it means the same
        raise ValueError(f"it cannot be read: {_reason(error)}") from error


def _something_else(start: bytes) -> str | None:
    """What a file that begins with `start` is, in words, if it plainly holds no tensors."""
    if not start:
        return "empty"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return (
            "a web page (HTML or XML), not weights: a server answered with it in the file's place"
        )
    return next((what for sign, what in _WHAT_ELSE.items() if start.startswith(sign)), None)


# ------------------------------------------------------------------------------ safetensors


def _is_safetensors(start: bytes) -> bool:
    """Whether it is as the format says: the header's length in 8 bytes, then JSON, the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


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
        if int.from_bytes(content[:8], "little") > _LARGEST_DIRECTORY:
            raise ValueError("its header is too long")
        return library.load(content)
    except Exception as error:  # its errors are of a type of its own
        raise ValueError(f"it is a damaged safetensors file ({_first_line(error)})") from error


# ------------------------------------------------------------------------------ PyTorch's formats


class _Refused(Exception):
    """Why a file is not read; unlike what a damaged one makes fail, this is a sentence of ours."""


def _read_zip(file: BinaryIO, size: int) -> Any:
    """PyTorch's format since 1.6: a zip archive of a pickle, and of the numbers of each storage."""
    _check_directory_size(file, size)
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        if any(name.endswith("/constants.pkl") for name in names):
            raise _Refused("a TorchScript program; save its state_dict() instead")
        if len(names) < len(archive.infolist()):
            raise _Refused("a record of its archive is there twice")
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _Refused("a zip archive, and none that torch.save has written")
        folder = pickles[0].removesuffix("data.pkl")

        def record(name: str, most: int) -> bytes:
            if folder + name not in names:
                raise _Refused(f"its record {name} is missing")
            entry = archive.getinfo(folder + name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise _Refused(f"its record {name} is packed, which torch.save never does")
            if entry.file_size > most:
                raise _Refused(f"its record {name} is too long")
            return archive.read(entry)  # compares the checksum

        order = record("byteorder", 10) if folder + "byteorder" in names else b"little"
        storages = _Storages(size)
        content = _Unpickler(io.BytesIO(record("data.pkl", _LARGEST_DIRECTORY)), storages).load()
        for key, storage in storages.found.items():
            _fill(storage, record(f"data/{key}", storage.nbytes), order.decode())
    return content


def _check_directory_size(file: BinaryIO, size: int) -> None:
    """Refuse an archive whose directory is cut off, or too long to be gone through."""
    # The end of the directory is 22 bytes long; before it stands the same with 64-bit numbers.
    tail_size = min(size, 98)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    wide = tail[-42:-38] == b"PK\6\7"
    if tail[-22:-18] != b"PK\5\6" or (wide and tail[:4] != b"PK\6\6"):
        raise _Refused("cut short, or no archive that torch.save has written")
    (length,) = struct.unpack("<Q", tail[40:48]) if wide else struct.unpack("<L", tail[-10:-6])
    if length > _LARGEST_DIRECTORY:
        raise _Refused("the directory of its archive is too long")


def _read_chain(file: BinaryIO, size: int) -> Any:
    """PyTorch's format before 1.6: pickles one after the other, then each storage's numbers."""
    file.seek(0)
    pickles = io.BytesIO(file.read(_LARGEST_DIRECTORY))
    if _Unpickler(pickles).load() != 0x1950A86A20F9469CFC6C:
        raise _Refused("it is in none of PyTorch's formats")
    if _Unpickler(pickles).load() != 1001:
        raise _Refused("it is in a version of PyTorch's format that is not known")
    _Unpickler(pickles).load()  # of the machine that wrote it
    storages = _Storages(size)
    content = _Unpickler(pickles, storages).load()
    keys = _Unpickler(pickles).load()
    if not isinstance(keys, list) or sorted(keys) != sorted(storages.found):
        raise _Refused("the numbers of a tensor are missing")
    file.seek(pickles.tell())
    for key in keys:
        storage = storages.found[key]
        if int.from_bytes(file.read(8), "little") != len(storage):
            raise _Refused("a tensor has more or fewer numbers than its shape says")
        _fill(storage, file.read(storage.nbytes), "little")
    return content


class _Storages:
    """The storages that a pickle asks for, as tensors by their keys, not yet filled."""

    def __init__(self, size: int) -> None:
        self.found: dict[str, Tensor] = {}
        self.left = size

    def __call__(self, saved_id: Any) -> Tensor:
        kind, dtype, key, _, count, *views = saved_id
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise _Refused("its pickle names something that is no storage of numbers")
        if type(count) is not int or count < 0 or any(view is not None for view in views):
            raise _Refused("a storage of it is no plain run of numbers")
        if key not in self.found:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise _Refused("it names more numbers than it has room for")
            self.found[key] = torch.empty(count, dtype=dtype, device="cpu")
        storage = self.found[key]
        if storage.dtype != dtype or len(storage) != count:
            raise _Refused("it says two things of the same storage")
        return storage


def _fill(storage: Tensor, content: bytes, order: str) -> None:
    """Put the numbers in `content`, in bytes of this `order` ("little", "big"), into `storage`."""
    if len(content) != storage.nbytes:
        raise _Refused("a tensor has more or fewer numbers than its shape says")
    number = f"u{storage.itemsize}"
    own = storage.view(torch.uint8).numpy().view(f"={number}")
    own[:] = np.frombuffer(content, {"little": "<", "big": ">"}[order] + number)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
    """A view of `storage`, if each element has a place of its own; third in `more` are flags."""
    whole = [offset, *size, *stride]
    if not all(type(number) is int and number >= 0 for number in whole) or len(size) > 16:
        raise _Refused("a tensor of it has no shape that a tensor can have")
    if any(more[2:]):
        raise _Refused("a tensor of it is marked as conjugated or negated")
    last = 0  # how far from the first element the last one lies, over the dimensions so far
    for step, count in sorted((step, count) for count, step in zip(size, stride) if count > 1):
        if step <= last:
            raise _Refused("a tensor of it is expanded: several elements share a place")
        last += step * (count - 1)
    if 0 not in size and offset + last >= len(storage):
        raise _Refused("a tensor has more or fewer numbers than its shape says")
    return storage.as_strided(size, stride, offset)


def _put(target: Any, pairs: Iterable[Any]) -> Any:
    """Put keys and values into the dict `target`, and return it."""
    if not isinstance(target, dict):
        raise _Refused("its pickle puts a key into something that is no dict")
    for key, value in pairs:
        if not isinstance(key, (str, bytes, int, float)):  # others may be too deep to be hashed
            raise _Refused("a key of a dict in it is neither text nor number")
        if key in target:
            raise _Refused("a key of a dict is there twice")
        target[key] = value
    return target


def _made(target: Any) -> Callable[..., Any]:
    """What stands for the class of `target`, an empty dict: it takes nothing, a dict, or pairs."""

    def make(given: Any = ()) -> Any:
        return _put(target.copy(), given.items() if isinstance(given, dict) else given)

    return make


def _scalar(kind: str, content: Any) -> Any:
    """A number of NumPy's, as training scripts keep the best accuracy."""
    if not re.fullmatch(r"[<=|]?[fiub][1248]", str(kind)):
        raise _Refused("it holds a NumPy object that is no number")
    (number,) = np.frombuffer(content if type(content) is bytes else content.encode("latin1"), kind)
    return number.item()


#: What a pickle may ask for, and what it gets.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _made(OrderedDict()),
    ("collections", "Counter"): _made(Counter()),
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    ("numpy", "dtype"): lambda kind, *_: kind,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}

#: What it may not ask for, and what that is.
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor; dequantise it first",
    "_rebuild_meta_tensor_no_storage": "a tensor of the meta device, a shape without numbers",
    "ComplexFloatStorage": "complex numbers",
    "ComplexDoubleStorage": "complex numbers",
}

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


#: Those that ``torch.save`` writes; :class:`_Unpickler` adds three in forms of its own.
_INSTRUCTIONS = {
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BINPERSID),
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Follows a pickle to tensors and plain values; whatever else it asks for is refused.

    It stands on the unpickler that is written in Python: the one in C reserves as much memory as a
    pickle names. Its instructions change nothing but lists, and dicts of plain keys.
    """

    dispatch: ClassVar = {
        code: follow
        for code, follow in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if bytes([code]) in _INSTRUCTIONS
    }

    def load_build(self) -> None:
        self.stack.pop()  # attributes, as the version numbers in a state dict, are left out

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    dispatch |= {
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }

    def __init__(self, file: io.BytesIO, storages: _Storages | None = None) -> None:
        super().__init__(file, encoding="latin1")  # of texts that Python 2 has written
        self.storages = storages

    def persistent_load(self, saved_id: Any) -> Tensor:
        if self.storages is None:
            raise _Refused("its pickle names a storage where there is none")
        return self.storages(saved_id)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module in ("torch", "torch._utils") and name in _OTHER_TENSORS:
            raise _Refused(f"it holds {_OTHER_TENSORS[name]}")
        asked = f"{module}.{name}"
        if not re.fullmatch(r"[\w.]{1,100}", asked):
            asked = "something without a name"
        raise _Refused(
            f"its pickle asks for {asked}, which is no tensor or plain value; nothing of it was "
            "run. A state dict, saved alone, is read"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, zipfile.BadZipFile):
        return f"its archive is damaged ({_first_line(error)})"
    return "cut short, or in none of PyTorch's formats"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
