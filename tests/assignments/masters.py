"""Reading the master notebooks of the assignments, for tests."""

import json
import re
from pathlib import Path

MASTERS = Path(__file__).resolve().parents[2] / "book" / "assignments"
SECRET = "a secret of the tests"
ASSIGNMENTS = ("layers", "network", "memory", "pretrained")
_SOLUTION = re.compile(
    r"^( *)# BEGIN SOLUTION( NO PROMPT)?\n.*?^ *# END SOLUTION$", re.MULTILINE | re.DOTALL
)


def _cells(assignment):
    notebook = json.loads((MASTERS / f"{assignment}.ipynb").read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def solution(assignment):
    """The sources of the code cells of the solution, without the tests."""
    sources, testing = [], False
    for kind, source in _cells(assignment):
        if kind == "raw" and "TESTS" in source:
            testing = "BEGIN" in source
        elif kind == "code" and not testing:
            sources.append(source)
    return sources


def blank(assignment):
    """The same cells as a student gets them."""
    return [
        _SOLUTION.sub(lambda found: "" if found[2] else f"{found[1]}...", source)
        for source in solution(assignment)
    ]


def points(assignment):
    """By question: the points of the public test, and of each hidden one, in order."""
    found = {}
    for kind, source in _cells(assignment):
        if kind == "raw" and "BEGIN QUESTION" in source and "manual" not in source:
            name = re.search(r"^name: (\w+)$", source, re.MULTILINE).group(1)
            listed = re.search(r"^points: \[(.+)\]$", source, re.MULTILINE).group(1)
            found[name] = [int(number) for number in listed.split(",")]
    return found


def hidden_tests(assignment):
    """By question: the names of the properties that hidden tests ask for, in order."""
    found = {}
    for kind, source in _cells(assignment):
        if kind == "code" and (call := re.search(r'hidden\("(\w+)", "(\w+)"\)', source)):
            found.setdefault(call.group(1), []).append(call.group(2))
    return found
