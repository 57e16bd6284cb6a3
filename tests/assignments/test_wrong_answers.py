"""Every typical wrong answer loses points on its own question, and the message names the cause."""

import re

import pytest
from masters import ASSIGNMENTS, blank, hidden_tests, points, solution
from wrong_answers import WRONG

from densenet_tutorial import check
from densenet_tutorial.check import grading

SEED = 223565
SLOW = {"train", "fine_tune"}  # graded only where the answer to them is the wrong one


def changed(assignment, name, changes):
    """The cells of the solution, with `changes` in the one that answers the question."""
    (question,) = (q for q in check.ASSIGNMENTS[assignment] if q.name == name)
    defines = re.compile(rf"^(class|def) {question.targets[0]}\b", re.MULTILINE)
    cells = solution(assignment)
    (place,) = (i for i, cell in enumerate(cells) if defines.search(cell))
    for old, new in changes:
        if old not in cells[place]:
            old = wrapped(old, cells[place])
        cells[place] = cells[place].replace(old, new)
    return cells


def wrapped(code, text):
    """`code`, which is on one line, as it stands in `text`, where it may be on several."""
    tokens = re.findall(r"\w+|\S", code)
    between = (r",?\s*" if token in ")]}" else r"\s*" for token in tokens[1:])
    pattern = re.escape(tokens[0]) + "".join(
        space + re.escape(token) for space, token in zip(between, tokens[1:], strict=True)
    )
    found = re.search(pattern, text)
    assert found, f"{code!r} is not in the solution"
    return found[0]


def test_there_are_enough_of_them():
    assert len(WRONG) >= 25
    assert {case[:2] for case in WRONG} == {
        (assignment, question.name)
        for assignment, questions in check.ASSIGNMENTS.items()
        for question in questions
    }


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[1]}-{case[2].replace(' ', '_')}")
def test_wrong_answer(case):
    assignment, name, _, changes, words = case
    cells = changed(assignment, name, changes)
    for question in check.ASSIGNMENTS[assignment]:
        if question.name in SLOW - {name}:
            continue
        reports = grading.grade(assignment, question.name, cells, SEED)
        if question.name == name:
            assert not reports["hidden"], "the hidden tests let it pass"
            text = " ".join(f"{reports['public']} {reports['hidden']}".split())
            assert words in text, text
        else:
            assert reports["public"] and reports["hidden"], reports["hidden"]


def score(assignment, cells):
    """The share of the points that `cells` gets."""
    got = 0
    for name, worth in points(assignment).items():
        reports = grading.grade(assignment, name, cells, SEED)
        right = [bool(reports["public"])] + [r.passed for r in reports["hidden"].results]
        got += sum(number for number, passed in zip(worth, right, strict=True) if passed)
    return got / sum(sum(worth) for worth in points(assignment).values())


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_solution_gets_everything_and_a_blank_notebook_next_to_nothing(assignment):
    assert score(assignment, solution(assignment)) == 1
    assert score(assignment, blank(assignment)) <= 0.05


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_every_property_has_its_hidden_test(assignment):
    asked = {q.name: [p.name for p in q.properties] for q in check.ASSIGNMENTS[assignment]}
    assert hidden_tests(assignment) == asked
