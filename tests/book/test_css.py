"""Style sheets taken apart by book/_ext/css.py."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "book" / "_ext"))
import css


def left(text, *has):
    return css.needed(text, set(has).__contains__)


@pytest.mark.parametrize(
    ("sheet", "expected"),
    [
        (".a{x:1}.b{x:2}", ".a{x:1}"),
        (".a, .b > p, h1 .a{x:1}", ".a,h1 .a{x:1}"),
        ("p, [data-x='.b'], #b{x:1}", "p,[data-x='.b'],#b{x:1}"),
        (".a.b{x:1}.a .b{x:1}.ab{x:1}", ""),
        # Without a .b, these still match something.
        ("p:not(.b){x:1}.a:is(.b, p):where(:not(.b .c)){x:1}", None),
        ("@media print{.b{x:1}.a{x:2}}", "@media print{.a{x:2}}"),
        ("@media print{@supports (x:1){.b{x:1}}}p{x:1}", "p{x:1}"),
        ("@font-face{src:url(x.woff2)}@keyframes b{from{x:1}to{x:2}}", None),
        ('@charset "UTF-8";.b{x:1}p{x:2}', '@charset "UTF-8";p{x:2}'),
        # Braces, quotes and semicolons that are not the sheet's own.
        ("p{content:'}'}.b{content:\"{\"}a{x:url(data:x;{)}", "p{content:'}'}a{x:url(data:x;{)}"),
        ('p{x:url("a\'b)}")}.b{x:1}', 'p{x:url("a\'b)}")}'),
        ("/* don't { */p{x:1}/*! a licence */.a{x:1}", "p{x:1}/*! a licence */.a{x:1}"),
        (".b{x:1;y:{", ""),
    ],
)
def test_rules_for_classes_that_are_nowhere_go(sheet, expected):
    kept = left(sheet, "a")
    assert kept.replace("\n", "") == (sheet if expected is None else expected)


def test_a_licence_stays_though_its_rules_go():
    assert "licence" in left("/*! a licence */.b{x:1}p{y:1}", "a")
