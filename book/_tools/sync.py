"""Rewrite the cells tagged `listing` from the package, which is the source of truth.

    python book/_tools/sync.py [NOTEBOOK …]

A listing shows classes or functions of `densenet_tutorial` without their docstrings, since the
chapter explains them, and without the checks of their arguments (`@arguments.check(…)`). Each is
replaced, comments included, by the package's text of the same name, wrapped to the columns of a
chapter (`book/ruff.toml`). Other code in the cell stays. Run the chapter again afterwards.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

import notebooks

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def definitions(source):
    """Name, first line and last line (from 0, half open) of top-level classes and functions."""
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITIONS):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node.name, first - 1, node.end_lineno


def docstring_lines(source):
    """Line numbers (from 0) of the docstrings of classes and functions, and blank lines after."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
            last = node.body[0].end_lineno
            yield from range(node.body[0].lineno - 1, last)
            if last < len(lines) and not lines[last].strip() and isinstance(node, ast.ClassDef):
                yield last


def is_argument_check(decorator):
    """Whether `decorator` is ``@arguments.check(…)``, which a listing leaves out."""
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "arguments.check"


def argument_check_lines(source):
    """Line numbers (from 0) of argument checks."""
    for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, "decorator_list", []):
            if is_argument_check(decorator):
                yield from range(decorator.lineno - 1, decorator.end_lineno)


def package_texts(package):
    """Texts of top-level classes and functions in the folder `package`, by name.

    They are without docstrings and argument checks.
    """
    texts = {}
    for path in sorted(Path(package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        left_out = {*docstring_lines(source), *argument_check_lines(source)}
        for name, first, last in definitions(source):
            kept = [lines[i] for i in range(first, last) if i not in left_out]
            texts.setdefault(name, []).append("\n".join(kept))
    return texts


def package_text(name, texts, where):
    """The one text of `name` in the package; a ValueError if there is none, or more than one."""
    found = texts.get(name, [])
    if len(found) != 1:
        raise ValueError(
            f"{where}: the package defines `{name}` {len(found)} times; a cell tagged `listing` "
            "needs it once"
        )
    return found[0]


def rewrite(source, texts, where):
    """The listing `source` with every definition in it as the package has it."""
    lines = source.splitlines()
    found = list(definitions(source))
    if not found:
        raise ValueError(f"{where}: tagged `listing`, but it defines no class or function")
    for name, first, last in reversed(found):
        lines[first:last] = package_text(name, texts, where).splitlines()
    return formatted("\n".join(lines))


def formatted(source):
    """`source`, formatted as code of the book."""
    command = [sys.executable, "-m", "ruff", "format", "-q", "--stdin-filename", "listing.py", "-"]
    run = subprocess.run(
        command,
        input=source,
        cwd=notebooks.ROOT / "book",
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.rstrip("\n")


def sync(path, texts):
    """Rewrite the listings of the notebook at `path`; return the ids of the cells that changed."""
    notebook = notebooks.read(path)
    changed = []
    for cell in notebook.cells:
        if "listing" in cell.metadata.get("tags", []):
            source = rewrite(cell.source, texts, f"{path}, cell {cell.id}")
            if source != cell.source:
                cell.source = source
                changed.append(cell.id)
    if changed:
        notebooks.write(notebook, path)
    return changed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every chapter")
    paths = parser.parse_args(arguments).notebook or notebooks.chapters()
    texts = package_texts(notebooks.ROOT / "densenet_tutorial")
    for path in paths:
        changed = sync(path, texts)
        print(
            f"{path.name}: {f'{len(changed)} listings rewritten' if changed else 'as the package'}"
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"sync: {error}")
