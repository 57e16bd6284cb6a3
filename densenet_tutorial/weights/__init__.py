"""Trained weights: loading, converting and saving them, and the transforms that they need."""

from densenet_tutorial.weights.layouts import adapt_state_dict, convert_state_dict
from densenet_tutorial.weights.sources import (
    IMAGENET_FILES,
    Weights,
    WeightsError,
    adapt,
    bundled,
    categories,
    is_cached,
    read,
    results,
    save,
    trained_on,
    transforms,
)

__all__ = [
    "IMAGENET_FILES",
    "Weights",
    "WeightsError",
    "adapt",
    "adapt_state_dict",
    "bundled",
    "categories",
    "convert_state_dict",
    "is_cached",
    "read",
    "results",
    "save",
    "trained_on",
    "transforms",
]
