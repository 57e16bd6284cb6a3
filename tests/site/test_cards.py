"""Cards that keep their answer to themselves, code that is folded, tables that fit, and how long a
chapter takes.
"""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.utils import new_document
from PIL import Image
from test_browser import Tab, browser, server, tabs  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))
import cells
import reading

CHAPTERS = sorted(path.stem for path in ROOT.glob("book/[0-9][0-9]_*.ipynb"))
LOOKS = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]

# For each Predict that has an answer behind a button: what comes before the button.
CARDS = """
() => [...document.querySelectorAll('blockquote.predict')].map(card => {
  const between = [];
  let next = card.nextElementSibling;
  for (; next?.matches('div.cell'); next = next.nextElementSibling) between.push(next);
  const fold = next?.matches('details.answer') ? next : null;
  return {
    follows: between.length > 0, fold: fold !== null, open: fold?.open,
    outputs: between.filter(cell => cell.querySelector('.cell_output')).length,
    code: between.every(cell => cell.querySelector('.cell_input')),
    text: fold ? fold.textContent : '',
    shown: fold ? fold.innerText : '',
  };
})
"""
FITS = """
() => [...document.querySelectorAll('article .pst-scrollable-table-container')]
  .filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 80))
"""


def notebook(name):
    return json.loads((ROOT / "book" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def answers(name):
    """What is printed by the first cell that prints anything after each Predict."""
    found, waiting = [], False
    for cell in notebook(name):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            last = text.strip().split("\n\n")[-1]
            waiting = "**Predict.**" in last
        elif waiting and cell["outputs"]:
            printed = [o["text"] for o in cell["outputs"] if o.get("name") == "stdout"]
            found.append("".join(line for text in printed for line in text))
            waiting = False
    return found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_predict_shows_no_answer_until_it_is_asked(tabs, server, chapter):  # noqa: F811
    tab = tabs(server)
    tab.page.goto(f"{server}book/{chapter}.html")
    cards = tab.page.evaluate(CARDS)
    expected = answers(chapter)
    followed = [card for card in cards if card["follows"]]
    assert len(expected) == len(followed) >= 1
    for card, printed in zip(followed, expected, strict=True):
        assert card["fold"] and not card["open"] and card["outputs"] == 0 and card["code"]
        assert card["shown"].strip() == "Show the answer"
        # It is there, behind the button.
        assert all(word in card["text"] for word in printed.split()[:3])


def test_the_paragraph_that_says_the_answer_is_hidden_too(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}book/04_transition.html")
        words = tab.page.get_by_text("The same. Here is why.")
        assert not words.is_visible()
        tab.page.locator("details.answer > summary").nth(1).click()
        assert words.is_visible()


def test_words_about_a_hidden_figure_are_with_it(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}book/10_claims_measured.html")
        fold = tab.page.locator("details.answer", has_text="In the first panel").first
        words = fold.locator("p", has_text="In the first panel")
        assert not words.is_visible()
        fold.locator("> summary").click()
        assert words.is_visible()


def test_where_words_answer_they_are_behind_the_button(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}book/03_dense_block.html")
        fold = tab.page.locator("details.answer", has_text="The answer is memory")
        assert not fold.locator("p").is_visible()
        fold.locator("summary").click()
        assert fold.locator("p").is_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_an_answer_opens_by_mouse_and_keyboard(browser, server, scripts):  # noqa: F811
    with Tab(browser, server, java_script_enabled=scripts) as tab:
        tab.page.goto(f"{server}book/04_transition.html")
        folds = tab.page.locator("details.answer")
        output = folds.nth(0).locator(".cell_output").first
        assert folds.count() == 3 and not output.is_visible()
        folds.nth(0).locator("summary").click()
        assert output.is_visible() and "after pool" in output.inner_text()
        assert folds.nth(0).locator("summary").inner_text().strip() == "The answer"
        folds.nth(1).locator("summary").focus()
        tab.page.keyboard.press("Enter")
        assert folds.nth(1).locator(".cell_output").first.is_visible()
        assert not folds.nth(2).locator(".cell_output").first.is_visible()
        assert not tab.complaints


def test_a_link_to_words_of_an_answer_opens_it(browser, server):  # noqa: F811
    """As a search within the page does."""
    with Tab(browser, server) as tab:
        tab.page.goto(
            f"{server}book/04_transition.html#:~:text=same%20up%20to%20rounding%3A%20True"
        )
        tab.page.wait_for_function("document.querySelectorAll('details.answer')[1].open")


@pytest.mark.parametrize("chapter", ["01_why_dense_connections", "10_claims_measured"])
def test_paper_has_the_answers(browser, server, chapter):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}book/{chapter}.html")
        tab.page.emulate_media(media="print")
        folds = tab.page.locator("details.answer").all()
        assert len(folds) >= 3
        for fold in folds:
            label = "e => getComputedStyle(e, '::after').content"
            assert fold.locator("> summary").evaluate(label) == '"The answer"'
            assert not fold.locator("> summary").inner_text()
            for output in fold.locator(".cell_output").all():
                assert output.is_visible() and output.bounding_box()["height"] > 10
        # Solutions stay where they are.
        assert not tab.page.locator("details.solution").first.is_visible()


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_callouts_look_different_everywhere(browser, server, scheme, width):  # noqa: F811
    look = """kind => {
      const quote = document.querySelector(`blockquote.${kind}`);
      const style = getComputedStyle(quote);
      const sign = getComputedStyle(quote.querySelector('strong'), '::before');
      return [style.borderLeftColor, style.backgroundColor, style.borderLeftStyle, sign.maskImage];
    }"""
    with Tab(browser, server, color_scheme=scheme, viewport={"width": width, "height": 844}) as tab:
        tab.page.goto(f"{server}book/06_training.html")
        predict, wrong = (tab.page.evaluate(look, kind) for kind in ("predict", "wrong"))
        assert all(a != b for a, b in zip(predict, wrong, strict=True))


def test_a_callout_in_a_callout_is_a_card_of_its_own(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(f"{server}book/03_dense_block.html")
        wrong = tab.page.locator("blockquote.wrong", has_text="puts new features in front")
        assert "Predict." not in wrong.inner_text()
        assert wrong.evaluate("e => e.nextElementSibling.matches('blockquote.predict')")


def a(kind):
    """A node as a page has it behind a Predict."""
    if kind in ("cell", "empty cell"):
        cell = nodes.container(nb_element="cell_code")
        cell += nodes.container("", nodes.Text("code"), nb_element="cell_code_source")
        output = nodes.container(nb_element="cell_code_output")
        if kind == "cell":
            output += nodes.Text("output")
        cell += output
        return cell
    special = {
        "predict": nodes.block_quote(classes=["predict"]),
        "wrong": nodes.block_quote(classes=["wrong"]),
        "section": nodes.section(),
        "list": nodes.bullet_list(),
        "label": nodes.target(),
        "comment": nodes.comment("", "of the author"),
        "end": nodes.raw("", cells.END + "\n", format="html"),
    }
    return special.get(kind) or nodes.paragraph("", kind)


@pytest.mark.parametrize(
    ("following", "hidden"),
    [
        (["cell", "words", "more"], ["output", "words"]),
        (["cell", "cell", "words:", "list", "more"], ["output", "codeoutput", "words:", ""]),
        (["label", "comment", "cell", "label", "words"], ["output", "words"]),
        (["cell", "words:", "cell", "more"], ["output", "words:"]),
        (["cell", "wrong", "words"], ["output"]),
        (["cell", "section"], ["output"]),
        (["The answer is 3.", "more"], ["The answer is 3."]),
        (["words", "more", "end", "other"], ["words", "more"]),
        (["cell", "words", "wrong", "end", "other"], ["output", "words", ""]),
        (["cell", "words", "cell", "end", "other"], ["output", "words", "codeoutput"]),
        (["words", "cell", "more", "end", "other"], ["output", "more"]),
        (["empty cell", "words"], ["words"]),
        (["words"], []),
        (["empty cell"], []),
        (["predict", "cell", "words", "end"], []),
        (["words", "section", "end"], []),
    ],
)
def test_what_answers_is_hidden_and_nothing_else(following, hidden, monkeypatch):
    page, warnings = new_document("page"), []
    quote = nodes.block_quote("", nodes.paragraph("", "How many?"), classes=["predict"])
    page += nodes.section("", quote, *map(a, following))
    warn = lambda *words, location: warnings.append(location)
    monkeypatch.setattr(cells.LOGGER, "warning", warn)
    cells.Answers(page).apply()
    folds = [node for node in quote.parent if isinstance(node, cells.Answer)]
    if "predict" in following:  # the other one's
        (fold,) = folds
        assert quote.parent.index(fold) > 2
        folds = []
    assert [node.astext().replace("\n", "") for fold in folds for node in fold] == hidden
    assert (quote in warnings) == (not hidden) and cells.END not in page.astext()


def test_what_draws_is_told_from_what_computes():
    plot = 'figures.curves(\n    sizes,\n    title="T",\n    log_y=True,\n);'
    assert cells.split(plot) == ([], plot.split("\n"))
    assert cells.split(f"import torch\n\n{plot}")[0] == []
    assert cells.split(f"sizes = measure()\n{plot}") == (["sizes = measure()"], plot.split("\n"))
    assert cells.split("plt.figure()\nplt.plot([1, 2])")[0] == []
    for open_ in (
        "sizes = measure()\nfigures.curves(sizes);",  # not worth it
        f"{plot}\nprint(sizes)",
        "axes = figures.curves(sizes)",
        "%timeit figures.curves(sizes)",
        "import torch",
        "figures = 3",
        "own.figures.curves(sizes)",
        f"sizes = measure(); {plot}",
    ):
        assert cells.split(open_) == (open_.split("\n"), []), open_


def test_what_tells_the_answer_is_folded_where_a_question_is_asked():
    before, short = "sizes = measure()", 'figures.bars(sizes, title="It grows");'
    assert cells.split(f"{before}\n{short}") == ([before, short], [])
    assert cells.split(f"{before}\n{short}", asked=True) == ([before], [short])
    check = "assert sizes[0] > 3"
    for rest in (check, f"{check}\n{short}", f"{short}\n{check}"):
        assert cells.split(f"{before}\n{rest}", asked=True) == ([before], rest.split("\n"))
        assert cells.split(f"{before}\n{check}\nprint(3)", asked=True)[1] == []
    assert cells.split(f"{before}\n{check}") == ([before, check], [])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_code_under_a_question_says_no_title_and_asserts_nothing(tabs, server, chapter):  # noqa: F811
    tab = tabs(server)
    tab.page.goto(f"{server}book/{chapter}.html")
    for code in tab.page.locator("blockquote.predict + div.cell .cell_input").all():
        if code.is_visible():
            lines = code.inner_text().strip().split("\n")
            assert not lines[-1].startswith("assert")
            assert not [line for line in lines if line.startswith("    title=")]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_calls_that_draw_are_folded_and_figures_are_not(tabs, server, chapter):  # noqa: F811
    tab = tabs(server)
    tab.page.goto(f"{server}book/{chapter}.html")
    code = tab.page.locator("article .cell_input").all()
    open_ = [each.inner_text() for each in code if each.is_visible()]
    assert open_ and not any(cells.split(text.strip())[1] for text in open_)
    tab.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    whole = "".join("".join(each.text_content().split()) for each in code)
    # No line of a cell is lost.
    for cell in notebook(chapter):
        if cell["cell_type"] == "code":
            for line in "".join(cell["source"]).split("\n"):
                assert "".join(line.split()) in whole
    if chapter == "07_memory":
        fold = tab.page.locator("details.hide", has_text="Plain grows with the square").first
        assert fold.locator("summary").inner_text().strip() == "Hide the code of the figure"


def test_progress_bars_are_no_output(site):
    assert "100%|" in json.dumps(notebook("06_training"), ensure_ascii=False)  # Colab has them
    for page in sorted((site / "book").rglob("*.html")):
        assert not re.search(r"\d%\|.*images/s", page.read_text(encoding="utf-8")), page.name


def test_reading_time_is_counted_from_words_and_lines(tmp_path):
    words = "Of words, these are ten, and `one` of them's code. "  # 10
    source = [
        {"cell_type": "markdown", "source": words * 60 + "<details>" + words * 50 + "</details>"},
        {"cell_type": "code", "metadata": {}, "source": "x = 1\n\n" * 40},
        {"cell_type": "code", "metadata": {"tags": ["hide-cell"]}, "source": "y = 1\n" * 39},
        {"cell_type": "code", "metadata": {}, "source": "figures.bars(x)"},
        {
            "cell_type": "markdown",
            "source": "$$a + b = c$$ [link](https://example.org/a/b/c) <b>x</b>",
        },
    ]
    path = tmp_path / "chapter.ipynb"
    path.write_text(json.dumps({"cells": source}), encoding="utf-8")
    # A listing of more than 40 lines is folded, and does not count.
    assert reading.counted(path) == (603, 0)
    source[1]["source"] = "x = 1\n" * 39
    path.write_text(json.dumps({"cells": source}), encoding="utf-8")
    assert reading.counted(path) == (603, 39)
    assert reading.minutes(path) == 5  # 3 + 2
    source *= 2
    path.write_text(json.dumps({"cells": source}), encoding="utf-8")
    assert reading.minutes(path) == 10


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_says_how_long_it_is(site, chapter):
    minutes = reading.minutes(ROOT / "book" / f"{chapter}.ipynb")
    first = "".join(notebook(chapter)[0]["source"])
    assert f"Reading takes about {minutes} minutes" in first
    text = (site / "book" / f"{chapter}.html").read_text(encoding="utf-8")
    (line,) = re.findall(r"</h1>\s*<p class=\"reading-time\">([^<]*)</p>", text)
    assert line.startswith(f"{minutes} minutes to read: ")
    assert "Reading takes about" not in text  # once is enough
    home = (site / "book" / "index.html").read_text(encoding="utf-8")
    card = re.search(rf'<a href="{chapter}\.html">.*?</li>', home, re.DOTALL)[0]
    assert f"{minutes} minutes" in card


def test_tables_of_results_fit_and_say_once_what_was_not_measured(browser, server):  # noqa: F811
    with Tab(browser, server, viewport={"width": 1280, "height": 844}) as tab:
        tab.page.goto(f"{server}book/appendix/results.html")
        assert not tab.page.evaluate(FITS)
        article = tab.page.locator("article").inner_text()
        assert "not measured yet" not in article.replace("has not been measured yet", "")
        (said,) = re.findall(r"Not measured yet.*", article)
        assert "GPU, seconds" in said
        head = tab.page.locator("table").first.locator("thead").inner_text()
        assert "CPU" in head and "GPU" not in head
        # As many cells in each row as in the head.
        rows = tab.page.evaluate(
            "[...document.querySelectorAll('table tr')].map(row => row.closest('table')"
            ".querySelectorAll('thead th').length - row.cells.length)"
        )
        assert rows and not any(rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("book/02_dense_layer.html", "div.highlight pre"),
        ("book/appendix/results.html", ".pst-scrollable-table-container"),
    ],
)
def test_what_scrolls_sideways_has_a_shadow(browser, server, scheme, place, what):  # noqa: F811
    """At the end where there is more, and only there."""
    with Tab(browser, server, color_scheme=scheme, viewport={"width": 390, "height": 844}) as tab:
        tab.page.goto(server + place)
        tab.page.add_style_tag(content=f"{what}, {what} * {{ color: transparent !important }}")
        wide = f"[...document.querySelectorAll('article {what}')].find(e => e.checkVisibility()"
        box = tab.page.evaluate_handle(
            f"{wide} && e.scrollWidth > e.clientWidth + 60)"
        ).as_element()

        def edges():
            image = Image.open(io.BytesIO(box.screenshot())).convert("L")
            middle = image.height // 2
            left, right = (image.getpixel((x, middle)) for x in (6, image.width - 4))
            return left, right, image.getpixel((image.width // 2, middle))

        left, right, between = edges()
        assert abs(right - between) > 15 and abs(left - between) <= 4
        box.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
        left, right, between = edges()
        assert abs(left - between) > 8 and abs(right - between) <= 4
