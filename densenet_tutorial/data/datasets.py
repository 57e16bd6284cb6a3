"""Data sets of small images, held in memory as uint8 tensors.

The bundled ones need no download. The others are downloaded by torchvision, or read from the folder
``DENSENET_TUTORIAL_DATA`` (default ``~/.cache/densenet-tutorial``). To add one, write its loader
here and decorate it with :func:`register`.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from densenet_tutorial.data.folders import load_folder
from densenet_tutorial.data.image_dataset import ImageDataset, mean_and_std
from densenet_tutorial.utils import arguments

#: The classes of Fashion-MNIST, in the order of its labels.
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

#: SHA-256 of the files in ``bundled``.
FASHION_MINI_SHA256 = "d9db67166f584c9e1ac219bb2780d6b5a706c476378bb1108d446b5e90ad1c8b"
DIGITS_SHA256 = "2ebdc67e99821bd3a10c8dbdb383dd3a34738146b9976193e776a2757c7f0b14"

#: SHA-256 of the unpacked content of Fashion-MNIST's four files, since Debian's package has the
#: original files with other gzip headers.
FASHION_MNIST_SHA256 = {
    f"{name}-ubyte.gz": sha256
    for name, sha256 in (
        ("train-images-idx3", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        ("train-labels-idx1", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        ("t10k-images-idx3", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        ("t10k-labels-idx1", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    )
}

#: The folder of Debian's package ``dataset-fashion-mnist``.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


#: A function from :func:`load_dataset`'s `root` to a data set.
Loader = Callable[[Path | None], ImageDataset]

LOADERS: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Decorate a loader, to register it as the data set called `name`."""

    def decorate(loader: Loader) -> Loader:
        LOADERS[name] = loader
        return loader

    return decorate


def list_datasets() -> list[str]:
    """The names that :func:`load_dataset` accepts."""
    return list(LOADERS)


@arguments.check(root=arguments.optional(arguments.path), progress=arguments.boolean)
def load_dataset(
    name: str | os.PathLike[str] = "fashion-mini",
    root: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> ImageDataset:
    """Load a data set into memory.

    Args:
        name: one of :func:`list_datasets`; or the path of a folder of images by class.
        root: the folder for downloads; default ``DENSENET_TUTORIAL_DATA``, otherwise
            ``~/.cache/densenet-tutorial``. Fashion-MNIST in Debian's package is also found.
        progress: whether to show a progress bar while a folder is read.
        options: options of :func:`load_folder`, for a folder of images by class.

    Raises:
        ValueError: an unknown name or a wrong checksum; or as for :func:`load_folder`.
        ConnectionError: files are missing and cannot be downloaded; the message says where to put
            them.
    """
    if isinstance(name, str) and name in LOADERS:
        if options:
            raise ValueError(f"{min(options)} is for a folder of images by class, got {name!r}")
        return LOADERS[name](None if root is None else Path(root).expanduser())
    if isinstance(name, (str, os.PathLike)) and str(name) and Path(name).expanduser().is_dir():
        return load_folder(name, progress=progress, **options)
    raise ValueError(
        f"name must be one of {', '.join(map(repr, LOADERS))}, or a folder of images by class, "
        f"got {arguments.shown(name)}"
    )


def _convert_metadata(value: Any) -> dict[str, Any]:
    shape = value["image_shape"]
    arguments.sequence_of(arguments.positive_int).convert(shape)
    if len(shape) != 3 or not isinstance(value["name"], str):
        raise ValueError
    return value


_metadata = arguments.Check("the metadata() of a data set", _convert_metadata)


@arguments.check(metadata=_metadata)
def load_again(metadata: dict[str, Any], **options: Any) -> ImageDataset:
    """Load the data set that `metadata` describes (:meth:`ImageDataset.metadata`).

    Args:
        metadata: the metadata in a run's configuration.
        options: of :func:`load_dataset`, overriding `metadata`. The images of another folder are
            still converted to the size and channels in `metadata`.
    """
    name = options.pop("name", None) or metadata.get("folder") or metadata["name"]
    if name not in LOADERS:
        channels, *size = metadata["image_shape"]
        options = {"image_size": tuple(size), "channels": channels} | options
    return load_dataset(name, **options)


def _downloads(root: Path | None) -> Path:
    """The folder for downloads."""
    if root is None and (folder := os.environ.get("DENSENET_TUTORIAL_DATA")):
        return Path(folder).expanduser()
    try:
        return root or Path.home() / ".cache" / "densenet-tutorial"
    except RuntimeError as error:
        raise ValueError(
            "no home folder is known here to keep data sets in: let DENSENET_TUTORIAL_DATA name one"
        ) from error


def _dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: Sequence[str]
) -> ImageDataset:
    return ImageDataset(name, *train, *test, tuple(classes), *mean_and_std(train[0]))


def _bundled(file: str, sha256: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, side, side) and labels in a bundled file: a row per image, its label first."""
    packed = resources.files("densenet_tutorial").joinpath(f"data/bundled/{file}").read_bytes()
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise ValueError(f"{file} in the package is damaged (wrong SHA-256); install it again")
    rows = torch.from_numpy(np.load(io.BytesIO(bz2.decompress(packed)), allow_pickle=False))
    side = math.isqrt(rows.shape[1])
    return rows[:, 1:].reshape(-1, 1, side, side), rows[:, 0].long()


@register("fashion-mini")
def _fashion_mini(root: Path | None) -> ImageDataset:
    """6,000 images of Fashion-MNIST: 500 training and 100 test images of each class."""
    images, labels = _bundled("fashion-mini.npy.bz2", FASHION_MINI_SHA256)
    train, test = (images[:5000], labels[:5000]), (images[5000:], labels[5000:])
    return _dataset("fashion-mini", train, test, FASHION_CLASSES)


@register("digits")
def _digits(root: Path | None) -> ImageDataset:
    """8 x 8 pixels; Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0)."""
    sixteenths, labels = _bundled("digits.npy.bz2", DIGITS_SHA256)
    images = (sixteenths.float() * (255 / 16)).round().byte()
    train, test = (images[:797], labels[:797]), (images[797:], labels[797:])
    return _dataset("digits", train, test, tuple("0123456789"))


@register("fashion-mnist")
def _fashion_mnist(root: Path | None) -> ImageDataset:
    """Xiao et al. 2017, https://arxiv.org/abs/1708.07747 (MIT licence)."""
    folder = _find_fashion_mnist(_downloads(root))
    images, labels, test_images, test_labels = (
        _read_idx(folder / file, sha256) for file, sha256 in FASHION_MNIST_SHA256.items()
    )
    train, test = (
        (images.unsqueeze(1), labels.long()),
        (test_images.unsqueeze(1), test_labels.long()),
    )
    return _dataset("fashion-mnist", train, test, FASHION_CLASSES)


def _find_fashion_mnist(root: Path) -> Path:
    """The folder with Fashion-MNIST's four files, after a download if necessary."""
    target = root / "FashionMNIST" / "raw"  # torchvision's folder
    for folder in (root, target, DEBIAN_FASHION_MNIST):
        if all((folder / file).is_file() for file in FASHION_MNIST_SHA256):
            return folder
    where = (
        f"{', '.join(FASHION_MNIST_SHA256)} into {target}, or install Debian's package "
        "dataset-fashion-mnist"
    )
    address = torchvision.datasets.FashionMNIST.mirrors[0]
    for file, md5 in torchvision.datasets.FashionMNIST.resources:
        with _explaining_failed_downloads("fashion-mnist", where):
            torchvision.datasets.utils.download_url(address + file, str(target), file, md5)
    return target


def _read_idx(path: Path, sha256: str) -> Tensor:
    """Read an IDX file: gzip of two zero bytes, type 8 (uint8), rank, sizes, values."""
    try:
        data = bytearray(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and try again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"{path} is damaged (wrong SHA-256 of its content); remove it and try again"
        )
    rank = data[3]
    sizes = np.frombuffer(data, ">u4", count=rank, offset=4).tolist()
    return torch.frombuffer(data, dtype=torch.uint8, offset=4 + 4 * rank).reshape(sizes)


@register("cifar10")
def _cifar10(root: Path | None) -> ImageDataset:
    return _cifar("cifar10", torchvision.datasets.CIFAR10, _downloads(root))


@register("cifar100")
def _cifar100(root: Path | None) -> ImageDataset:
    return _cifar("cifar100", torchvision.datasets.CIFAR100, _downloads(root))


def _cifar(name: str, kind: Any, root: Path) -> ImageDataset:
    """Krizhevsky 2009, *Learning Multiple Layers of Features from Tiny Images*."""
    # torchvision verifies the MD5 of every file before it opens one.
    with _explaining_failed_downloads(name, f"{kind.filename} into {root}"):
        parts = [kind(str(root), train=train, download=True) for train in (True, False)]
    train, test = [
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    ]
    return _dataset(name, train, test, parts[0].classes)


@contextlib.contextmanager
def _explaining_failed_downloads(name: str, where: str) -> Iterator[None]:
    """Turn a failed download into an error that says where to put the files."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"{name!r} is not on this machine and could not be downloaded ({error}). Put {where}; "
            "or use 'fashion-mini', which needs no download."
        ) from error
