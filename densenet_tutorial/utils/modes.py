"""Training and evaluation mode of a model's modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from densenet_tutorial.utils import arguments

Model = TypeVar("Model", bound=nn.Module)


@arguments.check(model=arguments.module)
@contextmanager
def evaluation_mode(model: Model) -> Iterator[Model]:
    """Within the ``with`` block, `model` is in evaluation mode; `model` is also what the block gets.

    Afterwards, also after an error, every module is in the mode that it was in. ``model.train(was_training)`` would
    not do that: it also puts those into training mode that were kept in evaluation mode, frozen batch norm for one.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        model.train(before[0][1])  # for modules that do something in their own `train`
        for module, training in before:
            module.training = training
