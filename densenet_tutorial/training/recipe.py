"""How to train: :class:`Recipe`, and what it can choose from."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from densenet_tutorial.training.augmentation import AUGMENTATIONS
from densenet_tutorial.utils import arguments

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

    epochs: int = 300
    batch_size: int = 64
    lr: float = 0.1
    schedule: str = "step"
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    clip_norm: float | None = None
    amp: str | None = None
    channels_last: bool = True
    compile: bool = False
    sync_batch_norm: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.positive_int("epochs", self.epochs)
        arguments.positive_int("batch_size", self.batch_size)
        arguments.positive_number("lr", self.lr)
        arguments.one_of("schedule", self.schedule, SCHEDULES)
        arguments.fraction("weight_decay", self.weight_decay, zero=True)
        arguments.fraction("label_smoothing", self.label_smoothing, zero=True)
        for name in self.augment:
            arguments.one_of("augment", name, AUGMENTATIONS)
        if self.clip_norm is not None:
            arguments.positive_number("clip_norm", self.clip_norm)
        arguments.one_of("amp", self.amp, (None, *AMP))
        arguments.whole_number("seed", self.seed)
