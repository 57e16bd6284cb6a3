"""The page on what differs from torchvision: its code runs, and prints what the page says."""

import contextlib
import io
import re

import notebooks

PAGE = notebooks.ROOT / "book" / "appendix" / "differences.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: What a line prints, behind it or below it; no other comments stand in the code.
SAID = re.compile(r"^(?:.*  )?# (.+)$", re.MULTILINE)


def blocks():
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_code_prints_what_the_page_says():
    names = {}
    for block in blocks():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, PAGE.name, "exec"), names)  # noqa: S102 - our own page
        assert printed.getvalue().splitlines() == SAID.findall(block), block


def test_every_difference_has_code():
    """Each paragraph that begins with bold words is a statement about both libraries."""
    text = PAGE.read_text(encoding="utf-8")
    statements = re.split(r"^(?=\*\*)", text, flags=re.MULTILINE)[1:]
    assert len(statements) >= 13
    assert all("```python" in statement for statement in statements)
    assert max(len(line) for block in blocks() for line in block.splitlines()) <= 84
    assert sum(map(len, map(SAID.findall, blocks()))) >= 25
