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
        # Commas that part no selectors.
        ('p[x="a,b"], .b, [y=c,d] .b{x:1}', 'p[x="a,b"]{x:1}'),
        ("p:is(h1, :not(a, .b)), .b{x:1}", "p:is(h1, :not(a, .b)){x:1}"),
        (r".x\,y, .a{x:1}", ".a{x:1}"),
        # Names with characters that have to be escaped.
        (r".w-1\/2{x:1}.w-1\/3{x:1}.b\:x{x:1}.\31 0{x:1}", r".w-1\/2{x:1}"),
        (r".a\(b{x:1}.a{x:1}", ".a{x:1}"),
    ],
)
def test_rules_for_classes_that_are_nowhere_go(sheet, expected):
    kept = left(sheet, "a", "w-1/2")
    assert kept.replace("\n", "") == (sheet if expected is None else expected)


def test_a_licence_stays_though_its_rules_go():
    assert "licence" in left("/*! a licence */.b{x:1}p{y:1}", "a")


@pytest.mark.parametrize(
    "sheet",
    [
        "p{x:1}/*! a licence */",
        "/*! a licence */",
        "@media print{/*! a licence */.b{x:1}}p{x:1}",
        "/*! a licence */@media print{.b{x:1}}",
        "@media print{.b{x:1}/*! a licence */}",
        '@charset "UTF-8";/*! a licence */.b{x:1}',
        ".b{x:1} .b{x:1} /*! a licence */ .b{x:1}",
    ],
)
def test_a_licence_stays_wherever_it_stands(sheet):
    kept = left(sheet, "a")
    assert kept.count("/*! a licence */") == 1 and ".b" not in kept and "@media" not in kept
