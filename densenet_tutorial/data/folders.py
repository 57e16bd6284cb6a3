"""Read a folder of images by class, in the layout of torchvision's ``ImageFolder``."""

import contextlib
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from tqdm import tqdm

from densenet_tutorial.data.image_dataset import ImageDataset, mean_and_std
from densenet_tutorial.data.images import FitInside, read_image
from densenet_tutorial.utils import arguments

_log = logging.getLogger(__name__)

#: Names of the folder of test images, beside one called ``train``.
TEST_FOLDERS = ("val", "valid", "validation", "test")

#: The largest default side, in pixels.
MAX_SIDE = 224

_THREADS = min(8, os.cpu_count() or 1)


def _image_size(value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    height, width = (arguments.positive_int.convert(side) for side in value)
    return height, width


@arguments.check(
    folder=arguments.path,
    image_size=arguments.optional(
        arguments.Check("a side in pixels, or height and width", _image_size)
    ),
    channels=arguments.optional(arguments.one_of((1, 3))),
    test_fraction=arguments.fraction,
    seed=arguments.seed,
    progress=arguments.boolean,
)
def load_folder(
    folder: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> ImageDataset:
    """Load a folder of images by class into memory.

    The folder has a subfolder for each class, ``FOLDER/CLASS/….jpg``, or ``FOLDER/train`` and
    one of :data:`TEST_FOLDERS` (the first that exists), each with a subfolder for each class. Class
    folders may be nested. Classes are in alphabetical order.

    Images are read by :func:`read_image`, resized to fit inside one size, and padded with black.
    Mean and standard deviation are those of the training images.

    Args:
        folder: its path.
        image_size: the size in pixels: a side, or height and width. ``None`` uses the size of the
            images if it is the same for all and at most :data:`MAX_SIDE`, otherwise the median of
            their shorter sides, but at most :data:`MAX_SIDE`.
        channels: 1 for grey, 3 for colour; ``None`` uses 1 if no image has colours.
        test_fraction: fraction of each class to hold out for testing, if there is no test folder.
        seed: seed of that split; independent of the seed of a training run, so that all runs have
            the same test images.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there is no such folder, a class has too few images, a test class has no
            training images, an image cannot be read, or the images do not fit into memory.
    """
    folder = Path(folder).expanduser()
    try:
        classes, train, test = _find(folder, test_fraction, seed)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; not read", error.filename) from error
    files = [file for file, _ in [*train, *test]]
    size = _common_size(files) if image_size is None else _image_size(image_size)
    images = _read(files, size, channels, progress)
    labels = torch.tensor([label for _, label in [*train, *test]])
    cut = len(train)
    mean, std = mean_and_std(images[:cut])
    if not any(std):
        raise ValueError(f"the images to train on in {folder} must show something, got one colour")
    std = tuple(value or 1.0 for value in std)  # a channel may be empty, in microscopy for example
    return ImageDataset(
        folder.resolve().name,
        *(images[:cut], labels[:cut], images[cut:], labels[cut:]),
        *(tuple(classes), mean, std, str(folder.resolve())),
    )


Samples = list[tuple[str, int]]


def _find(folder: Path, test_fraction: float, seed: int) -> tuple[list[str], Samples, Samples]:
    """The classes, and the training and test files with their labels."""
    if not folder.is_dir():
        raise ValueError(
            f"folder must be one of images by class, got {str(folder)!r}, which is none"
        )
    inside = _subfolders(folder)
    if "train" in inside and _subfolders(folder / "train"):
        tests = [folder / name for name in TEST_FOLDERS if name in inside]
        root = folder / "train"
    else:
        tests, root = [], folder
    classes = _subfolders(root)
    if not classes:
        raise ValueError(
            "folder must hold a folder for each class, or train and "
            f"{' or '.join(TEST_FOLDERS)} with such folders, got {str(folder)!r}, which holds none"
        )
    samples = _samples(root, classes)
    counts = np.bincount([label for _, label in samples], minlength=len(classes))
    least = 1 if tests else 2
    for name, count in zip(classes, counts):
        if count < least:
            raise ValueError(
                f"{root / name} must hold at least {least} images "
                f"({', '.join(IMG_EXTENSIONS)}), got {count}"
            )
    if not tests:
        return classes, *_split(samples, counts, test_fraction, seed)
    if unknown := sorted(set(_subfolders(tests[0])) - set(classes)):
        raise ValueError(f"{tests[0]} must have the classes of {root}, got {unknown[0]!r} as well")
    found = _samples(tests[0], classes)
    if not found:
        raise ValueError(f"{tests[0]} must hold images by class, got none")
    return classes, samples, found


def _subfolders(folder: Path) -> list[str]:
    """The names of the visible folders in `folder`, in torchvision's order."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")


def _samples(root: Path, classes: Sequence[str]) -> Samples:
    """The images in ``root / CLASS``, if it exists, with the index of CLASS in `classes`."""
    indices = {name: index for index, name in enumerate(classes)}
    samples = make_dataset(str(root), indices, extensions=IMG_EXTENSIONS, allow_empty=True)
    samples = [sample for sample in samples if not Path(sample[0]).name.startswith(".")]
    files = (
        file
        for name in classes
        for _, _, names in os.walk(root / name, followlinks=True)
        for file in names
        if not file.startswith(".")
    )
    if left := sum(1 for _ in files) - len(samples):
        _log.warning(
            "%s: %d files are ignored, which do not end in %s",
            root,
            left,
            ", ".join(IMG_EXTENSIONS),
        )
    return samples


def _split(
    samples: Samples, counts: np.ndarray, fraction: float, seed: int
) -> tuple[Samples, Samples]:
    """Training and test samples: `fraction` of each class for testing, at least one, not all."""
    test: set[int] = set()
    for label, count in enumerate(counts):
        mine = [i for i, sample in enumerate(samples) if sample[1] == label]
        order = np.random.default_rng([seed, label]).permutation(mine)
        test.update(order[: min(count - 1, max(1, round(count * fraction)))].tolist())
    parts: tuple[Samples, Samples] = ([], [])
    for i, sample in enumerate(samples):
        parts[i in test].append(sample)
    return parts


def _common_size(files: Sequence[str]) -> tuple[int, int]:
    """The default size, from at most 100 of the images, evenly spaced."""
    sizes = []
    for file in files[:: -(-len(files) // 100)]:
        with contextlib.suppress(ValueError):  # reported when all images are read
            image = read_image(file)
            sizes.append((image.height, image.width))
    if len(set(sizes)) == 1 and max(sizes[0]) <= MAX_SIDE:
        return sizes[0]
    side = int(statistics.median([min(size) for size in sizes] or [MAX_SIDE]))
    return min(MAX_SIDE, side), min(MAX_SIDE, side)


def _read(
    files: Sequence[str], size: tuple[int, int], channels: int | None, progress: bool
) -> Tensor:
    """All images, (N, C, H, W), of `size`."""
    needed, memory = len(files) * (channels or 3) * size[0] * size[1], _total_memory()
    if needed > memory / 2:
        raise ValueError(
            f"image_size must be one at which {len(files):,} images fit into half of the memory, "
            f"got {size[0]} x {size[1]} pixels, which takes {needed / 2**30:.1f} of "
            f"{memory / 2**30:.1f} GiB"
        )
    fit = FitInside(*size)
    images = np.empty((len(files), channels or 3, *size), dtype=np.uint8)
    failed: list[str] = []

    def read(index: int) -> None:
        try:
            image = fit(read_image(files[index]))
        except ValueError as error:
            failed.append(str(error))
            return
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        images[index] = pixels.reshape(*size, -1).transpose(2, 0, 1)

    with _threaded_map(read, range(len(files))) as done:
        for _ in tqdm(done, "reading images", len(files), unit=" images", disable=not progress):
            pass
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(files)} images cannot be used. The first: {min(failed)}"
        )
    if channels is None and all((i[0] == i[1]).all() and (i[1] == i[2]).all() for i in images):
        images = images[:, :1].copy()
    return torch.from_numpy(images)


@contextlib.contextmanager
def _threaded_map(
    function: Callable[[int], None], items: Sequence[int]
) -> Iterator[Iterator[None]]:
    """``map`` with threads; cancels the remaining calls after an error or Ctrl-C."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _total_memory() -> float:
    """Bytes of physical memory, or infinity if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # for example, Windows
        return float("inf")
