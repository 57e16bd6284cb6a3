"""Formulas: made from LaTeX while the site is built, and drawn without a script, by the font that
came along.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from test_browser import FORMULAS, Tab, base, browser, server, tabs  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))
from formulas import text_of, to_mathml
from math_core import LatexError

PARSER = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin).use(amsmath_plugin)

# What a reader would see of LaTeX: a command or a dollar sign, but not in code.
VISIBLE_LATEX = r"""
() => {
  for (const e of document.querySelectorAll('article :is(pre, code, script, .math)')) e.remove();
  for (const e of document.querySelectorAll('details')) e.open = true;
  return document.querySelector('article').innerText.match(/.{0,30}(\\[A-Za-z]+|\$).{0,30}/g);
}
"""

# Formulas that are cut off: neither as wide as they are, nor does anything around them scroll.
CUT_OFF = """
() => {
  const scrolls = e => e && (['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
                             || scrolls(e.parentElement));
  return [...document.querySelectorAll('article .math')].filter(e => {
    const inside = e.querySelector('math').getBoundingClientRect().width;
    return inside > e.getBoundingClientRect().width + 1 && !scrolls(e);
  }).map(e => e.textContent);
}
"""

COPY = """
selector => {
  const text = document.querySelector(selector);
  getSelection().selectAllChildren(text);
  const event = new ClipboardEvent(
    'copy', {clipboardData: new DataTransfer(), bubbles: true, cancelable: true});
  text.dispatchEvent(event);
  return ['text/plain', 'text/html'].map(type => event.clipboardData.getData(type));
}
"""


def formulas_of(source):
    """The LaTeX of every formula of a page's source, as often as it is there."""
    if source.suffix == ".ipynb":
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    else:
        texts = [source.read_text(encoding="utf-8")]
    found = []
    while texts:
        tokens = PARSER.parse(texts.pop())
        tokens += [child for token in tokens for child in token.children or ()]
        # What stands in a directive, such as the glossary, is text as well.
        texts += [t.content for t in tokens if t.type == "fence" and t.info.startswith("{gloss")]
        found += [t.content for t in tokens if t.type.startswith(("math_", "amsmath"))]
    return sorted(" ".join(latex.split()) for latex in found)


def source_of(page):
    (source,) = (ROOT / page).parent.glob(f"{Path(page).stem}.[im][pd]*")
    return source


def test_every_formula_is_drawn_without_scripts(tabs, server, page):  # noqa: F811
    tab = tabs(server, java_script_enabled=False)
    tab.page.goto(server + page)
    written = tab.page.evaluate(
        "[...document.querySelectorAll('article math')].map(e => e.getAttribute('alttext'))"
    )
    assert sorted(written) == formulas_of(source_of(page))
    drawn = tab.page.evaluate(FORMULAS)
    assert all(drawn), f"{drawn.count(False)} of {len(drawn)} formulas not drawn"
    assert not tab.page.evaluate("document.querySelectorAll('merror').length")
    assert not tab.page.evaluate(VISIBLE_LATEX)
    assert not [address for address in tab.requests if "mathjax" in address.lower()]


def test_every_sign_is_in_the_font_that_came_along(tabs, server, page):  # noqa: F811
    """Another font would have other sizes and spaces, or no sign at all."""
    tab = tabs(server)
    tab.page.goto(server + page)
    tab.page.evaluate(FORMULAS)  # unfolds what is folded
    tab.page.evaluate("document.fonts.ready.then(() => null)")
    devtools = tab.context.new_cdp_session(tab.page)
    devtools.send("DOM.enable")
    devtools.send("CSS.enable")
    root = devtools.send("DOM.getDocument")["root"]["nodeId"]
    found = devtools.send("DOM.querySelectorAll", {"nodeId": root, "selector": "article math"})
    strangers = []
    for node in found["nodeIds"]:
        fonts = devtools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        if [f for f in fonts if f["familyName"] != "STIX Two Math" or not f["isCustomFont"]]:
            markup = devtools.send("DOM.getOuterHTML", {"nodeId": node})["outerHTML"]
            strangers.append((markup, [f["familyName"] for f in fonts]))
    devtools.detach()
    assert not strangers


def test_a_wide_formula_scrolls_and_the_page_does_not(tabs, server, page):  # noqa: F811
    settings = {"viewport": {"width": 390, "height": 844}, "java_script_enabled": False}
    tab = tabs(server, **settings)
    tab.page.goto(server + page, wait_until="load")
    tab.page.evaluate(FORMULAS)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not tab.page.evaluate(CUT_OFF)


def test_the_keyboard_scrolls_a_wide_formula(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 390, "height": 844}) as tab:
        tab.page.goto(server + "book/07_memory.html", wait_until="load")
        tab.page.evaluate(FORMULAS)
        wide = tab.page.locator("article .math[tabindex]").first
        wide.focus()
        tab.page.keyboard.press("ArrowRight")
        tab.page.wait_for_function(
            "document.activeElement.matches('.math') && document.activeElement.scrollLeft > 10"
        )


def test_a_copied_formula_is_latex(browser, base):  # noqa: F811
    with Tab(browser, base) as tab:
        tab.page.goto(base + "book/01_why_dense_connections.html")
        plain, rich = tab.page.evaluate(COPY, "p:has(> .math + .math)")
        assert re.search(r"\$[^$]+\$", plain) and "<math" in rich
        # Part of a formula is all of it; where there is none, the browser does as it always does.
        plain, _ = tab.page.evaluate(COPY, "div.math math > :nth-child(2)")
        assert re.fullmatch(r"\$\$[^$]+\$\$", plain.strip())
        assert tab.page.evaluate(COPY, "h1") == ["", ""]


def test_titles_descriptions_and_search_have_no_latex(site, page):
    text = (site / page).read_text(encoding="utf-8")
    (title,) = re.findall(r"<title>(.*?)</title>", text, re.DOTALL)
    metas = re.findall(r'<meta [^>]*content="([^"]*)"', text)
    assert not [line for line in [title, *metas] if re.search(r"[\\$]|&lt;m", line)]


def test_what_the_search_knows_has_no_latex(site):
    text = (site / "_static" / "search-sections.js").read_text(encoding="utf-8")
    assert "bottleneck" in text and not re.search(r"mathbf|\\frac|\\cdot|mathrm", text)


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\mathbf{x}_\ell", "𝐱ℓ"),
        (r"12 \cdot 14 = 2{,}352{,}000", "12⋅14=2,352,000"),
        (r"9\,Ck \qquad\text{instead of}\qquad 2k", "9Ck instead of 2k"),
        (r"\min(a, b)", "min(a,b)"),
    ],
)
def test_the_text_of_a_formula(latex, text):
    assert text_of(to_mathml(latex)) == text


def test_numbers_are_one_number():
    assert "<mn>2,352,000</mn>" in to_mathml("2{,}352{,}000")
    assert "<mn>1,2" not in to_mathml("x_{1,2}") + to_mathml("f(1,200)")


@pytest.mark.parametrize(
    ("latex", "rows"),
    [
        ("a &= b \\\\ c &= d", 2),
        ("a &= b\n\nc &= d\n\ne &= f", 3),
        (r"\begin{align}a &= b \\ c &= d\end{align}", 2),
        (r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}", 2),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 2),
    ],
)
def test_several_lines(latex, rows):
    mathml = to_mathml(latex, block=True)
    assert mathml.count("<mtr") == rows
    assert "(1)" not in text_of(mathml)  # nothing is numbered that has no label


def test_what_is_not_latex_is_refused():
    for latex in (r"\nosuchcommand{x}", r"\frac{1", "a_b_c"):
        with pytest.raises(LatexError):
            to_mathml(latex)


CONF = """
import sys
sys.path.insert(0, {folder!r})
extensions = ["myst_parser", "formulas"]
myst_enable_extensions = ["dollarmath", "amsmath"]
html_math_renderer = "mathml"
"""


def build(folder, text):
    """Build a book of one page."""
    (folder / "conf.py").write_text(CONF.format(folder=str(ROOT / "book" / "_ext")))
    (folder / "index.md").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", folder, folder / "out"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_unknown_command_is_an_error_with_file_and_line(tmp_path):
    done = build(tmp_path, "# Page\n\nGood: $x^2$.\n\nBad: $\\nosuch x$.\n\n- Worse: $\\frac{1$\n")
    assert done.returncode != 0
    assert re.search(r"index\.md:5: .*nosuch", done.stderr)
    assert re.search(r"index\.md:7: ", done.stderr)


def test_formulas_stand_wherever_text_does(tmp_path):
    text = """# Why $\\theta = 0.5$

| a | b |
|---|---|
| $\\frac{1}{2}$ | $x$ |

> Quote with $\\mu$.

<details><summary>Solution</summary>

Hidden $\\sigma$.

</details>

$$
a = b
$$ (labelled)

\\begin{align}
c &= d
\\end{align}

See {eq}`labelled`.
"""
    done = build(tmp_path, text)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math ") >= 7
    assert "<title>Why θ=0.5" in page
    assert "(1)" in page and "labelled" in page
    body = re.sub(r'alttext="[^"]*"', "", page)
    assert "\\theta" not in body and "\\begin" not in body
