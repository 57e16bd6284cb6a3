"""Images of one's own: a folder of images by class, as torchvision's ``ImageFolder`` takes it."""

import contextlib
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from tqdm import tqdm

from densenet_tutorial.data.images import read_image
from densenet_tutorial.utils import arguments

if TYPE_CHECKING:
    from densenet_tutorial.data.datasets import ImageDataset
