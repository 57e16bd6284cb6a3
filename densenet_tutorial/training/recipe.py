"""The hyperparameters of a training run, :class:`Recipe`, and learning-rate schedules."""

import math

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from densenet_tutorial.training.augmentation import AUGMENTATIONS
from densenet_tutorial.utils.arguments import (
    boolean,
    fraction,
    one_of,
    optional,
    positive_int,
    positive_number,
    sequence_of,
)
from densenet_tutorial.utils.arguments import seed as random_seed
from densenet_tutorial.utils.options import checked_dataclass, option


def step(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """The paper's schedule: `lr` / 10 after half of the steps, `lr` / 100 after three quarters."""
    return lr_scheduler.MultiStepLR(optimizer, [math.ceil(steps / 2), math.ceil(steps * 3 / 4)])


def cosine(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """Cosine annealing from `lr` to zero."""
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """Up to `lr` for 30 % of the steps, then down (Smith and Topin 2018)."""
    return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)


#: Functions from an optimizer, its learning rate and the number of steps of a run to a scheduler,
#: which is advanced once per step.
SCHEDULES = {"step": step, "cosine": cosine, "one-cycle": one_cycle}

#: Lower precisions for the forward pass.
AMP: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def list_schedules() -> list[str]:
    """The values of ``Recipe.schedule``."""
    return list(SCHEDULES)


@checked_dataclass
class Recipe:
    """Hyperparameters. Defaults are the paper's for CIFAR, whose `augment` is ``("crop", "flip")``.

    Raises:
        ValueError: an attribute is out of range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.2; one cycle: Smith and
    Topin 2018, https://arxiv.org/abs/1708.07120.
    """

    epochs: int = option(positive_int, "passes over the training images", default=300)
    batch_size: int = option(
        positive_int,
        "images per step, over all processes; a last, smaller batch is dropped",
        default=64,
    )
    lr: float = option(positive_number, "maximum learning rate", default=0.1)
    schedule: str = option(
        one_of(SCHEDULES), "how the learning rate changes over all steps", default="step"
    )
    weight_decay: float = option(fraction, "L2 penalty on all parameters", default=1e-4)
    label_smoothing: float = option(
        fraction, "fraction of each label to distribute over all classes, 0 to 1", default=0.0
    )
    augment: tuple[str, ...] = option(
        sequence_of(one_of(AUGMENTATIONS), empty=True),
        "augmentations of training images, in order",
        default=(),
    )
    clip_norm: float | None = option(
        optional(positive_number), "maximum norm of the gradient", default=None
    )
    amp: str | None = option(
        optional(one_of(AMP)),
        "lower precision for the forward pass, instead of float32",
        default=None,
        bare="bf16",
    )
    channels_last: bool = option(
        boolean,
        "whether to use the memory format channels_last; the results are the same",
        default=True,
    )
    compile: bool = option(boolean, "whether to run the model through torch.compile", default=False)
    sync_batch_norm: bool = option(
        boolean,
        "whether batch norm uses the statistics of all processes (on GPUs)",
        default=False,
    )
    seed: int = option(
        random_seed,
        "random seed for the order of images, augmentation, dropout and, on the command line, the "
        "initial weights",
        default=0,
    )
