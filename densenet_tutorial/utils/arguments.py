"""Argument validation, with one wording for all error messages.

    @arguments.check(num_layers=positive_int, drop_rate=fraction)
    def build(num_layers: int, drop_rate: float = 0.0) -> nn.Module: ...

A :class:`Check` takes the name and the value of an argument and returns the value converted: an
``int`` for NumPy's, a tuple for a list. An invalid value raises a ``ValueError`` that names the
argument, the values that are valid, and the one that was passed.
"""

import contextlib
import functools
import inspect
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Check:
    """The values that an argument may have.

    Attributes:
        description: completes "NAME must be …"; a function where it is known only later.
        convert: returns the value as it is to be used, or raises a ``ValueError`` or ``TypeError``.
        choices: the valid values, or those of the elements of a sequence, if they are a list.
    """

    description: str | Callable[[], str]
    convert: Callable[[Any], Any]
    choices: Collection[Any] = ()

    def __str__(self) -> str:
        return self.description if isinstance(self.description, str) else self.description()

    def __call__(self, name: str, value: Any) -> Any:
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError, LookupError):
            raise ValueError(f"{name} must be {self}, got {shown(value)}") from None


def check(
    *relations: Callable[..., None], **checks: Check
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: arguments that are given go through their checks first.

    Args:
        relations: checks of several arguments together: functions of some of them, by name, that
            raise a ``ValueError``.
        checks: the check of each argument by itself. Defaults are not checked.
    """
    related = [(relation, inspect.signature(relation).parameters) for relation in relations]

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        named = checks.keys() | {name for _, names in related for name in names}
        if unknown := named - signature.parameters.keys():
            raise TypeError(f"{function.__qualname__} has no arguments {sorted(unknown)}")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = None
            with contextlib.suppress(TypeError):
                bound = signature.bind(*args, **kwargs)
            if bound is None:
                return function(*args, **kwargs)  # Python's own words for a missing argument
            for name, value in bound.arguments.items():
                if name in checks:
                    bound.arguments[name] = checks[name](name, value)
            bound.apply_defaults()
            for relation, names in related:
                relation(**{name: bound.arguments[name] for name in names})
            return function(*bound.args, **bound.kwargs)

        return checked

    return decorate


class _Short(reprlib.Repr):
    """The short ``repr`` of reprlib, without the elements of tensors and arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, torch.Tensor):
            return f"a tensor of {x.dtype}, shape {list(x.shape)}"
        if isinstance(x, np.ndarray):
            return f"a NumPy array of {x.dtype}, shape {list(x.shape)}"
        return super().repr1(x, level)


def shown(value: Any) -> str:
    """A short ``repr`` of `value` on one line, for a message."""
    return " ".join(_Short().repr(value).split())


def integer(least: int | None = None, most: int | None = None) -> Check:
    """An integer, Python's or NumPy's, from `least` to `most`, and no bool."""

    def convert(value: Any) -> int:
        if isinstance(value, (bool, np.bool_, torch.Tensor)):
            raise TypeError
        number = operator.index(value)
        if (least is not None and number < least) or (most is not None and number > most):
            raise ValueError
        return number

    limits = "" if least is None else f" of at least {least}"
    if most is not None:
        limits = f" of at most {most}" if least is None else f" from {least} to {most}"
    return Check(f"a whole number{limits}", convert)


def _real(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _number(description: str, valid: Callable[[float], bool]) -> Check:
    def convert(value: Any) -> float:
        number = _real(value)
        if not valid(number):
            raise ValueError
        return number

    return Check(description, convert)


positive_int = integer(1)
non_negative_int = integer(0)
seed = integer(0, 2**63 - 1)  # as torch.manual_seed takes them
positive_number = _number("a finite number above 0", lambda x: 0 < x < math.inf)
non_negative_number = _number("a finite number of at least 0", lambda x: 0 <= x < math.inf)
number_of_at_least_1 = _number("a finite number of at least 1", lambda x: 1 <= x < math.inf)
fraction = _number("a number from 0 to 1", lambda x: 0 <= x <= 1)
positive_fraction = _number("a number above 0 and at most 1", lambda x: 0 < x <= 1)


def _boolean(value: Any) -> bool:
    one = isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.dim() == 0
    if not (one or isinstance(value, (bool, np.bool_))):
        raise TypeError
    return bool(value)


boolean = Check("True or False", _boolean)


def one_of(choices: Collection[Any]) -> Check:
    """One of `choices`, equal and of the same type: 1 is not True."""

    def convert(value: Any) -> Any:
        for choice in choices:
            if value is choice or (type(value) is type(choice) and value == choice):
                return choice
        raise ValueError

    return Check(lambda: f"one of {', '.join(map(repr, choices))}", convert, choices)


def optional(inner: Check) -> Check:
    """``None``, or a value that `inner` accepts."""
    return Check(
        lambda: f"{inner}, or None",
        lambda value: None if value is None else inner.convert(value),
        inner.choices,
    )


def sequence_of(inner: Check, *, empty: bool = False, most: int | None = None) -> Check:
    """A list, tuple or other sequence of elements that `inner` accepts; returned as a tuple."""

    def convert(values: Any) -> tuple[Any, ...]:
        # Python iterates over these as well: strings by letter, sets in no order, dicts by key.
        if isinstance(values, (str, bytes, bytearray, AbstractSet, Mapping)):
            raise TypeError
        if not hasattr(values, "__len__"):
            raise TypeError  # a generator, which is empty the second time
        converted = tuple(inner.convert(value) for value in values)
        if (not converted and not empty) or (most is not None and len(converted) > most):
            raise ValueError
        return converted

    kind = "a sequence" if empty else "a non-empty sequence"
    count = "" if most is None else f" of at most {most}"
    return Check(lambda: f"{kind}{count}, each element {inner}", convert, inner.choices)


def mapping_of(inner: Check, *, most: int | None = None) -> Check:
    """A non-empty dict or other mapping from names to values that `inner` accepts."""

    def convert(values: Any) -> dict[str, Any]:
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise TypeError
        if not values or (most is not None and len(values) > most):
            raise ValueError
        return {name: inner.convert(value) for name, value in values.items()}

    count = "" if most is None else f" of at most {most}"
    return Check(lambda: f"a non-empty dict{count}, from names to values, each {inner}", convert)


def instance_of(kind: type | tuple[type, ...], description: str) -> Check:
    """An instance of `kind`, which messages call `description`."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return Check(description, convert)


def _uint8_images(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8 or value.dim() != 4:
        raise TypeError
    return value


#: Images as data sets hold them. Floats are refused, since nothing tells 0 to 1 from 0 to 255.
uint8_images = Check(
    "a uint8 tensor of images (N, C, H, W), 0 to 255 (floats of 0 to 1 become one by "
    "`(255 * x).round().byte()`)",
    _uint8_images,
)

#: The path of a file or folder, text or ``os.PathLike``.
path = instance_of((str, os.PathLike), "a path")
text = instance_of(str, "text")
module = instance_of(nn.Module, "a torch.nn.Module")

_KINDS: dict[str, Callable[[torch.Tensor], bool]] = {
    "floats": torch.is_floating_point,
    "uint8": lambda tensor: tensor.dtype == torch.uint8,
    "int64": lambda tensor: tensor.dtype == torch.int64,
    "numbers": lambda tensor: not tensor.is_complex() and tensor.dtype != torch.bool,
}


def tensor(kind: str, shape: str | None = None) -> Check:
    """A non-empty tensor of `kind`, with as many dimensions as `shape` names ("N, C, H, W")."""

    def convert(value: Any) -> torch.Tensor:
        if not isinstance(value, torch.Tensor) or not _KINDS[kind](value):
            raise TypeError
        if not value.numel() or (shape is not None and value.dim() != len(shape.split(","))):
            raise ValueError
        return value

    return Check(f"a tensor of {kind}, not empty" + (f", ({shape})" if shape else ""), convert)


def _number_sequence(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        values = sequence_of(_any_number).convert(values)
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError
    return array


_any_number = Check("a number", _real)
finite_number = _number("a finite number", math.isfinite)
#: A sequence, one-dimensional tensor or array of numbers; returned as an array.
number_sequence = Check("a non-empty sequence of numbers", _number_sequence)


def _device(value: Any) -> torch.device:
    if not isinstance(value, (str, torch.device)):
        raise TypeError
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError) as error:  # an unknown or a missing device
        raise ValueError from error


device = Check("a device that PyTorch finds here, such as 'cpu'", _device)
