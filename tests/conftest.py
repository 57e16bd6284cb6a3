"""Data of several tests: a task that takes a fraction of a second, and the full Fashion-MNIST.

Which comparisons are exact on x86 alone is said in `exact.py`.
"""

import dataclasses
import os

import pytest

from densenet_tutorial import data
from densenet_tutorial.data import datasets


@pytest.fixture(scope="session")
def dataset():
    """200 training and 100 test pictures."""
    full = data.load_dataset("fashion-mini")
    return dataclasses.replace(
        full,
        train_images=full.train_images[:200],
        train_labels=full.train_labels[:200],
        test_images=full.test_images[:100],
        test_labels=full.test_labels[:100],
    )


def pytest_runtest_setup(item):
    """Skip what needs the full Fashion-MNIST: on one line, so that pytest says it once."""
    if item.get_closest_marker("full_fashion_mnist") and not datasets.DEBIAN_FASHION_MNIST.is_dir():
        give_up = pytest.fail if "CI" in os.environ else pytest.skip
        give_up("the full Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
