"""Dataclasses whose fields are the one source of a command's options, defaults, checks and help.

@checked_dataclass
class Recipe:
    \"\"\"How to train.\"\"\"

    epochs: int = option(positive_int, "passes over the training images", default=300)

    Recipe(epochs=0)         # ValueError: epochs must be a whole number of at least 1, got 0
    add_to(parser, Recipe)   # --epochs N  passes over the training images (default: 300)
"""

import argparse
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from densenet_tutorial.utils.arguments import Check

C = TypeVar("C")


def option(
    check: Check, help: str, *, default: Any, flag: str | None = None, bare: str | None = None
) -> Any:
    """A field of a :func:`checked_dataclass`.

    Args:
        check: validates the value.
        help: description, for the command line and for the class's docstring.
        default: the default value.
        flag: the option's name on the command line, if it is not the field's.
        bare: the value of the option on the command line when it is given without one.
    """
    return dataclasses.field(
        default=default, metadata={"check": check, "help": help, "flag": flag, "bare": bare}
    )


@typing.dataclass_transform(frozen_default=True, field_specifiers=(option,))
def checked_dataclass(cls: type[C]) -> type[C]:
    """Make a frozen dataclass that validates its fields and lists them in its docstring."""

    def check_fields(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = field.metadata["check"](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    cls.__post_init__ = check_fields  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True)(cls)
    fields = [f"    {f.name}: {f.metadata['help']}." for f in dataclasses.fields(made)]  # type: ignore[arg-type]
    made.__doc__ = "\n".join([f"{inspect.getdoc(cls)}\n\nAttributes:", *fields])
    return made


def flag(field: dataclasses.Field[Any]) -> str:
    """The command-line option for `field`."""
    return field.metadata["flag"] or f"--{field.name.replace('_', '-')}"


def add_to(parser: Any, cls: type) -> None:
    """Add an option for each field of `cls` to a parser or an argument group.

    Options that are not on the command line are not in the result (``argparse.SUPPRESS``). Names
    in a list are separated by spaces, numbers by commas; ``none`` means ``None`` if the field
    allows it.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        check, help = field.metadata["check"], field.metadata["help"]
        kind, several, optional = _kind(hints[field.name])
        settings: dict[str, Any] = {}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = _from_text(check, kind, several, optional)
            settings["metavar"] = "N,N,…" if several and kind is not str else _METAVARS[kind]
            if several and kind is str:
                settings["nargs"] = "*"
            elif field.metadata["bare"] is not None:
                settings |= {"nargs": "?", "const": field.metadata["bare"]}
        if check.choices:
            help += f"; of {', '.join(map(str, check.choices))}"
        if field.default is not None:
            help += f" (default: {_shown(field.default)})"
        parser.add_argument(
            flag(field),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=help.replace("%", "%%"),
            **settings,
        )


def as_words(values: dict[str, Any], cls: type) -> list[str]:
    """Command-line arguments for `values` of fields of `cls`, without those equal to defaults."""
    words = []
    for field in dataclasses.fields(cls):
        value = values.get(field.name, field.default)
        value = tuple(value) if isinstance(value, list) else value
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag(field) if value else flag(field).replace("--", "--no-", 1))
        elif isinstance(value, tuple) and all(isinstance(part, str) for part in value):
            words += [flag(field), *value]
        elif isinstance(value, tuple):
            words += [flag(field), ",".join(map(str, value))]
        else:
            words += [flag(field), _shown(value)]
    return words


_METAVARS = {int: "N", float: "X", str: "NAME"}


def _kind(hint: Any) -> tuple[type, bool, bool]:
    """The type of one value, whether there are several, and whether ``None`` is allowed."""
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (kind,) = (part for part in parts if part is not types.NoneType)
    several = typing.get_origin(kind) is tuple
    return typing.get_args(kind)[0] if several else kind, several, types.NoneType in parts


def _from_text(check: Check, kind: type, several: bool, optional: bool) -> Callable[[str], Any]:
    """A function that converts an argument for argparse, or raises an error."""

    def convert(text: str) -> Any:
        try:
            if optional and text == "none":
                return None
            if several and kind is str:  # argparse converts each name
                return check.convert((text,))[0]
            if several:
                return check.convert([kind(part) for part in text.split(",")])
            return check.convert(kind(text))
        except (TypeError, ValueError, OverflowError):
            commas = ", with commas between them" if several and kind is not str else ""
            raise argparse.ArgumentTypeError(f"must be {check}{commas}, got {text!r}") from None

    return convert


def _shown(value: Any) -> str:
    return "none" if value is None or value == () else str(value)
