"""The class of all data sets: images with labels in memory, and their normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densenet_tutorial.utils import arguments


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images with their labels.

    Attributes:
        name: as given to :func:`load_dataset`, or the folder's own.
        train_images, test_images: uint8 tensors (N, C, H, W), at least one image each.
        train_labels, test_labels: int64 tensors (N,), indices into `classes`.
        classes: the class names.
        mean, std: per channel, over the training images scaled to 0 to 1.
        folder: the folder of images by class that they were read from, if any.

    Raises:
        ValueError: an attribute is invalid; the message says what it must be.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: str | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        channels, last = self.train_images.shape[1], len(self.classes) - 1
        shape = list(self.train_images.shape[1:])
        if list(self.test_images.shape[1:]) != shape:
            raise ValueError(
                f"test_images must be (N, {', '.join(map(str, shape))}), as train_images are, got "
                f"{arguments.shown(self.test_images)}"
            )
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if len(labels) != len(images):
                raise ValueError(
                    f"{part}_labels must be one for each of the {len(images)} {part}_images, which "
                    f"are {arguments.shown(images)}, got {arguments.shown(labels)}"
                )
            low, high = labels.min().item(), labels.max().item()
            if low < 0 or high > last:
                raise ValueError(
                    f"{part}_labels must be indices into the {last + 1} classes, from 0 to {last}, "
                    f"got {low} to {high} in {arguments.shown(labels)}"
                )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != channels:
                raise ValueError(
                    f"{name} must be one number for each of the {channels} channels, got "
                    f"{getattr(self, name)}"
                )

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (N, C, H, W) with the data set's mean and standard deviation."""
        return normalize(images, self.mean, self.std)

    def metadata(self) -> dict[str, Any]:
        """Description of the training data for users of a trained model, serialisable as JSON."""
        return {
            "name": self.name,
            "train_images": len(self.train_images),
            "image_shape": list(self.train_images.shape[1:]),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        } | ({} if self.folder is None else {"folder": self.folder})


def _some_images(value: Any) -> Tensor:
    images = arguments.uint8_images.convert(value)
    if 0 in images.shape:
        raise ValueError
    return images


_images = arguments.Check(f"{arguments.uint8_images}, at least one", _some_images)
_labels = arguments.tensor("int64", "N")
_CHECKS = {
    "name": arguments.text,
    "train_images": _images,
    "train_labels": _labels,
    "test_images": _images,
    "test_labels": _labels,
    "classes": arguments.sequence_of(arguments.text),
    "mean": arguments.sequence_of(arguments.finite_number),
    "std": arguments.sequence_of(arguments.positive_number),
    "folder": arguments.optional(arguments.text),
}


@arguments.check(
    images=arguments.uint8_images,
    mean=arguments.sequence_of(arguments.finite_number),
    std=arguments.sequence_of(arguments.positive_number),
)
def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 images (N, C, H, W) to floats of 0 to 1 and normalise them, per channel.

    Raises:
        ValueError: `images` are not uint8; floats may have been scaled already.
    """
    shift = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return (images.float() / 255 - shift) / scale


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), scaled to 0 to 1."""
    histogram = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(1000):  # to limit the memory of the transposed copy
        rows = part.transpose(0, 1).flatten(1)  # one for each channel
        histogram += torch.stack([row.bincount(minlength=256) for row in rows])
    frequencies = histogram.double() / histogram[0].sum()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = frequencies @ levels
    std = (frequencies @ levels**2 - mean**2).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
