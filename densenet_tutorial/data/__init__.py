"""Data sets of small images, and reading your own images."""

from densenet_tutorial.data.datasets import (
    FASHION_CLASSES,
    list_datasets,
    load_again,
    load_dataset,
)
from densenet_tutorial.data.folders import TEST_FOLDERS, load_folder
from densenet_tutorial.data.image_dataset import ImageDataset, normalize
from densenet_tutorial.data.images import PHOTOGRAPHS, FitInside, photograph, read_image

__all__ = [
    "FASHION_CLASSES",
    "PHOTOGRAPHS",
    "TEST_FOLDERS",
    "FitInside",
    "ImageDataset",
    "list_datasets",
    "load_again",
    "load_dataset",
    "load_folder",
    "normalize",
    "photograph",
    "read_image",
]
