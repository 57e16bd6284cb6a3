"""Training an image classifier, in one process or several, from the start or from a checkpoint."""

from densenet_tutorial.training.augmentation import list_augmentations
from densenet_tutorial.training.loop import (
    Training,
    evaluate,
    evaluation_mode,
    fit,
    freeze,
    predict,
    requests_to_stop,
    seeded,
    with_progress,
)
from densenet_tutorial.training.recipe import AMP, SCHEDULES, Recipe, list_schedules

__all__ = [
    "AMP",
    "SCHEDULES",
    "Recipe",
    "Training",
    "evaluate",
    "evaluation_mode",
    "fit",
    "freeze",
    "list_augmentations",
    "list_schedules",
    "predict",
    "requests_to_stop",
    "seeded",
    "with_progress",
]
