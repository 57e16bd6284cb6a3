"""What several tests train: a task that takes a fraction of a second.

Which comparisons are exact on x86 alone is said in `exact.py`.
"""

import dataclasses

import pytest

from densenet_tutorial import data


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
