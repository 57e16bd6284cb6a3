"""Read and write files of tensors, without running any code in them.

This module knows file formats, and no networks: PyTorch's two formats (a zip archive since 1.6, a
sequence of pickles before) and safetensors. It recognises a file by its content, not by its name.

It does not use ``torch.load``: until torch 2.9, files could run code in spite of
``weights_only=True`` (GHSA-63cw-57p8-fm3p), and no version verifies the archive's checksums. Here
one reader opens the archive, verifies it, and fills the tensors with the same bytes.
:class:`_Unpickler` interprets the pickle, which holds names and shapes. The size of a file limits
the memory and time that reading it takes.
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

#: Maximum size, in bytes, of a file that is read or downloaded. A DenseNet-264 with the state of
#: its optimizer has 0.4 GiB.
MAX_BYTES = 4 * 2**30

#: Maximum size, in bytes, of names and shapes in a file. They take 0.7 million for the weights of a
#: DenseNet-264, their average and the state of the optimizer together.
_MAX_METADATA_BYTES = 2 * 2**20

#: Other kinds of files, by their first bytes.
_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer; the file is still to be fetched (git lfs pull)",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x89HDF": "an HDF5 file (Keras), which is read by other libraries",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"%PDF": "a PDF document",
}


def read(path: str | os.PathLike[str]) -> Any:
    """The content of the file at `path`: tensors, on the CPU, in plain containers.

    Raises:
        ValueError: the file cannot be read; the message gives the reason without the path. Files
            are refused whose pickle asks for anything but tensors and plain values, and nothing
            that a pickle asks for is called.
    """
    try:
        if not stat.S_ISREG(kind := os.stat(path).st_mode):  # reading others may never end
            raise ValueError("it is a folder" if stat.S_ISDIR(kind) else "it is no regular file")
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except OSError as error:
        raise ValueError(f"it cannot be opened ({error.strerror})") from error


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path` atomically, as safetensors if `path` ends in ``.safetensors``.

    Other files are written by ``torch.save``.

    Raises:
        ValueError: the package safetensors is needed and not installed.
        OSError: for example, the disk is full.
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
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes; files of up to {MAX_BYTES:,} are read")
    start = file.read(1000)
    if _is_safetensors(start):  # first: its first bytes, a length, may equal any signature
        return _read_safetensors(start + file.read(size))
    if kind := _other_kind(start):
        raise ValueError(f"it is {kind}")
    try:
        return _read_zip(file, size) if start[:4] == b"PK\3\4" else _read_legacy(file, size)
    except Exception as error:  # any part may fail on a damaged file
        raise ValueError(f"it cannot be read: {_reason(error)}") from error


def _other_kind(start: bytes) -> str | None:
    """The kind of a file that starts with `start`, if it is a known one without tensors."""
    if not start:
        return "empty"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return "a web page (HTML or XML), not weights: a server sent it instead of the file"
    return next((kind for first, kind in _SIGNATURES.items() if start.startswith(first)), None)


# ------------------------------------------------------------------------------ safetensors


def _is_safetensors(start: bytes) -> bool:
    """Whether `start` has the length of a header in 8 bytes and the start of one, in JSON."""
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
        if int.from_bytes(content[:8], "little") > _MAX_METADATA_BYTES:
            raise ValueError("its header is too long")
        return library.load(content)
    except Exception as error:  # safetensors has its own type of error
        raise ValueError(f"it is a damaged safetensors file ({_first_line(error)})") from error


# ------------------------------------------------------------------------------ PyTorch's formats


class _Refused(Exception):
    """A file that is not read, with a message of ours, unlike errors that damage causes."""


def _read_zip(file: BinaryIO, size: int) -> Any:
    """PyTorch's format since 1.6: a zip archive with a pickle and the bytes of each storage."""
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
        content = _Unpickler(io.BytesIO(record("data.pkl", _MAX_METADATA_BYTES)), storages).load()
        for key, storage in storages.found.items():
            _fill(storage, record(f"data/{key}", storage.nbytes), order.decode())
    return content


def _check_directory_size(file: BinaryIO, size: int) -> None:
    """Refuse an archive whose central directory is truncated or too long."""
    # The end record has 22 bytes; its 64-bit version and the locator of that come before it.
    tail_size = min(size, 98)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    wide = tail[-42:-38] == b"PK\6\7"
    if tail[-22:-18] != b"PK\5\6" or (wide and tail[:4] != b"PK\6\6"):
        raise _Refused("cut short, or no archive that torch.save has written")
    (length,) = struct.unpack("<Q", tail[40:48]) if wide else struct.unpack("<L", tail[-10:-6])
    if length > _MAX_METADATA_BYTES:
        raise _Refused("the directory of its archive is too long")


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """PyTorch's format before 1.6: several pickles, then the bytes of each storage."""
    file.seek(0)
    pickles = io.BytesIO(file.read(_MAX_METADATA_BYTES))
    if _Unpickler(pickles).load() != 0x1950A86A20F9469CFC6C:
        raise _Refused("it is in none of PyTorch's formats")
    if _Unpickler(pickles).load() != 1001:
        raise _Refused("it is in a version of PyTorch's format that is not known")
    _Unpickler(pickles).load()  # facts about the machine that wrote the file
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
    """The storages that a pickle refers to, as tensors by key, to be filled later."""

    def __init__(self, size: int) -> None:
        self.found: dict[str, Tensor] = {}
        self.bytes_left = size

    def __call__(self, saved_id: Any) -> Tensor:
        kind, dtype, key, _, count, *views = saved_id
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise _Refused("its pickle names something that is no storage of numbers")
        if type(count) is not int or count < 0 or any(view is not None for view in views):
            raise _Refused("a storage of it is no plain run of numbers")
        if key not in self.found:
            self.bytes_left -= count * dtype.itemsize
            if self.bytes_left < 0:
                raise _Refused("it names more numbers than it has room for")
            self.found[key] = torch.empty(count, dtype=dtype, device="cpu")
        storage = self.found[key]
        if storage.dtype != dtype or len(storage) != count:
            raise _Refused("it says two things of the same storage")
        return storage


def _fill(storage: Tensor, content: bytes, order: str) -> None:
    """Copy `content`, in byte order `order` ("little" or "big"), into `storage`."""
    if len(content) != storage.nbytes:
        raise _Refused("a tensor has more or fewer numbers than its shape says")
    number = f"u{storage.itemsize}"
    own = storage.view(torch.uint8).numpy().view(f"={number}")
    own[:] = np.frombuffer(content, {"little": "<", "big": ">"}[order] + number)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
    """A view of `storage` whose elements do not overlap; ``more[2:]`` are conj and neg flags."""
    whole = [offset, *size, *stride]
    if not all(type(number) is int and number >= 0 for number in whole) or len(size) > 16:
        raise _Refused("a tensor of it has no shape that a tensor can have")
    if any(more[2:]):
        raise _Refused("a tensor of it is marked as conjugated or negated")
    last = 0  # offset of the last element from the first, over the dimensions so far
    for step, count in sorted((step, count) for count, step in zip(size, stride) if count > 1):
        if step <= last:
            raise _Refused("a tensor of it is expanded: several elements share memory")
        last += step * (count - 1)
    if 0 not in size and offset + last >= len(storage):
        raise _Refused("a tensor has more or fewer numbers than its shape says")
    return storage.as_strided(size, stride, offset)


def _put(target: Any, pairs: Iterable[Any]) -> Any:
    """Add pairs of keys and values to the dict `target`, and return it."""
    if not isinstance(target, dict):
        raise _Refused("its pickle puts a key into something that is no dict")
    for key, value in pairs:
        if not isinstance(key, (str, bytes, int, float)):  # deep tuples overflow the stack in hash
            raise _Refused("a key of a dict in it is neither text nor number")
        if key in target:
            raise _Refused("a key of a dict is there twice")
        target[key] = value
    return target


def _constructor(empty: Any) -> Callable[..., Any]:
    """A safe constructor of the class of `empty`, a dict, from nothing, a dict, or pairs."""

    def construct(content: Any = ()) -> Any:
        return _put(empty.copy(), content.items() if isinstance(content, dict) else content)

    return construct


def _scalar(kind: str, content: Any) -> Any:
    """A NumPy scalar, such as the best accuracy in other people's checkpoints."""
    if not re.fullmatch(r"[<=|]?[fiub][1248]", str(kind)):
        raise _Refused("it holds a NumPy object that is no number")
    (number,) = np.frombuffer(content if type(content) is bytes else content.encode("latin1"), kind)
    return number.item()


#: The globals that a pickle may use, and their replacements.
_PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _constructor(OrderedDict()),
    ("collections", "Counter"): _constructor(Counter()),
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

#: Tensors that are not supported, by the name of the global that a pickle uses.
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


#: The opcodes that ``torch.save`` writes, except three that :class:`_Unpickler` replaces.
_OPCODES = {
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


class _Unpickler(pickle._Unpickler):
    """Unpickles tensors and plain values, and refuses everything else.

    It is based on the unpickler written in Python, since the one in C allocates as much memory as a
    pickle asks for. Its opcodes change nothing but lists, and dicts with plain keys.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: function
        for code, function in pickle._Unpickler.dispatch.items()
        if bytes([code]) in _OPCODES
    }
    stack: list[Any]  # of the base class, which declares neither of these
    pop_mark: Callable[[], list[Any]]

    def load_build(self) -> None:
        self.stack.pop()  # ignores attributes, such as the version numbers of a state dict

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
        super().__init__(file, encoding="latin1")  # for strings that Python 2 wrote
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
