"""The whole book on paper: the PDF that `make pdf` makes of the site, and a page by itself."""

import fcntl
import html
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from conftest import ROOT, toc_files
from pypdf import PdfReader
from test_browser import Tab, browser, server  # noqa: F401

sys.path.append(str(ROOT / "book" / "_tools"))
import make_pdf

MM = 72 / 25.4  # points


@pytest.fixture(scope="session")
def book(site, tmp_path_factory):
    """The PDF, printed once for all workers, on a system that likes it dark."""
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):  # a worker's own
        folder = folder.parent
    path = folder / "book.pdf"
    with open(folder / "book.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            make_pdf.make(site, path, scheme="dark")
    return path


@pytest.fixture(scope="module")
def reader(book):
    return PdfReader(book)


@pytest.fixture(scope="module")
def paper(book):
    with pypdfium2.PdfDocument(book) as document:
        yield document


@pytest.fixture(scope="module")
def texts(paper):
    """The text of every page."""
    return [page.get_textpage().get_text_bounded() for page in paper]


@pytest.fixture(scope="module")
def titles(site):
    """The heading of every page of the site, in the book's order."""
    return ["About this book", *(heading(site / f"{name}.html") for name in toc_files()[1:])]


def heading(path):
    """The first heading of a page of the site."""
    page = path.read_text(encoding="utf-8").partition("<article")[2]
    inside = re.search(r"<h1>(.*?)<a class=.headerlink", page, re.DOTALL)[1]
    return words(html.unescape(re.sub(r"<[^>]*>", "", inside)))


def words(text):
    return " ".join(text.split())


def entries(outline, depth=1):
    """Bookmarks: their depth and destination."""
    for item in outline:
        if isinstance(item, list):
            yield from entries(item, depth + 1)
        else:
            yield depth, item


@pytest.fixture(scope="module")
def starts(reader):
    """The page on which each bookmark of the first level begins, from 1, by its title."""
    return {
        words(entry.title): reader.get_destination_page_number(entry) + 1
        for depth, entry in entries(reader.outline)
        if depth == 1
    }


def grey(page):
    """A page as it looks from afar, at 36 pixels an inch: 0 is black, 255 is white."""
    return page.render(scale=0.5, grayscale=True).to_numpy().squeeze()


@pytest.fixture(scope="module")
def looks(paper):
    return [grey(page) for page in paper]


def test_title_page(texts, reader):
    text = words(texts[0])
    assert text.startswith("DenseNet, step by step")
    for part in "The densenet-tutorial authors", "edition, ", "MIT licence", "CC BY 4.0":
        assert part in text
    assert "https://densenet-tutorial.github.io/densenet-tutorial/" in text
    assert reader.metadata.title == "DenseNet, step by step"


def test_every_page_of_the_site_is_a_chapter_in_its_order(starts, titles):
    assert list(starts) == ["Contents", *titles]
    assert list(starts.values()) == sorted(starts.values())


@pytest.fixture(scope="module")
def contents(reader, starts, titles):
    """The text of the contents. (pdfium loses the spaces of a page with little on its right.)"""
    pages = reader.pages[starts["Contents"] - 1 : starts[titles[0]] - 1]
    return words(" ".join(page.extract_text() for page in pages))


def test_the_contents_name_the_right_pages(contents, starts, titles):
    for title in titles:
        assert f"{title} {starts[title]} " in f"{contents} ", title


def test_sections_in_the_contents_name_the_right_pages(reader, contents):
    sections = [entry for depth, entry in entries(reader.outline) if depth == 2]
    assert len(sections) > 100
    for entry in sections:
        number = reader.get_destination_page_number(entry) + 1
        assert f"{words(entry.title)} {number} " in f"{contents} ", entry.title


def test_running_heads(texts, starts, titles):
    for title, following in zip(titles, [*titles[1:], None], strict=True):
        end = starts[following] - 1 if following else len(texts)
        for number in range(starts[title], end + 1):
            text = "".join(texts[number - 1].split())
            assert "".join(title.split()) in text and str(number) in text, number
    assert not texts[0].lstrip().startswith("1\n")


def test_links_work_inside_the_pdf(reader):
    targets, inside, outside = reader.named_destinations, 0, set()
    for page in reader.pages:
        for annotation in page.get("/Annots", []):
            annotation = annotation.get_object()
            if "/Dest" in annotation:
                assert str(annotation["/Dest"]) in targets
                inside += 1
            else:
                outside.add(str(annotation["/A"]["/URI"]))
    assert inside > 700
    assert outside and all(address.startswith(("http://", "https://")) for address in outside)
    # Pages of the book are not looked for on the web, unless it is for what paper cannot do.
    web = "https://densenet-tutorial.github.io/densenet-tutorial/book/"
    assert all("#" in address for address in outside if address.startswith(web))


def pages_of(element):
    """The pages on which a part of the document's structure stands."""
    found, elements = set(), [(element, None)]
    while elements:
        element, page = elements.pop()
        if isinstance(element, int):
            found.add(page)
            continue
        page = element.raw_get("/Pg").idnum if "/Pg" in element else page
        if element.get("/Type") == "/MCR" or "/MCID" in element:
            found.add(page)
        kids = element.get("/K", [])
        kids = kids if isinstance(kids, list) else [kids]
        elements += [(k if isinstance(k, int) else k.get_object(), page) for k in kids]
    return found - {None}


def is_head(row):
    """Whether it is a table's first row, which stands again on every page that has some of it."""
    kids = [kid.get_object() for kid in row["/K"] if not isinstance(kid, int)]
    return all(kid.get("/S") in ("/TH", None) for kid in kids)


def test_no_figure_and_no_row_of_a_table_is_cut_in_two(reader):
    figures, rows, elements = 0, 0, [reader.trailer["/Root"]["/StructTreeRoot"]]
    while elements:
        element = elements.pop()
        kind = element.get("/S")
        if kind in ("/Figure", "/TR"):
            assert len(pages_of(element)) <= 1 or is_head(element), element
            figures += kind == "/Figure"
            rows += kind == "/TR"
            continue
        kids = element.get("/K", [])
        kids = kids if isinstance(kids, list) else [kids]
        elements += [k.get_object() for k in kids if not isinstance(k, int)]
    assert figures > 50 and rows > 200


def test_pages_are_white_and_nothing_stands_in_the_margins(paper, looks):
    assert {tuple(round(side / MM) for side in page.get_size()) for page in paper} == {(210, 297)}
    margin = int(17 * MM / 2)
    for number, look in enumerate(looks, 1):
        assert look.mean() > 180, f"page {number} is dark"
        y, x = np.nonzero(look < 240)
        assert len(x), f"page {number} is empty"
        assert x.min() > margin and x.max() < look.shape[1] - margin, number
        assert y.max() < look.shape[0] - margin, number


def test_no_heading_is_the_last_thing_on_its_page(paper, reader, looks):
    for _, entry in entries(reader.outline):
        number = reader.get_destination_page_number(entry)
        below = (paper[number].get_height() - float(entry.top) + 28) / 2
        assert (looks[number][int(below) :] < 240).any(), (entry.title, number + 1)


def test_what_is_folded(texts, starts):
    text = words(" ".join(texts))
    # Set-up and buttons are left out; a long listing is whole.
    for hidden in "find_spec", "Show the ", "Hide the ", "Cut these four":
        assert hidden not in text
    assert "class DenseNet(nn.Module)" in text
    # A solution stands behind all exercises of its chapter.
    start = starts["5 · The whole network"] - 1
    chapter = words(" ".join(texts[start : starts["6 · Training"] - 1]))
    assert chapter.count("Exercise 5.1 · Depth by hand") == 2
    assert chapter.index("Tempting and wrong") > chapter.index("What comes next")


def test_exercises_and_solutions_name_each_other(texts):
    for link in "Solution on page", "Exercise on page":
        found = re.findall(rf"{link} (\d+)", words(" ".join(texts)))
        assert len(found) > 40
        assert all("Exercise" in texts[int(number) - 1] for number in found)


def test_the_site_links_to_it(site, tmp_path):
    copy = tmp_path / "html"
    for name in toc_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site / f"{name}.html", copy / f"{name}.html")
    pdf = copy / make_pdf.NAME
    pdf.write_bytes(b"%PDF" + bytes(12_000_000))
    for count in 250, 260:  # again, after the book has grown
        make_pdf.add_links(copy, pdf, count)
    for name in toc_files():
        page = copy / f"{name}.html"
        links = re.findall(
            r'<p class="pdf"><a href="(.*?)">The whole book as a PDF</a> \(260 pages, 12 MB\)</p>',
            page.read_text(encoding="utf-8"),
        )
        assert len(links) == (2 if name == toc_files()[0] else 1)
        assert all((page.parent / link).resolve() == pdf for link in links)


def test_without_a_pdf_nothing_links_to_one(site):
    if not (site / make_pdf.NAME).exists():
        for name in toc_files():
            assert make_pdf.NAME not in (site / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_page_in_the_dark_prints_white(browser, server, scripts, tmp_path):  # noqa: F811
    settings = {"color_scheme": "dark", "java_script_enabled": scripts}
    margin = dict.fromkeys(("left", "right", "top", "bottom"), "1cm")
    with Tab(browser, server, **settings) as tab:
        tab.page.goto(server + "book/05_densenet.html")
        tab.page.pdf(path=tmp_path / "page.pdf", print_background=True, margin=margin)
        theme = tab.page.locator("html").get_attribute("data-theme")
        assert theme == ("dark" if scripts else "auto")
    with pypdfium2.PdfDocument(tmp_path / "page.pdf") as document:
        for look in map(grey, document):
            assert look.mean() > 180
            assert (look[:12] > 250).all() and (look[:, :12] > 250).all()
        text = "".join(page.get_textpage().get_text_bounded() for page in document)
    assert text.count("5 · The whole network") == 1  # the title
    assert "class DenseNet(nn.Module)" in words(text) and "find_spec" not in text
    assert "Show the code" not in text


def test_the_tool_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(make_pdf, "SITE", Path(tmp_path, "nothing"))
    with pytest.raises(SystemExit, match="there is no site in _build/html: type `make book`"):
        make_pdf.main([str(tmp_path / "book.pdf")])
    assert not (tmp_path / "book.pdf").exists()


def test_without_chromium_it_says_so_before_it_works(monkeypatch, site, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="make_pdf: this needs Chromium, which is not here"):
        make_pdf.main([str(tmp_path / "book.pdf")])
    assert not list(tmp_path.iterdir())
