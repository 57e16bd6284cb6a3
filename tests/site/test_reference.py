"""The reference on the built site: an entry for everything that is public, from its docstring, and
links between chapters and entries in both directions; and the cheat sheet on paper.
"""

import ast
import html
import importlib
import inspect
import re

import pytest
from conftest import ROOT, toc_files
from test_browser import Tab, browser, server  # noqa: F401 - fixtures
from test_pages import read

PACKAGE = "densenet_tutorial"
PAGES = [name for name in toc_files() if re.match(r"book/appendix/api_", name)]
TABLE = "book/appendix/api.html"
#: The rooms for users. What else there is serves these.
ROOMS = (
    "",
    ".layers",
    ".network",
    ".memory",
    ".inference",
    ".weights",
    ".data",
    ".training",
    ".insight",
    ".figures",
    ".experiments.baselines",
    ".experiments.benchmarks",
    ".experiments.claims",
    ".experiments.speed",
    ".experiments.transfer",
    ".check",
    ".utils.environment",
)
ENTRY = re.compile(r'<dt class="sig sig-object py" id="([^"]+)">(.*?)</dt>\s*<dd>', re.DOTALL)
CHAPTER_LINK = re.compile(rf'href="appendix/(api_\w+\.html)#({PACKAGE}[^"]*)"')


def names_of(room):
    """What a room offers: ``__all__``, or what its source defines without an underscore."""
    module = importlib.import_module(PACKAGE + room)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if target.id.isupper() and len(target.id) > 1}
    return {name for name in found if not name.startswith("_")}


def thing(path):
    """What a dotted name stands for, and the class that it is in."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        owner = None
        for part in parts[length:]:
            owner, value = value, getattr(value, part, None)
        return owner, value
    raise AssertionError(path)


@pytest.fixture(scope="module")
def entries(site):
    """For each entry its page, and the text of its signature and of all that is below it."""
    found = {}
    for page in PAGES:
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        matches = list(ENTRY.finditer(text))
        ends = [match.start() for match in matches[1:]] + [text.index("</article>")]
        for match, end in zip(matches, ends, strict=True):
            assert match[1] not in found
            found[match[1]] = page, match[2], text[match.end() : end]
    return found


@pytest.fixture(scope="module")
def top(entries):
    """The entries that are no methods or attributes."""
    return {path: e for path, e in entries.items() if not inspect.isclass(thing(path)[0])}


def test_every_public_name_has_an_entry(top):
    described = {(path.rpartition(".")[2], id(thing(path)[1])) for path in top}
    for room in ROOMS:
        module = importlib.import_module(PACKAGE + room)
        missing = [n for n in names_of(room) if (n, id(getattr(module, n))) not in described]
        assert not missing, f"{PACKAGE}{room}: {missing}"
    assert len(top) > 150


def test_nothing_private_has_an_entry(top, entries):
    assert not [path for path in entries if any(p.startswith("_") for p in path.split("."))]
    listed = {
        node.name
        for path in (ROOT / "book").glob("*.ipynb")
        for node in definitions_in_listings(path)
    }
    for path in top:
        module, _, name = path.rpartition(".")
        room = module.removeprefix(PACKAGE)
        # A part of a room's inside is there if a chapter shows it line by line.
        assert (room in ROOMS and name in names_of(room)) or name in listed, path


def definitions_in_listings(path):
    nbformat = importlib.import_module("nbformat")
    for cell in nbformat.read(path, as_version=4).cells:
        if "listing" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    yield node


def plain(text):
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def test_entries_have_the_signature(entries):
    for path, (_, signature, _) in entries.items():
        value = thing(path)[1]
        # A class without a constructor of its own shows torch's, which has two forms.
        own = getattr(getattr(value, "__init__", None), "__module__", None)
        if inspect.isroutine(value) or (inspect.isclass(value) and own and own.startswith(PACKAGE)):
            names = list(inspect.signature(value).parameters)
            shown = re.findall(r'<em class="sig-param">(.*?)</em>', signature, re.DOTALL)
            words = [re.match(r"[*\w/]+", plain(p))[0].lstrip("*") for p in shown]
            assert [w for w in words if w not in ("", "/")] == [n for n in names if n != "self"], (
                path
            )


SECTIONS = {"Args": "Parameters", "Shape": "Shape", "Raises": "Raises", "Attributes": "Attributes"}


def test_docstrings_are_lists_and_no_walls(entries):
    """Each section of a docstring is a list with an item for each of its names."""
    counted = dict.fromkeys(SECTIONS, 0)
    for path, (_, _, body) in entries.items():
        value = thing(path)[1]
        if not callable(value) or not value.__doc__ or type(value).__module__.startswith(PACKAGE):
            continue
        text = inspect.cleandoc(value.__doc__)
        for section, title in SECTIONS.items():
            match = re.search(rf"^{section}:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
            if not match:
                continue
            counted[section] += 1
            names = re.findall(r"^    (?! )([\w*., ]+?): ", match[1], re.MULTILINE)
            fields = re.findall(
                rf"<dt[^>]*>{title}<span.*?</dt>\s*<dd[^>]*>(.*?)</dd>", body, re.DOTALL
            )
            assert names and fields, (path, section)
            bold = re.findall(r"<strong>(.*?)</strong>", fields[0])
            assert [plain(b) for b in bold[: len(names)]] == names, (path, section)
            assert len(names) == 1 or fields[0].count("<li>") >= len(names), (path, section)
        # What docutils did not understand would stand there as it was typed.
        rest = re.search(r":\w+:`|^\s*Args:$", plain(body), re.MULTILINE)
        assert not rest, (path, rest)
        paragraphs = re.findall(r"<p>(.*?)</p>", body, re.DOTALL)
        longest = max((len(plain(p).split()) for p in paragraphs), default=0)
        assert longest <= 110, (path, longest)
    assert all(count > 5 for count in counted.values()), counted


def test_links_lead_both_ways(site, entries, top):
    """From a chapter to an entry, and from the entry and from the table back to the chapter."""
    table = (site / TABLE).read_text(encoding="utf-8")
    rows = {
        match[1]: match[0]
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        if (match := re.search(rf'href="api_\w+\.html#({PACKAGE}[^"]*)".*', row, re.DOTALL))
    }
    assert set(rows) == set(top)
    linked = 0
    for chapter in [name for name in toc_files() if re.match(r"book/\d\d_", name)]:
        text = (site / f"{chapter}.html").read_text(encoding="utf-8")
        back = f'href="../{chapter.removeprefix("book/")}.html"'
        for page, path in CHAPTER_LINK.findall(text):
            assert entries[path][0] == f"book/appendix/{page.removesuffix('.html')}"
            name = path if path in top else path.rpartition(".")[0]
            assert back in entries[name][2] and "Built in chapter" in entries[name][2]
            assert back in rows[name]
            linked += 1
    assert linked >= 20


def test_every_listing_of_a_chapter_has_a_link(site):
    """The thing that a chapter has built is one click away from its entry."""
    for path in sorted((ROOT / "book").glob("0[2-9]_*.ipynb")) + [ROOT / "book/11_speed.ipynb"]:
        text = (site / "book" / f"{path.stem}.html").read_text(encoding="utf-8")
        ends = {target.rpartition(".")[2] for _, target in CHAPTER_LINK.findall(text)}
        public = {n.name for n in definitions_in_listings(path) if not n.name.startswith("_")}
        assert public <= ends, path.name


def test_anchors_are_there(site):
    text = (site / TABLE).read_text(encoding="utf-8")
    for page, anchor in re.findall(r'href="(api_\w+\.html)#([^"]+)"', text):
        assert anchor in read(site / "book" / "appendix" / page).ids


def test_search_finds_an_entry(browser, server):  # noqa: F811
    with Tab(browser, server) as tab:
        tab.page.goto(server + "search.html?q=remove_connection")
        results = tab.page.locator("#search-results li a")
        results.first.wait_for()
        links = [link.get_attribute("href") for link in results.all()]
        assert any(link.endswith("#densenet_tutorial.insight.remove_connection") for link in links)


def test_a_link_to_an_entry_shows_its_name(browser, server):  # noqa: F811
    """It is not hidden under the header."""
    anchor = "densenet_tutorial.DenseBlock"
    for width in (1280, 390):
        with Tab(browser, server, viewport={"width": width, "height": 800}) as tab:
            tab.page.goto(f"{server}book/appendix/api_network.html#{anchor}")
            tab.page.wait_for_timeout(500)
            top_of = "id => document.getElementById(id).getBoundingClientRect().top"
            header = "document.querySelector('.bd-header-article').getBoundingClientRect().bottom"
            assert tab.page.evaluate(header) - 1 <= tab.page.evaluate(top_of, anchor) < 400


# ------------------------------------------------------------------------------ the cheat sheet

SHEET = "book/appendix/cheat_sheet.html"
#: The size of every letter on paper, in points: drawings are scaled.
SIZES = """
() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({visibilityProperty: true})) continue;
    if (parent.closest('script, style, desc, annotation')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width * box.height < 1) continue;
    const svg = parent.closest('svg');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    found.push([parseFloat(getComputedStyle(parent).fontSize) * scale * 0.75, node.data.trim()]);
  }
  return found;
}
"""


@pytest.mark.parametrize("paper", [("A4", 210), ("Letter", 216)], ids=lambda paper: paper[0])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_cheat_sheet_is_one_printed_page(browser, server, paper, scheme):  # noqa: F811
    name, width = paper
    pixels = {"width": int((width - 16) / 25.4 * 96), "height": 1000}
    with Tab(browser, server, color_scheme=scheme, viewport=pixels) as tab:
        tab.page.goto(server + SHEET, wait_until="load")
        tab.page.evaluate("document.fonts.ready")
        pdf = tab.page.pdf(format=name)
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
        tab.page.emulate_media(media="print")
        sizes = tab.page.evaluate(SIZES)
        assert len(sizes) > 200
        small = [(round(size, 2), text) for size, text in sizes if size < 7.5]
        assert not small
        words = " ".join(text for _, text in sizes)
        parts = ("The architecture", "The formulas", "The models", "The traps", "The commands")
        assert all(part in words for part in ("DenseNet on one page", *parts))
        assert "Contents" not in words
