"""Training and evaluation mode of a model, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from densenet_tutorial.utils import arguments

Model = TypeVar("Model", bound=nn.Module)


@arguments.check(model=arguments.module)
@contextmanager
def evaluation_mode(model: Model) -> Iterator[Model]:
    """Put `model` into evaluation mode within the ``with`` block, and yield it.

    Afterwards, also after an error, every module is in its previous mode. That is more than
    ``model.train(was_training)`` does, which would also put modules into training mode that were
    deliberately in evaluation mode, such as frozen batch norm.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        model.train(before[0][1])  # for modules that override `train`
        for module, training in before:
            module.training = training
