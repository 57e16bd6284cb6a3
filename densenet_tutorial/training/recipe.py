"""How to train: :class:`Recipe`, and what it can choose from."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from densenet_tutorial.training.augmentation import AUGMENTATIONS
from densenet_tutorial.utils.arguments import (
    Check,
    boolean,
    fraction,
    non_negative_int,
    one_of,
    optional,
    positive_int,
    positive_number,
    sequence_of,
)

#: How the learning rate changes over all steps of a run, from an optimizer, its learning rate and the number of steps.
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float, int], LRScheduler]] = {
    "step": lambda optimizer, lr, steps: lr_scheduler.MultiStepLR(
        optimizer, [math.ceil(steps / 2), math.ceil(steps * 3 / 4)]
    ),
    "cosine": lambda optimizer, lr, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "one-cycle": lambda optimizer, lr, steps: lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, cycle_momentum=False
    ),
}

#: Lower precisions for the forward pass.
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _option(default: Any, check: Check, help: str) -> Any:
    """A field of :class:`Recipe`: its check, and the words that the command line shows."""
    return dataclasses.field(default=default, metadata={"check": check, "help": help})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the paper's for CIFAR (section 4.2), which augments by ``("crop", "flip")``.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, of all processes together; a last, smaller batch is left out.
        lr: the learning rate at its highest.
        schedule: ``"step"`` (a tenth after half, a hundredth after three quarters of the steps), ``"cosine"`` (down
            to zero along half a wave) or ``"one-cycle"`` (up for 30 % of the steps, then down).
        weight_decay: L2 penalty on all parameters.
        label_smoothing: share of each label that is spread over all classes, 0 to 1.
        augment: names from :data:`augmentation.AUGMENTATIONS`, in the order in which they are applied.
        clip_norm: gradients are scaled down to this norm where theirs is larger; ``None`` leaves them.
        amp: ``"bf16"`` or ``"fp16"`` for a forward pass in lower precision, ``None`` for float32.
        channels_last: whether all channels of a pixel lie next to each other in memory. The results are the same.
        compile: whether to run the model through ``torch.compile``.
        sync_batch_norm: whether batch norm takes its statistics over all processes' images (on GPUs).
        seed: of the images' order, of augmentation and of dropout. (Initial weights are the model's own affair.)

    Raises:
        ValueError: an attribute is out of its range.

    Source: Huang et al. 2017, https://arxiv.org/abs/1608.06993, section 4.2; one cycle: Smith and Topin 2018,
    https://arxiv.org/abs/1708.07120.
    """

    epochs: int = _option(300, positive_int, "passes over the images")
    batch_size: int = _option(64, positive_int, "images per step, of all processes together")
    lr: float = _option(0.1, positive_number, "learning rate at its highest")
    schedule: str = _option("step", one_of(SCHEDULES), "of the learning rate")
    weight_decay: float = _option(1e-4, fraction, "L2 penalty on all parameters")
    label_smoothing: float = _option(0.0, fraction, "share of each label that all classes get")
    augment: tuple[str, ...] = _option(
        (), sequence_of(one_of(AUGMENTATIONS), empty=True), "applied in the order given"
    )
    clip_norm: float | None = _option(
        None, optional(positive_number), "scale larger gradients down to this norm"
    )
    amp: str | None = _option(
        None, optional(one_of(AMP)), "precision of the forward pass, where not float32"
    )
    channels_last: bool = _option(True, boolean, "the channels of a pixel lie together in memory")
    compile: bool = _option(False, boolean, "run the model through torch.compile")
    sync_batch_norm: bool = _option(False, boolean, "batch statistics over all processes (on GPUs)")
    seed: int = _option(0, non_negative_int, "of all random numbers")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
