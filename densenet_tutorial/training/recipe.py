"""How to train: :class:`Recipe`, and the schedules that it can choose from."""

import math

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from densenet_tutorial.training.augmentation import AUGMENTATIONS
from densenet_tutorial.utils.arguments import (
    boolean,
    fraction,
    non_negative_int,
    one_of,
    optional,
    positive_int,
    positive_number,
    sequence_of,
)
from densenet_tutorial.utils.options import checked_dataclass, option


def step(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """The paper's: a tenth of `lr` after half of the steps, a hundredth after three quarters."""
    return lr_scheduler.MultiStepLR(optimizer, [math.ceil(steps / 2), math.ceil(steps * 3 / 4)])


def cosine(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """From `lr` down to zero along half a cosine wave."""
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: Optimizer, lr: float, steps: int) -> LRScheduler:
    """Up to `lr` for 30 % of the steps, then down (Smith and Topin 2018)."""
    return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, cycle_momentum=False)


#: How the learning rate changes: from an optimizer, its learning rate and the number of a run's
#: steps to a scheduler that is advanced once a step.
SCHEDULES = {"step": step, "cosine": cosine, "one-cycle": one_cycle}

#: Lower precisions for the forward pass.
AMP: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def list_schedules() -> list[str]:
    """The names that ``Recipe.schedule`` may be."""
    return list(SCHEDULES)


@checked_dataclass
class Recipe:
    """How to train. The defaults are the paper's for CIFAR, which augments by ``("crop", "flip")``.

    Raises:
        ValueError: an attribute is out of its range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.2; one cycle: Smith and
    Topin 2018, https://arxiv.org/abs/1708.07120.
    """

    epochs: int = option(300, positive_int, "passes over the training images")
    batch_size: int = option(
        64,
        positive_int,
        "images per step, of all processes together; a last, smaller batch is left out",
    )
    lr: float = option(0.1, positive_number, "the learning rate at its highest")
    schedule: str = option(
        "step", one_of(SCHEDULES), "how the learning rate changes over all steps"
    )
    weight_decay: float = option(1e-4, fraction, "L2 penalty on all parameters")
    label_smoothing: float = option(
        0.0, fraction, "how much of each label is spread over all classes, 0 to 1"
    )
    augment: tuple[str, ...] = option(
        (),
        sequence_of(one_of(AUGMENTATIONS), empty=True),
        "changes to training images, in the order in which they are applied",
    )
    clip_norm: float | None = option(
        None, optional(positive_number), "a larger gradient is scaled down to this norm"
    )
    amp: str | None = option(
        None,
        optional(one_of(AMP)),
        "precision of the forward pass, where it is not to be float32",
        bare="bf16",
    )
    channels_last: bool = option(
        True,
        boolean,
        "whether a pixel's channels lie next to each other in memory; the results are the same",
    )
    compile: bool = option(False, boolean, "whether to run the model through torch.compile")
    sync_batch_norm: bool = option(
        False,
        boolean,
        "whether batch norm takes its statistics over the images of all processes (on GPUs)",
    )
    seed: int = option(
        0,
        non_negative_int,
        "of the images' order, of augmentation, of dropout and, on the command line, of the "
        "initial weights",
    )
