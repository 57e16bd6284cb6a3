"""The tools of `make execute`, `make sync` and `make repository`, on small notebooks."""

import csv
import json
import resource
import shutil
import subprocess

import execute
import figures
import grade
import nbclient
import nbformat
import notebooks
import pytest
import repository
import sync


def make_notebook(path, *sources, tags=()):
    """Write a notebook as an editor might leave it: random ids, stray metadata, old outputs."""
    notebook = nbformat.v4.new_notebook(
        metadata={"language_info": {"name": "python", "version": "3.99"}}
    )
    notebook.cells = [nbformat.v4.new_markdown_cell("# A title")]
    for source in sources:
        cell = nbformat.v4.new_code_cell(source, metadata={"scrolled": True, "tags": list(tags)})
        cell.execution_count = 99
        notebook.cells.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.delenv("DENSENET_TUTORIAL_DEVICE", raising=False)


# ------------------------------------------------------------------------------ execute


def test_execute_gives_the_same_bytes_twice(tmp_path, on_cpu):
    path = make_notebook(
        tmp_path / "01_tiny.ipynb",
        "import sys\nfor i in range(3):\n    print(i, flush=True)\n    print('e', file=sys.stderr)",
        "for i in range(3):\n    print(f'\\r{i} of 2', end='')",
        "1 + 1",
    )
    execute.main([str(path)])
    first = path.read_bytes()
    execute.main([str(path)])
    assert path.read_bytes() == first

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert sorted(output.text for output in code[0].outputs) == ["0\n1\n2\n", "e\ne\ne\n"]
    assert code[1].outputs[0].text == "2 of 2"
    assert "scrolled" not in code[0].metadata and "version" not in notebook.metadata.language_info


def test_execute_leaves_a_chapter_that_fails_as_it_was(tmp_path, on_cpu):
    path = make_notebook(tmp_path / "01_tiny.ipynb", "print('reached')", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        execute.main([str(path)])
    assert path.read_bytes() == before
    assert not (tmp_path / "results").exists()


def test_execute_says_when_the_kernel_died(tmp_path, on_cpu):
    path = make_notebook(tmp_path / "01_tiny.ipynb", "import os\nos._exit(1)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="kernel died"):
        execute.main([str(path)])
    assert path.read_bytes() == before


def test_execute_refuses_the_network_and_notes_who_was_asked_for(tmp_path, on_cpu):
    path = make_notebook(
        tmp_path / "01_tiny.ipynb",
        "import urllib.request\n"
        "try:\n    urllib.request.urlopen('http://data.example.org/set.zip')\n"
        "except OSError as error:\n    print(error)",
    )
    execute.main([str(path)])
    assert "data.example.org was not contacted" in path.read_text(encoding="utf-8")
    with (tmp_path / "results" / "chapters.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["Chapter"] == "[A title](../01_tiny.ipynb)"
    assert row["Downloads"] == "data.example.org"
    assert row["GPU, seconds"] == "not measured yet"
    assert float(row["CPU, seconds"]) >= 0


def test_execute_says_when_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSENET_TUTORIAL_DEVICE", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = make_notebook(tmp_path / "01_tiny.ipynb", "1")
    with pytest.raises(ValueError, match="no GPU"):
        execute.main([str(path)])


def test_rows_of_other_chapters_and_devices_stay(tmp_path):
    table = tmp_path / "results" / "chapters.csv"
    for device, seconds in (("cuda", 3.2), ("cpu", 21.7)):
        for chapter in ("02_second", "01_first"):
            execute.record(table, chapter, chapter, device, seconds, f"a {device}", [])
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [execute.chapter_of(row["Chapter"]) for row in rows] == ["01_first", "02_second"]
    assert {(row["CPU, seconds"], row["GPU, seconds"], row["GPU"]) for row in rows} == {
        ("22", "3", "a cuda")
    }


# ------------------------------------------------------------------------------ writing


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    path = make_notebook(tmp_path / "01_tiny.ipynb", "1")
    before = path.read_bytes()
    notebook = notebooks.read(path)
    notebook.cells[0].source = "a" * 100_000
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # no file may grow past it
    try:
        with pytest.raises(OSError, match="not written"):
            notebooks.write(notebook, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_cells_without_an_id_get_the_same_one_every_time(tmp_path):
    path = tmp_path / "old.ipynb"
    cell = {"cell_type": "markdown", "metadata": {}, "source": ["a\n", "b"]}
    old = {"nbformat": 4, "nbformat_minor": 2, "metadata": {}, "cells": [cell, cell]}
    path.write_text(json.dumps(old), encoding="utf-8")
    first, second = ([c.id for c in notebooks.read(path).cells] for _ in range(2))
    assert first == second and len(set(first)) == 2
    assert notebooks.read(path).cells[0].source == "a\nb"


# ------------------------------------------------------------------------------ sync

PACKAGE = '''import torch


# Why this class is here.
@arguments.check(size=positive_int)
@decorate
class Layer:
    """A layer."""

    size = 2  # two

    @arguments.check(
        lambda size: size,
    )
    def run(self):
        """Runs.

        In two paragraphs.
        """
        return 1
'''


@pytest.fixture
def texts(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "layers.py").write_text(PACKAGE, encoding="utf-8")
    return sync.package_texts(package)


def test_sync_repairs_drift(tmp_path, texts):
    source = "import torch\n\n\nclass Layer:\n    size = 3\n\n\nLayer()"
    path = make_notebook(tmp_path / "01_tiny.ipynb", source, tags=["listing"])
    assert len(sync.sync(path, texts)) == 1
    shown = notebooks.read(path).cells[1].source
    listing = "@decorate\nclass Layer:\n    size = 2  # two\n\n    def run(self):\n        return 1"
    assert shown == f"import torch\n\n\n{listing}\n\n\nLayer()"
    after = path.read_bytes()
    assert sync.sync(path, texts) == []
    assert path.read_bytes() == after


def test_sync_leaves_cells_that_are_no_listing(tmp_path, texts):
    path = make_notebook(tmp_path / "01_tiny.ipynb", "class Layer:\n    size = 3")
    assert sync.sync(path, texts) == []


@pytest.mark.parametrize("source", ["class NaiveLayer:\n    pass", "print(1)"])
def test_sync_says_what_is_wrong_with_a_listing(tmp_path, texts, source):
    path = make_notebook(tmp_path / "01_tiny.ipynb", source, tags=["listing"])
    with pytest.raises(ValueError, match="listing"):
        sync.sync(path, texts)


# ------------------------------------------------------------------------------ repository


@pytest.fixture
def checkout(tmp_path):
    """A repository with the address in every form in which the book has it."""
    old = "https://github.com/first/book"
    files = {
        "_config.yml": f"repository:\n  url: {old}\nhtml:\n  baseurl: https://first.github.io/book/\n",
        "README.md": "https://colab.research.google.com/github/first/book/blob/main/book/01.ipynb\n"
        f"{old}/issues {old}.git {old}shelf {old}.js book first/book\n",
        "book/01.ipynb": f"%pip install git+{old} torchinfo\n",
        ".gitignore": "ignored.md\n",
        "ignored.md": old,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def test_repository_rewrites_every_form_of_the_address(checkout):
    changed = repository.rewrite(checkout, "https://github.com/Some-One/dense.net/")
    assert {path.name for path in changed} == {"_config.yml", "README.md", "01.ipynb"}
    new = "https://github.com/Some-One/dense.net"
    config = (checkout / "_config.yml").read_text(encoding="utf-8")
    assert f"url: {new}\n" in config and "https://some-one.github.io/dense.net/" in config
    assert (checkout / "README.md").read_text(encoding="utf-8") == (
        "https://colab.research.google.com/github/Some-One/dense.net/blob/main/book/01.ipynb\n"
        f"{new}/issues {new}.git https://github.com/first/bookshelf "
        "https://github.com/first/book.js book first/book\n"
    )
    assert f"git+{new} torchinfo" in (checkout / "book" / "01.ipynb").read_text(encoding="utf-8")
    assert "first/book" in (checkout / "ignored.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("old", ["first/book", "first/first.github.io"])
@pytest.mark.parametrize("new", ["first/book.js", "first/other", "first/books", "second/book"])
def test_repository_can_be_repeated_after_an_interruption(old, new):
    old, new = (tuple(each.split("/")) for each in (old, new))

    def changed(text):
        for pattern, replacement in repository.replacements(old, new):
            text = pattern.sub(replacement, text)
        return text

    text = f"https://github.com/{'/'.join(old)}.git https://{repository.pages(*old)}/book/ "
    expected = f"https://github.com/{'/'.join(new)}.git https://{repository.pages(*new)}/book/ "
    assert changed(text) == changed(changed(text)) == expected


@pytest.mark.parametrize("other", ["someone/else", "Someone/someone.github.io", "first/books"])
def test_repository_can_go_back(checkout, other):
    before = {p.name: p.read_bytes() for p in repository.files(checkout)}
    repository.rewrite(checkout, f"https://github.com/{other}")
    config = (checkout / "_config.yml").read_text(encoding="utf-8")
    owner, name = other.lower().split("/")
    address = "" if name == f"{owner}.github.io" else f"{name}/"
    assert f"baseurl: https://{owner}.github.io/{address}\n" in config
    repository.rewrite(checkout, "https://github.com/first/book")
    assert {p.name: p.read_bytes() for p in repository.files(checkout)} == before


@pytest.mark.parametrize(
    "url",
    [
        *("", "first/book", "http://github.com/a/b", "https://github.com/a"),
        *("https://gitlab.com/a/b", "https://github.com/a/b/issues", "https://github.com/a/.."),
        *("https://github.com/-a/b", "https://github.com/a--b/c", "https://github.com/a/b c"),
        *(f"https://github.com/{'a' * 40}/b", f"https://github.com/a/{'b' * 101}"),
    ],
)
def test_repository_refuses_what_is_no_address(checkout, url):
    before = (checkout / "_config.yml").read_bytes()
    with pytest.raises(ValueError, match="not a repository's address"):
        repository.rewrite(checkout, url)
    assert (checkout / "_config.yml").read_bytes() == before


def test_repository_says_where_it_changes_nothing(checkout, monkeypatch, tmp_path_factory):
    with pytest.raises(ValueError, match="is the repository's address already"):
        repository.rewrite(checkout, "https://github.com/first/book.git")
    elsewhere = tmp_path_factory.mktemp("no-checkout")
    shutil.copy(checkout / "_config.yml", elsewhere)
    with pytest.raises(ValueError, match="git cannot list the files: .*not a git repository"):
        repository.rewrite(elsewhere, "https://github.com/someone/else")
    monkeypatch.setenv("PATH", str(elsewhere))
    with pytest.raises(ValueError, match="git is needed"):
        repository.rewrite(checkout, "https://github.com/someone/else")
    with pytest.raises(SystemExit, match=r"^repository: '.*' is not a repository's address"):
        repository.main(["nonsense"])


# ------------------------------------------------------------------------------ teaching


def test_points_reach_the_right_student_in_a_gradebook(tmp_path):
    gradebook = tmp_path / "gradebook.csv"
    gradebook.write_text(
        "Student,ID,Section,First (7)\n"
        "    Points Possible,,,34\n"
        '"Doe, Ada",12,A,\n"Roe, Bo",345,A,3\n"Poe, Cy",6,A,5\n"Loe, Di",8,A,EX\n',
        encoding="utf-8",
    )
    rows = [
        {"submission": "doeada_12_900_layers.ipynb", "points": "31"},
        {"submission": "roebo_LATE_345_1001_layers-1.ipynb", "points": "0"},
        {"submission": "roebo_345_999_layers.ipynb", "points": "7"},
        {"submission": "poecy_6_902_layers.ipynb", "problem": "not a notebook"},
        {"submission": "Ada/loe_di_8_903_layers.ipynb", "points": "9"},
        {"submission": "a stray file.ipynb", "points": "9"},
    ]
    filled = list(csv.DictReader(grade.fill_gradebook(gradebook, "First (7)", rows).splitlines()))
    assert [student["First (7)"] for student in filled] == ["34", "31", "0", "5", "EX"]
    assert filled[1]["Student"] == "Doe, Ada"
    with pytest.raises(ValueError, match="no column 'Second'"):
        grade.fill_gradebook(gradebook, "Second", rows)


def test_everything_that_was_handed_in_is_found(tmp_path):
    given = ["b.ipynb", "Ada/a.IPYNB", "Ada/photo.jpg", "notes.ipynb.txt"]
    others = [".hidden.ipynb", "__MACOSX/._b.ipynb", "out.csv", "out/b.txt", "grades.csv"]
    for name in given + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    found = grade.submissions_in(tmp_path, [tmp_path / "out.csv", tmp_path / "out"])
    assert sorted(str(path.relative_to(tmp_path)) for path in found) == sorted(given)
    with pytest.raises(ValueError, match="nowhere is no folder"):
        grade.submissions_in(tmp_path / "nowhere", [])


@pytest.mark.parametrize("version", [3, 4])
def test_the_code_of_a_submission_is_read_from_any_format(tmp_path, version):
    notebook = nbformat.versions[version].new_notebook()
    cell = nbformat.versions[version].new_code_cell("x = 1  # is it?")
    if version == 3:
        notebook.worksheets = [nbformat.v3.new_worksheet(cells=[cell])]
    else:
        notebook.cells = [cell]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8-sig")
    assert [cell.source for cell in grade.code_of(path).cells] == ["x = 1  # is it?"]


def test_a_notebook_without_all_that_its_format_asks_for_is_read(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1\n", "y"]}]}))
    assert [cell.source for cell in grade.code_of(path).cells] == ["x = 1\ny"]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": 5}]}))
    with pytest.raises(ValueError, match="not a notebook"):
        grade.code_of(path)


def test_a_table_holds_no_formulas():
    text = grade.table(["submission", "points"], [{"submission": "=1+1.ipynb", "points": "-1"}])
    assert text == "submission,points\n'=1+1.ipynb,-1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer", "."], "one of layers, memory, network, pretrained, got 'layer'"),
        (["layers", ".", "--canvas", "{gradebook}"], "no column None; its columns: Student, ID"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_graded(tmp_path, arguments, message):
    gradebook = tmp_path / "gradebook.csv"
    gradebook.write_text("Student,ID\n")
    with pytest.raises(ValueError, match=message):
        grade.main([argument.format(gradebook=gradebook) for argument in arguments])


def test_an_archive_that_is_no_autograder_is_named(tmp_path):
    make_notebook(tmp_path / "one.ipynb", "1")
    (tmp_path / "autograder.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="none of our autograders"):
        grade.grade(tmp_path / "autograder.zip", tmp_path, tmp_path / "out.csv")


def test_grading_needs_submissions_and_an_autograder(tmp_path):
    with pytest.raises(ValueError, match="no .ipynb file"):
        grade.grade(tmp_path / "autograder.zip", tmp_path, tmp_path / "out.csv")
    make_notebook(tmp_path / "one.ipynb", "1")
    with pytest.raises(ValueError, match="make assignments"):
        grade.grade(tmp_path / "autograder.zip", tmp_path, tmp_path / "out.csv")


def test_figures_are_written_with_their_descriptions(tmp_path):
    chapters = notebooks.chapters()
    count = figures.write(tmp_path, chapters)
    drawings = list(tmp_path.glob("*.svg"))
    assert count == len(list(tmp_path.glob("*.png"))) + len(drawings)
    assert len(drawings) > 10 and count > 2 * len(drawings)
    assert all(path.read_bytes().startswith(b"<svg ") for path in drawings)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    assert (tmp_path / "figures.md").read_text(encoding="utf-8").count("\n- `") == count
