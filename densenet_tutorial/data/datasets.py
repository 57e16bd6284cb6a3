"""Data sets of small images, held in memory as bytes.

``fashion-mini`` and ``digits`` ship with the package. The full sets come through torchvision, or from a folder that
already holds their files; ``DENSENET_TUTORIAL_DATA`` says where (default ``~/.cache/densenet-tutorial``).
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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from densenet_tutorial.utils import arguments

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

#: SHA-256 of the files in ``bundled``.
FASHION_MINI_SHA256 = "d9db67166f584c9e1ac219bb2780d6b5a706c476378bb1108d446b5e90ad1c8b"
DIGITS_SHA256 = "2ebdc67e99821bd3a10c8dbdb383dd3a34738146b9976193e776a2757c7f0b14"

#: SHA-256 of what is inside Fashion-MNIST's four files. (Of the content, since packers differ: Debian's package
#: holds the original files with the name and time taken out of their gzip headers.)
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

#: Where Debian's package ``dataset-fashion-mnist`` puts the original files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images with their labels.

    Attributes:
        name: as given to :func:`load_dataset`.
        train_images, test_images: uint8 of (N, C, H, W), values 0 to 255.
        train_labels, test_labels: int64 of (N,), indices into `classes`.
        classes: the class names.
        mean, std: per channel, over the training images scaled to 0 to 1.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) to floats with mean 0 and standard deviation 1 per channel, on their device."""
        return normalize(images, self.mean, self.std)

    def description(self) -> dict[str, Any]:
        """What a user of a trained model has to know of its data, as JSON can hold it."""
        return {
            "name": self.name,
            "train_images": len(self.train_images),
            "image_shape": list(self.train_images.shape[1:]),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (N, C, H, W) to floats: scaled to 0 to 1, minus `mean`, over `std`, both per channel of that scale."""
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - shift) / scale


def load_dataset(name: str = "fashion-mini", root: str | Path | None = None) -> ImageDataset:
    """Load a data set into memory.

    Args:
        name: ``"fashion-mini"`` or ``"digits"`` (8 x 8 pixels; 797 to train on, 1,000 to test on), which ship with the
            package; ``"fashion-mnist"``, ``"cifar10"`` or ``"cifar100"``.
        root: the folder to look in and to download to; default ``DENSENET_TUTORIAL_DATA``, else
            ``~/.cache/densenet-tutorial``. For Fashion-MNIST, Debian's package is found by itself.

    Raises:
        ValueError: an unknown name, or a file whose checksum is wrong.
        ConnectionError: files are missing and cannot be downloaded; the message says where to put them.

    Source: Xiao et al. 2017, https://arxiv.org/abs/1708.07747 (Fashion-MNIST, MIT licence); Krizhevsky 2009,
    *Learning Multiple Layers of Features from Tiny Images* (CIFAR); Alpaydin and Kaynak 1998,
    https://doi.org/10.24432/C50P49 (digits, CC BY 4.0).
    """
    arguments.one_of(_LOADERS)("name", name)
    folder = Path(root or os.environ.get("DENSENET_TUTORIAL_DATA") or "~/.cache/densenet-tutorial")
    try:
        folder = folder.expanduser()
    except RuntimeError as error:  # nobody's home is known; what ships needs none
        if name not in ("fashion-mini", "digits"):
            raise ValueError(
                f"no home folder is known here to keep {name!r} in: let DENSENET_TUTORIAL_DATA name one"
            ) from error
    return _LOADERS[name](folder)


def _dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...]
) -> ImageDataset:
    values = train[0].transpose(0, 1).flatten(1)  # one row of bytes per channel
    histogram = (
        torch.stack([row.bincount(minlength=256) for row in values]).double() / values.shape[1]
    )
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = histogram @ levels
    std = (histogram @ levels**2 - mean**2).sqrt()
    return ImageDataset(name, *train, *test, classes, tuple(mean.tolist()), tuple(std.tolist()))


def _shipped(file: str, sha256: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, side, side) and labels of a file in ``bundled``: one row an image, the label first."""
    packed = resources.files("densenet_tutorial").joinpath(f"data/bundled/{file}").read_bytes()
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise ValueError(f"{file} in the package is damaged (wrong SHA-256); install it again")
    rows = torch.from_numpy(np.load(io.BytesIO(bz2.decompress(packed)), allow_pickle=False))
    side = math.isqrt(rows.shape[1])
    return rows[:, 1:].reshape(-1, 1, side, side), rows[:, 0].long()


def _fashion_mini(root: Path) -> ImageDataset:
    images, labels = _shipped("fashion-mini.npy.bz2", FASHION_MINI_SHA256)
    train, test = (images[:5000], labels[:5000]), (images[5000:], labels[5000:])
    return _dataset("fashion-mini", train, test, FASHION_CLASSES)


def _digits(root: Path) -> ImageDataset:
    sixteenths, labels = _shipped("digits.npy.bz2", DIGITS_SHA256)
    images = (sixteenths.float() * (255 / 16)).round().byte()
    train, test = (images[:797], labels[:797]), (images[797:], labels[797:])
    return _dataset("digits", train, test, tuple("0123456789"))


def _fashion_mnist(root: Path) -> ImageDataset:
    folder = _find_fashion_mnist(root)
    images, labels, test_images, test_labels = (
        _read_idx(folder / file, sha256) for file, sha256 in FASHION_MNIST_SHA256.items()
    )
    train, test = (
        (images.unsqueeze(1), labels.long()),
        (test_images.unsqueeze(1), test_labels.long()),
    )
    return _dataset("fashion-mnist", train, test, FASHION_CLASSES)


def _find_fashion_mnist(root: Path) -> Path:
    """The folder that holds Fashion-MNIST's four files; they are downloaded to `root` if they are nowhere."""
    target = root / "FashionMNIST" / "raw"  # where torchvision keeps them
    for folder in (root, target, DEBIAN_FASHION_MNIST):
        if all((folder / file).is_file() for file in FASHION_MNIST_SHA256):
            return folder
    where = f"{', '.join(FASHION_MNIST_SHA256)} into {target}, or install Debian's package dataset-fashion-mnist"
    address = torchvision.datasets.FashionMNIST.mirrors[0]
    for file, md5 in torchvision.datasets.FashionMNIST.resources:
        with _explaining_failed_downloads("fashion-mnist", where):
            torchvision.datasets.utils.download_url(address + file, str(target), file, md5)
    return target


def _read_idx(path: Path, sha256: str) -> Tensor:
    """Read one of MNIST's files, a gzip of: two zero bytes, type 8 (bytes), rank, sizes, the values."""
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


def _cifar(name: str, kind: type) -> Callable[[Path], ImageDataset]:
    def load(root: Path) -> ImageDataset:
        # torchvision compares every file with its MD5 before it opens one.
        with _explaining_failed_downloads(name, f"{kind.filename} into {root}"):
            parts = [kind(str(root), train=train, download=True) for train in (True, False)]
        train, test = [
            (
                torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                torch.tensor(part.targets),
            )
            for part in parts
        ]
        return _dataset(name, train, test, tuple(parts[0].classes))

    return load


@contextlib.contextmanager
def _explaining_failed_downloads(name: str, where: str) -> Iterator[None]:
    """Turn a failed download into one sentence with the way out."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"{name!r} is not on this machine and could not be downloaded ({error}). Put {where}; "
            "or use 'fashion-mini', which needs no download."
        ) from error


_LOADERS: dict[str, Callable[[Path], ImageDataset]] = {
    "fashion-mini": _fashion_mini,
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar("cifar10", torchvision.datasets.CIFAR10),
    "cifar100": _cifar("cifar100", torchvision.datasets.CIFAR100),
}
