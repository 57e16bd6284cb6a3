"""The autograders, as otter runs them: a folder of submissions becomes a CSV."""

import csv
import json
import re
from pathlib import Path

import assignments
import grade
import nbformat
import pytest
from masters import ASSIGNMENTS, SECRET, blank, points, solution

ROOT = Path(__file__).resolve().parents[2]
SEED = assignments.seed_of(SECRET, "layers")
FULL = {name: sum(worth) for name, worth in points("layers").items()}
FORWARD = "    def forward(self, inputs):\n"
ADDED = """
def add_to_class(Class):
    return lambda method: setattr(Class, method.__name__, method)


@add_to_class(DenseLayer)
def forward(self, inputs):
"""


def notebook(cells):
    """A student's notebook with these code cells, as an editor saves it."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python-of-a-laptop", "display_name": "Mine"}
    made.cells = [nbformat.v4.new_markdown_cell("# Mine"), *map(nbformat.v4.new_code_cell, cells)]
    return nbformat.writes(made)


def with_change(old, new, more=""):
    """The solution with a change, and a cell of its own at the end."""
    cells = solution("layers")
    assert any(old in cell for cell in cells)
    return notebook([cell.replace(old, new) for cell in cells] + [more])


def first_line(code, more=""):
    """The solution, with `code` as the first line of DenseLayer.forward, and a cell at the end."""
    return with_change(FORWARD, f"{FORWARD}        {code}\n", more)


SUBMISSIONS = {
    "solution.ipynb": notebook(solution("layers")),
    "blank.ipynb": notebook(blank("layers")),
    "loops for ever.ipynb": first_line("while True: pass", "while True:\n    pass"),
    "exits.ipynb": first_line("import os; os._exit(0)"),
    "everything imported.ipynb": with_change(
        "class DenseLayer(nn.Module):",
        "from densenet_tutorial import *\n\n\nclass DenseLayer(nn.Module):",
    ),
    "a scratch name.ipynb": with_change(FORWARD, FORWARD, "F = nn = torch = 1"),
    "methods added later.ipynb": with_change(FORWARD, ADDED),
    "prints a megabyte.ipynb": with_change(
        FORWARD, f"{FORWARD}        print('x' * 2**20)\n", "print('x' * 2**20)\nexit()"
    ),
    "no padding.ipynb": with_change("kernel_size=3, padding=1", "kernel_size=3"),
    "syntax error.ipynb": with_change(
        "class Transition(nn.Module):", "class Transition(nn.Module:"
    ),
    "imports the answer.ipynb": with_change(
        "class DenseBlock(nn.Module):",
        "from densenet_tutorial import DenseBlock\nclass Mine(nn.Module):",
    ),
    # The process that grades is the parent of the server that is the parent of this.
    "kills what grades it.ipynb": first_line(
        "import os, pathlib; stat = pathlib.Path(f'/proc/{os.getppid()}/stat').read_text(); "
        "os.kill(int(stat.rsplit(')')[1].split()[1]), 9)"
    ),
    "speaks no UTF-8.ipynb": first_line("raise ValueError('\\ud83d')"),
    "a student's folder/no metadata.ipynb": json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "cells": [{"cell_type": "code", "source": cell} for cell in solution("layers")],
        }
    ),
    "damaged.ipynb": "{",
    "nested.ipynb": "[" * 10**5,
    "essay.pdf": "%PDF",
}
UNGRADED = {
    "damaged.ipynb": "not a notebook",
    "nested.ipynb": "not a notebook",
    "essay.pdf": "does not end in .ipynb",
    "kills what grades it.ipynb": "ended the process that grades",
}
LOST = {  # the questions that each loses, if it does not lose all of one or another
    "solution.ipynb": set(),
    "a student's folder/no metadata.ipynb": set(),
    "speaks no UTF-8.ipynb": {"dense_layer"},
    "blank.ipynb": set(FULL),
    "loops for ever.ipynb": {"dense_layer"},
    "exits.ipynb": {"dense_layer"},
    "everything imported.ipynb": set(),
    "a scratch name.ipynb": set(),
    "methods added later.ipynb": set(),
    "prints a megabyte.ipynb": set(),
    "no padding.ipynb": {"dense_layer"},
    "syntax error.ipynb": {"transition"},
    "imports the answer.ipynb": {"dense_block"},
}


@pytest.fixture(scope="module")
def graded(made, tmp_path_factory):
    """The folder of the submissions, after `make grade`."""
    folder = tmp_path_factory.mktemp("submissions")
    for name, content in SUBMISSIONS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    grade.main(["layers", str(folder), "--assignments", str(made)])
    return folder


@pytest.fixture(scope="module")
def rows(graded):
    with (graded / "layers.csv").open(encoding="utf-8", newline="") as file:
        return {row["submission"]: row for row in csv.DictReader(file)}


def test_every_submission_has_a_row(rows):
    assert sorted(rows) == sorted(SUBMISSIONS)


@pytest.mark.parametrize("name", UNGRADED)
def test_what_cannot_be_graded_has_a_row_and_does_not_stop_the_others(rows, name):
    assert UNGRADED[name] in rows[name]["problem"]
    assert rows[name]["points"] == ""


@pytest.mark.parametrize("name", LOST)
def test_an_answer_costs_its_own_question(rows, name):
    row = rows[name]
    assert not row["problem"]
    for question, full in FULL.items():
        if question in LOST[name]:
            assert float(row[question]) < full
        else:
            assert float(row[question]) == full
    assert float(row["points"]) == sum(float(row[question]) for question in FULL)


def test_blank_gets_at_most_five_percent_and_the_solution_everything(rows):
    assert float(rows["blank.ipynb"]["percent"]) <= 5
    assert float(rows["solution.ipynb"]["percent"]) == 100


@pytest.mark.parametrize("name", ["loops for ever", "exits"])
def test_what_a_hostile_answer_lost_is_its_whole_question(rows, graded, name):
    assert float(rows[f"{name}.ipynb"]["dense_layer"]) == 0
    said = (graded / "layers" / f"{name}.txt").read_text(encoding="utf-8")
    cause = {"loops for ever": "never ends", "exits": "ended the process"}
    assert cause[name] in said


def test_every_grade_says_how_to_get_it_again(rows, graded):
    assert {row["seed"] for row in rows.values()} == {str(SEED)}
    said = (graded / "layers" / "no padding.txt").read_text(encoding="utf-8")
    assert f"check.dense_layer(…, seed={SEED})" in said
    assert "padding" in said


def test_a_table_of_points_fills_a_gradebook(tmp_path):
    """As it is joined from tables of one submission each; one that could not be graded has none."""
    table = (
        "submission,points,problem\nada_11_7_layers.ipynb,34,\nbob_12_8_layers.ipynb,,no notebook\n"
    )
    (tmp_path / "all.csv").write_text(table)
    (tmp_path / "book.csv").write_text("Student,ID,First (4)\nAda,11,\nBob,12,3\n")
    given = [str(tmp_path / "all.csv"), "--canvas", str(tmp_path / "book.csv")]
    grade.main(["layers", *given, "--column", "First (4)"])
    filled = (tmp_path / "all-canvas.csv").read_text()
    assert filled == "Student,ID,First (4)\nAda,11,34\nBob,12,3\n"
    assert (tmp_path / "all.csv").read_text() == table


def test_another_secret_gives_other_hidden_tests():
    seeds = {assignments.seed_of(secret, "layers") for secret in ("a", "b", SECRET)}
    assert len(seeds) == 3
    assert assignments.seed_of("a", "layers") != assignments.seed_of("a", "memory")


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_students_get_no_solution_no_hidden_test_and_no_seed(made, name):
    text = (made / name / "student" / f"{name}.ipynb").read_text(encoding="utf-8")
    for hidden in (
        "SOLUTION",
        "hidden(",
        "def test_",
        "Rubric",
        str(assignments.seed_of(SECRET, name)),
    ):
        assert hidden not in text
    solved = json.loads((made / name / "solution" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert any("Rubric" in "".join(cell["source"]) for cell in solved["cells"])


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_points_agree_in_the_tables_and_with_the_tests(name):
    worth = [sum(numbers) for numbers in points(name).values()]
    text = (ROOT / "book" / "assignments" / f"{name}.ipynb").read_text(encoding="utf-8")
    table = [int(number) for number in re.findall(r"\| \d · .*?\| (\d+) \|", text)]
    assert table == [*worth, 6]
    guide = (ROOT / "book" / "appendix" / "instructors.md").read_text(encoding="utf-8")
    assert re.search(rf"\| `{name}` \|.*\| {sum(worth)} \+ 6 \|", guide)
