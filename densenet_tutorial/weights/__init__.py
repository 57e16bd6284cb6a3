"""Trained weights: where they come from, what they are of, and how to prepare images for them."""

from densenet_tutorial.weights.layouts import adapt_state_dict, convert_state_dict
from densenet_tutorial.weights.sources import (
    IMAGENET_FILES,
    Weights,
    WeightsError,
    adapt,
    categories,
    is_here,
    read,
    results,
    save,
    shipped,
    trained_on,
    transforms,
)

__all__ = [
    "IMAGENET_FILES",
    "Weights",
    "WeightsError",
    "adapt",
    "adapt_state_dict",
    "categories",
    "convert_state_dict",
    "is_here",
    "read",
    "results",
    "save",
    "shipped",
    "trained_on",
    "transforms",
]
