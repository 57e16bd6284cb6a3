"""Make ``fashion-mini.npy.bz2`` again, byte for byte, from the full Fashion-MNIST.

    python book/_tools/make_fashion_mini.py [FOLDER] [--output FILE]

FOLDER holds the four original files (Debian's package ``dataset-fashion-mnist``, or a download). Of
each class
the first 500 training and the first 100 test images are kept, in their original order. One row an
image: the label, then 784 bytes. bzip2, since its one implementation gives the same bytes
everywhere.
"""

import argparse
import bz2
import hashlib
import io
from pathlib import Path

import numpy as np
import torch

from densenet_tutorial import data
from densenet_tutorial.data import datasets
from densenet_tutorial.utils import files

BUNDLED = Path(__file__).resolve().parents[2] / "densenet_tutorial/data/bundled"


def first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the first `count` examples of every class, in their original order."""
    chosen = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return torch.cat(chosen).sort().values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=datasets.DEBIAN_FASHION_MNIST)
    parser.add_argument("--output", type=Path, default=BUNDLED / "fashion-mini.npy.bz2")
    options = parser.parse_args()

    full = data.load_dataset("fashion-mnist", options.folder)
    rows = []
    for images, labels, count in (
        (full.train_images, full.train_labels, 500),
        (full.test_images, full.test_labels, 100),
    ):
        chosen = first_of_each_class(labels, count)
        rows.append(torch.cat([labels[chosen, None].byte(), images[chosen].flatten(1)], dim=1))
    file = io.BytesIO()
    np.save(file, torch.cat(rows).numpy())
    packed = bz2.compress(file.getvalue(), 9)

    files.write(options.output, packed)
    print(f"{options.output}: {len(packed):,} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
