"""Data sets of small images, and pictures of one's own."""

from densenet_tutorial.data.datasets import FASHION_CLASSES, ImageDataset, load_dataset, normalize
from densenet_tutorial.data.images import PHOTOGRAPHS, FitInside, photograph, read_image

__all__ = [
    "FASHION_CLASSES",
    "PHOTOGRAPHS",
    "FitInside",
    "ImageDataset",
    "load_dataset",
    "normalize",
    "photograph",
    "read_image",
]
