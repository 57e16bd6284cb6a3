"""Finding the answer to one question in a notebook.

What counts is what the answer needs, in whichever cells: the definitions of the question's own names, and whatever sets
a name that these use, and so on. Everything else at the top level (a training run, a plot, an endless loop, ``exit()``)
is not run. What earlier questions ask for and this one builds on comes from the package, so that a mistake there costs
nothing here.
"""

import __future__

import ast
import linecache
import symtable
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from densenet_tutorial.check.borrowing import borrowed_by, is_finished
from densenet_tutorial.check.engine import Question

_ANYTHING = "*"  # set by `from module import *`, and always needed
_PYTHON = (
    "time",
    "timeit",
    "capture",
    "prun",
)  # cell magics above a cell that is Python all the same
_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


def namespace(cells: Sequence[str], question: Question) -> tuple[dict[str, Any], list[str]]:
    """Run what `question` needs; return the names that this leaves, and what went wrong on the way.

    Args:
        cells: the sources of a notebook's code cells, in order.
        question: whose names are wanted.

    Raises:
        ValueError: a name that the question asks for is not defined, and why; or the answer is not the student's.
    """
    problems: list[str] = []
    statements = list(_statements(cells, problems))
    # A module, since dataclasses and pickle look their classes up in one.
    module = sys.modules["submission"] = types.ModuleType("submission")
    names = vars(module)
    names |= {"get_ipython": _NoShell, **question.given}
    flags = 0
    for filename, statement in _needed(statements, question):
        if borrowed := [name for name in _imports(statement, question) if is_finished(name)]:
            raise ValueError(f"{filename[1:-1]}: the answer uses {', '.join(borrowed)}")
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for alias in statement.names:
                flags |= getattr(__future__, alias.name).compiler_flag
        try:
            code = compile(ast.Module([statement], []), filename, "exec", flags, dont_inherit=True)
            exec(code, names)  # noqa: S102 - answers are there to be run
        except Exception as error:  # noqa: BLE001
            problems.append(f"{filename[1:-1]}: {type(error).__name__}: {error}")
    if missing := [name for name in question.targets if name not in names]:
        why = f" ({'; '.join(problems)[:600]})" if problems else ""
        raise ValueError(f"{', '.join(missing)} not defined{why}")
    for target in question.targets:
        for borrowed in borrowed_by(names[target], question.given):
            raise ValueError(f"the answer uses {borrowed}")
    return names, problems


class _NoShell:
    """In place of IPython's shell: magics do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _statements(cells: Sequence[str], problems: list[str]) -> Iterator[tuple[str, ast.stmt]]:
    """The statements at the top level, each with the name of its cell; cells that are no Python go to `problems`."""
    for number, cell in enumerate(cells, start=1):
        filename = f"<cell {number}>"
        try:
            source = _python(cell)
            linecache.cache[filename] = (len(source), None, source.split("\n"), filename)
            yield from ((filename, statement) for statement in ast.parse(source).body)
        except _NO_PYTHON as error:
            line = getattr(error, "lineno", None)
            problems.append(f"cell {number}, line {line}: {type(error).__name__}: {error}")


def _python(cell: str) -> str:
    """The cell as Python: what is IPython's, such as `%pip …`, `!ls` or `name?`, becomes a call of its shell."""
    source = TransformerManager().transform_cell(cell.lstrip("\ufeff"))
    body = ast.parse(source).body if source.startswith("get_ipython().run_cell_magic(") else []
    if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Call):
        magic, _, rest = (ast.literal_eval(argument) for argument in body[0].value.args)
        return _python(rest) if magic in _PYTHON else ""
    return source


def _needed(
    statements: Sequence[tuple[str, ast.stmt]], question: Question
) -> Iterator[tuple[str, ast.stmt]]:
    """Those of `statements` that set a target, or a name that such a statement uses, and so on; in their order."""
    known = [(_sets_and_uses(statement), statement) for _, statement in statements]
    needed, grown = {*question.targets, _ANYTHING}, True
    while grown:
        before = len(needed)
        for (sets, uses), _ in known:
            if sets & needed:
                needed |= uses - question.given.keys()
        grown = len(needed) > before
    for ((sets, _), _), pair in zip(known, statements, strict=True):
        if sets & needed:
            yield pair


def _sets_and_uses(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The global names that `statement` sets, and those that it uses, inside of its functions as well."""
    sets, uses = set(), set()
    try:
        tables = [symtable.symtable(ast.unparse(statement), "answer", "exec")]
    except _NO_PYTHON:
        return sets, uses
    for table in tables:  # which grows
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module" or symbol.is_global():
                if symbol.is_assigned() or symbol.is_imported():
                    sets.add(symbol.get_name())
                if symbol.is_referenced():
                    uses.add(symbol.get_name())
    if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign)):  # DenseLayer.forward = …
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        sets |= {_root(target) for target in targets} - {""}
    from_all = isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"
    if from_all or isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        sets, uses = {_ANYTHING}, set()
    return sets, uses


def _root(target: ast.expr) -> str:
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def _imports(statement: ast.stmt, question: Question) -> Iterator[str]:
    """What `statement` imports, with dots, but for what the question gives."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in question.given
            )
