"""Finding the answer to one question in a notebook.

What counts is what a notebook *defines*, in whichever cells: imports, functions, classes, plain constants, and the
question's own names. Everything else at the top level (a training run, a plot, an endless loop, ``exit()``) is not run.
Names that other questions ask for come from the package, so that a mistake there costs nothing here.
"""

import ast
import linecache
from collections.abc import Iterable, Sequence
from typing import Any

from densenet_tutorial.check.engine import Question

# A notebook may import what it is given; these would be the solution itself.
_SOLUTIONS = (
    "densenet_tutorial.layers",
    "densenet_tutorial.network",
    "densenet_tutorial.memory",
    "densenet_tutorial.memory_functions",
    "densenet_tutorial.check.",
    "torchvision.models.densenet",
)
_HARMLESS = ("check", "data", "environment", "baselines")


def namespace(cells: Sequence[str], question: Question, others: Iterable[str]) -> dict[str, Any]:
    """Run what belongs to `question`, and return the names that it leaves.

    Args:
        cells: the sources of a notebook's code cells, in order.
        question: whose names are wanted.
        others: the names that other questions of the assignment ask for.

    Raises:
        ValueError: a name that the question asks for is not defined, and why.
    """
    names: dict[str, Any] = {"__name__": "submission", **question.given}
    problems = []
    for number, cell in enumerate(cells, start=1):
        source = _without_magics(cell)
        filename = f"<cell {number}>"
        lines = source.splitlines(keepends=True)
        linecache.cache[filename] = (len(source), None, lines, filename)
        try:
            statements = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            problems.append(f"cell {number}, line {line}: {type(error).__name__}: {error}")
            continue
        for statement in statements:
            if not _belongs(statement, question.targets, set(others)):
                continue
            if module := _imports_solution(statement):
                problems.append(f"cell {number}: the answer to this question imports {module}")
                continue
            try:
                code = compile(ast.Module([statement], []), filename, "exec")
                exec(code, names)  # noqa: S102 - the answer is there to be run
            except Exception as error:  # noqa: BLE001
                problems.append(f"cell {number}: {type(error).__name__}: {error}")
    missing = [name for name in question.targets if name not in names]
    if missing:
        why = f" ({'; '.join(problems)[:600]})" if problems else ""
        raise ValueError(f"{', '.join(missing)} not defined{why}")
    return names


def _without_magics(cell: str) -> str:
    """The source without what is IPython's: `%pip …` and `!ls`. A cell magic takes the whole cell."""
    if cell.lstrip().startswith("%%"):
        return ""
    lines = cell.splitlines()
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + "pass"
        if line.lstrip().startswith(("%", "!")) or line.rstrip().endswith("?")
        else line
        for line in lines
    )


def _belongs(statement: ast.stmt, targets: Sequence[str], others: set[str]) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return statement.name in targets or statement.name not in others
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        assigned = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        roots = {_root(target) for target in assigned}
        if roots & set(targets):
            return True
        return not roots & others and _is_constant(statement.value)
    return False


def _root(target: ast.expr) -> str:
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def _is_constant(value: ast.expr | None) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _imports_solution(statement: ast.stmt) -> str:
    """The module that `statement` takes the answer from, if it does."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            head, _, rest = module.partition(".")
            if module.startswith(_SOLUTIONS):
                return module
            if head == "densenet_tutorial" and rest.split(".")[0] not in _HARMLESS:
                return module
    return ""
