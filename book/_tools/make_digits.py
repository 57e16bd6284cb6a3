"""Make ``digits.npy.bz2`` again, byte for byte, from the file that scikit-learn ships.

    python book/_tools/make_digits.py FOLDER/sklearn/datasets/data/digits.csv.gz [--output FILE]

One row an image, in the original order: the label, then 64 bytes from 0 to 16. bzip2, since its one
implementation gives the same bytes everywhere.
"""

import argparse
import bz2
import gzip
import hashlib
import io
from pathlib import Path

import numpy as np

from densenet_tutorial.utils import files

BUNDLED = Path(__file__).resolve().parents[2] / "densenet_tutorial/data/bundled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="scikit-learn's digits.csv.gz")
    parser.add_argument("--output", type=Path, default=BUNDLED / "digits.npy.bz2")
    options = parser.parse_args()

    with gzip.open(options.source) as source:
        table = np.loadtxt(source, delimiter=",").astype(np.uint8)  # 64 pixels, then the label
    file = io.BytesIO()
    np.save(file, np.roll(table, 1, axis=1))
    packed = bz2.compress(file.getvalue(), 9)
    files.write(options.output, packed)
    print(f"{options.output}: {len(packed):,} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
