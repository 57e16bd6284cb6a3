"""The chapters as they are stored: what a reader on GitHub or in Colab sees, before anything is
built.
"""

import ast
import csv
import re

import contents
import execute
import nbformat
import notebooks
import pytest
import sync
import yaml

ROOT = notebooks.ROOT
CHAPTERS = notebooks.chapters()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))

GUARD = """import importlib.util

if importlib.util.find_spec("densenet_tutorial") is None:
    %pip install --quiet --no-deps torchinfo git+{url}"""
ENVIRONMENT_LINE = """from densenet_tutorial.utils import environment

print(environment.summary_line())"""

# What MyST understands and Colab shows as it stands.
DIRECTIVE = re.compile(
    r"^\s*(?:`{3,}|~{3,}|:{3,})\{|\{[\w:+-]+\}`|^\([\w-]+\)=\s*$|^\+\+\+", re.MULTILINE
)
SENTENCE = re.compile(r"[A-Z0-9].*\.", re.DOTALL)
HIDDEN_CODE = "(a code cell that is folded away)"

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def text_of(outputs):
    """Everything that `outputs` says in characters."""
    for output in outputs:
        yield output.get("text", "")
        yield from (str(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))


def test_there_are_chapters():
    assert len(CHAPTERS) >= 6


def test_the_table_of_contents_names_every_chapter_and_nothing_else():
    named = contents.pages()
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in CHAPTERS} <= set(named)
    missing = [n for n in named if not list(ROOT.glob(f"{n}.ipynb")) + list(ROOT.glob(f"{n}.md"))]
    assert not missing


@each_chapter
def test_listings_equal_the_package(path):
    package = sync.package_texts(ROOT / "densenet_tutorial")
    for cell in code_cells(path):
        if "listing" not in tags(cell):
            continue
        shown = [n for n in ast.parse(cell.source).body if isinstance(n, sync.DEFINITIONS)]
        assert shown, f"cell {cell.id} is tagged `listing` and defines nothing"
        for node in shown:
            ours = ast.parse(sync.package_text(node.name, package, cell.id)).body[0]
            assert syntax(node) == syntax(ours), f"{node.name} has drifted: type `make sync`"


def syntax(tree):
    """The syntax tree as text, without docstrings and argument checks."""
    for node in ast.walk(tree):
        if isinstance(node, sync.DEFINITIONS):
            node.decorator_list = [d for d in node.decorator_list if not sync.is_argument_check(d)]
        if isinstance(node, sync.DEFINITIONS) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@each_chapter
def test_guard_comes_first(path):
    first = code_cells(path)[0]
    assert first.source == GUARD.format(url=CONFIG["repository"]["url"])
    assert {"guard", "hide-input"} <= set(tags(first))


@each_chapter
def test_environment_line_comes_second(path):
    second = code_cells(path)[1]
    assert second.source == ENVIRONMENT_LINE
    assert len("".join(text_of(second.outputs)).splitlines()) == 1


@each_chapter
def test_stored_executed_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_chapter
def test_no_stored_error(path):
    for cell in code_cells(path):
        if "raises-exception" not in tags(cell):
            assert not [o for o in cell.outputs if o.output_type == "error"], cell.source


@each_chapter
def test_stored_as_make_execute_leaves_it(path):
    stored = path.read_text(encoding="utf-8")
    again = nbformat.writes(notebooks.normalise(notebooks.read(path))) + "\n"
    assert stored == again, "type `make execute`"


@each_chapter
def test_outputs_name_no_machine(path):
    """Neither memory addresses, which change from run to run, nor somebody's folders."""
    for cell in code_cells(path):
        for text in text_of(cell.outputs):
            assert not re.search(r"\bat 0x[0-9a-f]{6,}|/(home|root|Users|tmp|work)/", text), text


@each_chapter
def test_most_outputs_are_compared(path):
    with_output = [cell for cell in code_cells(path) if cell.outputs]
    ignored = [cell for cell in with_output if "nbval-ignore-output" in tags(cell)]
    assert 3 * len(ignored) < len(with_output)


@each_chapter
def test_every_figure_is_described_in_a_sentence(path):
    for cell in code_cells(path):
        images = [o for o in cell.outputs if any(k.startswith("image/") for k in o.get("data", {}))]
        if images:
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert is_sentence(alt), f"alt text {alt!r} of the figure made by\n{cell.source}"


def is_sentence(text):
    return bool(SENTENCE.fullmatch(text)) and len(text.split()) >= 5


@each_chapter
def test_figures_are_drawn_not_pasted(path):
    for cell in notebooks.read(path).cells:
        assert not cell.get("attachments")
        assert "data:image" not in cell.source


@each_chapter
def test_text_needs_no_myst(path):
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            found = DIRECTIVE.search(cell.source)
            assert not found, f"{found.group()!r} means nothing in Colab:\n{cell.source}"


@each_chapter
def test_exercises_have_solutions(path):
    text = ""
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            text += cell.source + "\n"
        elif "hide-cell" in tags(cell):
            text += HIDDEN_CODE + "\n"
    # Each exercise reaches to the next heading of its level or above.
    exercises = re.findall(
        r"^### Exercise (\d+)\.(\d+) · \S(.*?)(?=^#{1,3} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    numbers = [(int(chapter), int(number)) for chapter, number, _ in exercises]
    assert numbers == [(int(path.stem[:2]), n) for n in range(1, len(exercises) + 1)]
    assert 3 <= len(exercises) <= 5
    for chapter, number, body in exercises:
        solved = '<details class="solution">' in body or HIDDEN_CODE in body
        assert solved, f"exercise {chapter}.{number} has no solution"
    assert text.count("<details") == text.count("</details>")


def test_papers_that_are_linked_are_in_the_references():
    known = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    for path in [*CHAPTERS, *(ROOT / "book").rglob("*.md")]:
        linked = re.findall(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", path.read_text("utf-8"))
        assert not [paper for paper in linked if paper not in known], path.name


def test_results_have_a_row_for_every_chapter_and_keep_the_promise():
    with (ROOT / "book" / "results" / "chapters.csv").open(encoding="utf-8", newline="") as file:
        rows = {execute.chapter_of(row["Chapter"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == [path.stem for path in CHAPTERS]
    for chapter, row in rows.items():
        assert row["Downloads"] == "nothing", chapter
        assert float(row["CPU, seconds"]) <= 60, chapter


def test_readme_opens_every_chapter_in_colab():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    slug = CONFIG["repository"]["url"].removeprefix("https://github.com/")
    for path in CHAPTERS:
        link = f"https://colab.research.google.com/github/{slug}/blob/main/book/{path.name}"
        assert link in readme


def test_readme_reads_wherever_it_is_shown():
    """A package's page has no files beside it: links are whole addresses, of files that exist."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ours = CONFIG["repository"]["url"]
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert link.startswith("https://"), link
        if found := re.fullmatch(rf"{re.escape(ours)}/(?:blob|raw)/main/(.+)", link):
            assert (ROOT / found[1]).is_file(), link
