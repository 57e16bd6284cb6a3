"""Refuse answers that use finished implementations, from this package, torchvision or elsewhere.

The checks look at what an answer is, inherits from, or calls while it is checked. Imports in a
notebook are not restricted.
"""

import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_FINISHED = ("densenet_tutorial", "torchvision.models", "timm", "torch.hub")
#: Modules of the package that solve no question.
_HARMLESS = (
    "densenet_tutorial.check.engine",
    "densenet_tutorial.data",
    "densenet_tutorial.experiments.baselines",
    "densenet_tutorial.figures",
    "densenet_tutorial.utils",
)
_CHECKS = ("densenet_tutorial.check",)
_LIBRARIES = ("densenet_tutorial", "torch", "torchvision", "timm")


@functools.cache
def _is_finished(module: str) -> bool:
    """Whether a module contains finished implementations: those above, or any DenseNet."""
    if _within(module, _HARMLESS):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return _within(module, _FINISHED) or ("densenet" in module.lower() and "-packages" in file)


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def functions_of(answer: Any) -> Iterator[types.FunctionType]:
    """The Python functions that make up `answer`, a function or a class; not those of PyTorch."""
    for part in (answer, *(f for kind in _classes_of(answer) for f in vars(kind).values())):
        part = _unwrapped(part)
        if isinstance(part, types.FunctionType):
            yield part


def _classes_of(answer: Any) -> list[type]:
    kinds = answer.__mro__ if isinstance(answer, type) else ()
    return [kind for kind in kinds if not _within(str(kind.__module__), ("torch",))]


def _unwrapped(part: Any) -> Any:
    while isinstance(part, (functools.partial, types.MethodType)):
        part = part.func if isinstance(part, functools.partial) else part.__func__
    return part


def borrowed_by(answer: Any, given: Mapping[str, Any]) -> set[str]:
    """Finished implementations, except `given`, that `answer` is, inherits from or contains."""
    answer, allowed = _unwrapped(answer), _codes(given.values())
    kinds = [kind for kind in _classes_of(answer) if kind not in given.values()]
    functions = [part for part in functions_of(answer) if part.__code__ not in allowed]
    for parts in (kinds, functions):
        names = {(str(part.__module__), part.__qualname__) for part in parts}
        if finished := {_name(*name) for name in names if _is_finished(name[0])}:
            return finished
    return set()


@contextmanager
def watched(given: Mapping[str, Any]) -> Iterator[set[str]]:
    """Collect the names of finished implementations, except `given`, that answers call."""
    used: set[str] = set()
    allowed = _codes(given.values())

    def notice(frame: types.FrameType, event: str, _: Any) -> None:
        if (
            event == "call"
            and _is_finished(_module_of(frame))
            and _is_piece(frame)
            and frame.f_code not in allowed
            and _is_an_answer(_caller_of(frame))
        ):
            used.add(_name(_module_of(frame), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        yield used
    finally:
        sys.setprofile(before if callable(before) else None)  # a profiler in C cannot be put back


def _name(module: str, name: str) -> str:
    return f"{module}.{name.removesuffix('.__init__')}"


def _codes(values: Iterable[Any]) -> set[types.CodeType]:
    """The code objects of functions and of methods of classes, decorated or not."""
    found = set()
    for value in values:
        for function in functions_of(value):
            wrapped: Any = function
            while wrapped is not None:
                found.add(wrapped.__code__)
                wrapped = getattr(wrapped, "__wrapped__", None)
    return found


def _is_piece(frame: types.FrameType) -> bool:
    """Whether it runs a function or makes an object; not a wrapper, or a method of what came in."""
    code = frame.f_code
    if code.co_name == "__init__":
        return True
    if "<locals>" in code.co_qualname or code.co_name.startswith(("<", "__")):
        return False
    if "." not in code.co_qualname or not code.co_argcount:
        return True
    return not _is_finished(str(type(frame.f_locals.get(code.co_varnames[0])).__module__))


def _module_of(frame: types.FrameType | None) -> str:
    return str(frame.f_globals.get("__name__")) if frame else "builtins"


def _caller_of(frame: types.FrameType) -> types.FrameType | None:
    """The calling frame, without those of Python's library and of decorators."""
    caller = frame.f_back
    while caller is not None:
        module = _module_of(caller)
        library = module.partition(".")[0] in sys.stdlib_module_names
        wrapper = "<locals>" in caller.f_code.co_qualname and _within(module, _LIBRARIES)
        if not library and (not wrapper or _within(module, _CHECKS)):
            break
        caller = caller.f_back
    return caller


def _is_an_answer(frame: types.FrameType | None) -> bool:
    """Whether `frame` is neither a library's nor a check's."""
    module = _module_of(frame)
    return frame is not None and not _within(module, _LIBRARIES) and not _is_finished(module)
