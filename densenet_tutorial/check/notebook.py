"""Run a student's notebook as Jupyter does: its cells in order, in one namespace.

Unlike Jupyter, it continues after a statement that raises an error, exits or takes too long, so
that one bad cell does not cost the answers in others; and it ignores magics that do not run Python.
"""

import __future__

import ast
import contextlib
import linecache
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from densenet_tutorial.check import engine

STATEMENT = 20.0  # seconds that a statement at the top level may take
NOTEBOOK = 60.0  # seconds for all of them; after that each has one: definitions need less
#: Magics whose argument is Python code.
_PYTHON = ("time", "timeit", "capture", "prun")
_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


class Notebook:
    """A notebook's code cells and their namespace, which becomes this process's main module.

    Attributes:
        names: the namespace.
        problems: descriptions of errors, with the number of the cell.
        seconds: the remaining time for statements.
    """

    def __init__(self, cells: Sequence[str]) -> None:
        self.problems: list[str] = []
        self.seconds = NOTEBOOK
        self._statements = list(self._parsed(cells))
        module = types.ModuleType("__main__")
        self.names = vars(module)
        self.names |= {"get_ipython": lambda: _Shell(self.names), "display": lambda *_, **__: None}
        sys.modules["__main__"] = module  # where dataclasses and pickle look classes up

    def run(
        self,
        left_out: Collection[int],
        starts: Callable[[int], None],
        is_late: Callable[[int], None],
    ) -> None:
        """Run all statements, except those whose numbers are in `left_out`.

        `starts` is called with the number of each; `is_late` with that of a statement that is
        stopped.
        """
        flags, printed = 0, engine.Printed()
        for number, (filename, statement) in enumerate(self._statements):
            cell = filename[1:-1]
            if number in left_out:
                self.problems.append(f"{cell}: it ended Python or took too long")
                continue
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                for alias in statement.names:
                    flags |= getattr(getattr(__future__, alias.name, None), "compiler_flag", 0)
            starts(number)
            clock = engine.Clock()
            try:
                whole = ast.Module([statement], [])
                code = compile(whole, filename, "exec", flags, dont_inherit=True)
                with (
                    contextlib.redirect_stdout(printed),
                    contextlib.redirect_stderr(printed),
                    engine.time_limit(min(STATEMENT, max(self.seconds, 1))),
                ):
                    exec(code, self.names)  # noqa: S102 - notebooks are there to be run
            except engine.TimeIsUp:
                self.problems.append(f"{cell}: it takes too long")
                is_late(number)
            except BaseException as error:  # noqa: BLE001 - SystemExit included
                self.problems.append(f"{cell}: {type(error).__name__}: {engine.text_of(error)}")
            self.seconds -= clock.seconds()

    def _parsed(self, cells: Sequence[str]) -> Iterator[tuple[str, ast.stmt]]:
        """The top-level statements, each with the name of its cell."""
        for number, cell in enumerate(cells, start=1):
            filename = f"<cell {number}>"
            try:
                source = _python(cell)
                linecache.cache[filename] = (len(source), None, source.split("\n"), filename)
                yield from ((filename, statement) for statement in ast.parse(source).body)
            except _NO_PYTHON as error:
                line = getattr(error, "lineno", None)
                self.problems.append(f"cell {number}, line {line}: {type(error).__name__}: {error}")


def _python(cell: str) -> str:
    """The cell as Python: `%pip …`, `!ls` or `name?` become calls of IPython's shell."""
    source = TransformerManager().transform_cell(cell.lstrip("\ufeff"))
    body = ast.parse(source).body if source.startswith("get_ipython().run_cell_magic(") else []
    if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Call):
        magic, _, rest = (ast.literal_eval(argument) for argument in body[0].value.args)
        return _python(rest) if magic in _PYTHON else source
    return source


class _Shell:
    """Replaces IPython's shell; supports only magics that run Python or write a file."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def run_line_magic(self, magic: str, line: str, *_: Any, **__: Any) -> None:
        if magic in _PYTHON:
            exec(line, self._names)  # noqa: S102

    def run_cell_magic(self, magic: str, line: str, cell: str) -> None:
        if magic == "writefile":
            Path(line.split()[-1]).write_text(cell, encoding="utf-8")

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
