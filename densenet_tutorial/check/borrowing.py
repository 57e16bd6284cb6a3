"""What an answer may not be taken from: the finished pieces, in this package and in torchvision.

A notebook may import what it is given, and what is no solution to anything.
"""

import dis
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
            known = function.__globals__
            names = (n for n in _globals_of(function.__code__) if n in known)
            yield from (_full_name(known[n]) for n in names if borrowed(known[n]))


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The global names that `code` reads, and the functions inside of it; attributes of the same names are others."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_of(inner)


def _full_name(thing: Any) -> str:
    if isinstance(thing, types.ModuleType):
        return thing.__name__
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
