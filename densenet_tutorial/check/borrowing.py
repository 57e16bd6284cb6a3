"""What an answer may not be taken from: the finished pieces, in this package and in torchvision.

A notebook may import what it is given, and what is no solution to anything.
"""

import types
from collections.abc import Iterator, Mapping
from typing import Any

_FINISHED = ("densenet_tutorial", "torchvision.models.densenet", "torchvision.models.DenseNet")
_HARMLESS = ("check", "data", "environment", "baselines")


def is_finished(name: str) -> bool:
    """Whether `name`, with dots, as an import names it, is (of) a finished piece."""
    _, _, inside = name.partition("densenet_tutorial.")
    harmless = inside.split(".")[0] in _HARMLESS and not inside.startswith("check.")
    return name.startswith(_FINISHED) and not harmless


def borrowed_by(answer: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """The finished pieces that `answer` is, inherits from, or uses by a global name; `given` are those it may use."""

    def borrowed(thing: Any) -> bool:
        return is_finished(_full_name(thing)) and not any(thing is one for one in given.values())

    for whole in answer.__mro__ if isinstance(answer, type) else [answer]:
        if borrowed(whole):
            yield _full_name(whole)
            return
    for function in [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]:
        if isinstance(function, types.FunctionType):
            known, names = function.__globals__, function.__code__.co_names
            yield from (_full_name(known[n]) for n in names if n in known and borrowed(known[n]))


def _full_name(thing: Any) -> str:
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
