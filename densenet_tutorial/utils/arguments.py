"""Argument checks, one line each where they are used.

Each returns the value it was given, so that a check and an assignment fit on one line, and raises a
``ValueError`` that names the argument, the value and what would have been valid.
"""

import math
import numbers
import operator
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any


def whole_number(name: str, value: Any, *, least: int = 0) -> int:
    """Return `value` as an int of at least `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int of at least 1."""
    return whole_number(name, value, least=1)


def positive_ints(name: str, values: Any) -> tuple[int, ...]:
    """Return `values` as a non-empty tuple of ints of at least 1."""
    return whole_numbers(name, values, least=1)


def whole_numbers(name: str, values: Any, *, least: int = 0) -> tuple[int, ...]:
    """Return `values` as a non-empty tuple of ints of at least `least`."""
    # Python would go through these too: bytes as numbers, sets in no order, dicts key by key.
    refused = isinstance(values, (bytes, bytearray, AbstractSet, Mapping))
    try:
        checked = () if refused else tuple(whole_number(name, v, least=least) for v in values)
    except (TypeError, ValueError):
        checked = ()
    if not checked:
        raise ValueError(
            f"{name} must be a non-empty sequence of whole numbers of at least {least}, got {values!r}"
        )
    return checked


def _real(value: Any) -> float:
    """`value` as a float; not a number (nan) if it is none, and truth values, NumPy's included, are none."""
    return (
        math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    )


def fraction(name: str, value: Any, *, zero: bool) -> float:
    """Return `value` as a float from 0 (if `zero`, else from just above 0) to 1."""
    number = _real(value)
    if not 0 <= number <= 1 or (number == 0 and not zero):
        valid = "from 0 to 1" if zero else "above 0 and at most 1"
        raise ValueError(f"{name} must be a number {valid}, got {value!r}")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0."""
    number = _real(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return number


def one_of(name: str, value: Any, valid: Collection[Any]) -> Any:
    """Return `value`, which must be one of `valid`."""
    if not any(
        value is choice or (type(value) is type(choice) and value == choice) for choice in valid
    ):
        choices = ", ".join(repr(choice) for choice in valid)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
    return value
