"""Make the whole book one PDF, from the pages of the built site.

    python book/_tools/make_pdf.py [FILE]

All pages of `_toc.yml`, in its order, become one page in `_build/pdf`. Chromium prints it twice:
the second time the contents know the numbers of the pages. FILE is by default
`_build/html/densenet-step-by-step.pdf`, beside the pages; then every page gets a link to it.

What is folded on the screen: long listings are shown, and so are answers, below their questions.
Solutions stand at the end of their chapter, so that nobody reads one by accident; exercise and
solution name each other's page. The cell that installs the package and the code that only draws a
figure are left out. Scripts do not run: in place of what is interactive stands what its page shows
without them.
"""

import argparse
import copy
import html
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag

import chromium
import contents
import yaml
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer
from playwright.sync_api import Error, sync_playwright
from pypdf import PdfReader

from densenet_tutorial.utils import files

ROOT = Path(__file__).resolve().parents[2]
SITE = (ROOT / "_build" / "html").resolve()
NAME = "densenet-step-by-step.pdf"

# Not on paper: what runs, what is clicked, links to a heading beside it, set-up, code of figures.
LEFT_OUT = (
    "script, style, button, template, a.headerlink, .only-dark, .toctree-wrapper, .with-scripts, "
    ".actions, .term-entry, [hidden], details:is(.hide, .answer) > summary"
)
# Code has an element for each word; those that have no colour of their own would only weigh.
PLAIN = [f".highlight span.{name}" for name in ("n", "nn", "nx", "p", "w")]
URL = re.compile(r"url\(#([^)]*)\)")
SOLUTION = "details.solution, .cell.tag_hide-cell"
NEW = BeautifulSoup("", "html.parser")
WITH_ADDRESS = "[id], [href], [src], [for], [aria-labelledby], [aria-describedby], svg *"

# What is wider than the page gets smaller type, within reason: the sizes are in pixels, 96 an inch.
# Lines of code that are longer still wrap, as they do on every printed page.
FIT = """
() => {
  const shrink = (element, smallest, tooWide) => {
    const size = parseFloat(getComputedStyle(element).fontSize);
    for (let s = size; s >= smallest; s -= 0.25) {
      element.style.fontSize = `${s}px`;
      if (!tooWide()) return true;
    }
    return false;
  };
  for (const pre of document.querySelectorAll('pre')) {
    pre.style.whiteSpace = 'pre';
    if (!shrink(pre, 9, () => pre.scrollWidth > pre.clientWidth)) pre.style.fontSize = '';
    pre.style.whiteSpace = '';
  }
  for (const table of document.querySelectorAll('table')) {
    shrink(table, 7, () => table.offsetWidth > table.parentElement.clientWidth + 0.5);
    // One that no page can hold begins below its heading, and goes on.
    if (table.offsetHeight > innerHeight - 80) table.style.breakInside = 'auto';
  }
}
"""


class Page:
    """A built page, on its way into the book."""

    def __init__(self, name, site):
        self.name, self.file = name, site / f"{name}.html"
        self.prefix = name.removeprefix("book/").replace("/", "-")
        soup = BeautifulSoup(self.file.read_text(encoding="utf-8"), "html.parser")
        self.article = soup.find("article", class_="bd-article")
        styles = soup.select("head > link[rel=stylesheet]")
        self.styles = [
            (self.file.parent / style["href"].partition("?")[0]).resolve() for style in styles
        ]
        self.ids = {element["id"] for element in self.article.select("[id]")}
        for element in self.article.select(LEFT_OUT):
            element.decompose()
        for element in self.article.select(f"noscript, details.answer, {', '.join(PLAIN)}"):
            element.unwrap()
        for cell in self.article.select(".cell"):
            fold = cell.find("details", class_="hide", recursive=False)
            if fold is None:
                continue
            if {"long", "tag_hide-cell"} & set(cell["class"]):
                fold.unwrap()
            else:
                fold.decompose()
        self.heading = self.article.find("h1")

    @property
    def title(self):
        return self.heading.get_text().strip()


def solutions_last(page):
    """Move the solutions of a page to its end; each has a link to its exercise, and vice versa."""
    exercises = [*dict.fromkeys(e.find_parent("section") for e in page.article.select(SOLUTION))]
    if not exercises:
        return
    last = NEW.new_tag("section", id="solutions")
    last.append(NEW.new_tag("h2", string="Solutions"))
    for number, exercise in enumerate(exercises, 1):
        solution = last.append(NEW.new_tag("section", id=f"solution-{number}"))
        solution.append(copy.copy(exercise.find(re.compile("h[2-6]"))))
        solution.append(reference(exercise["id"], "Exercise on page "))
        parts = exercise.select(SOLUTION)
        parts[0].insert_before(reference(solution["id"], "Solution on page "))
        for part in parts:
            solution.append(part.extract())
            if part.name == "details":
                part.summary.decompose()
                part.name = "div"
    page.ids |= {section["id"] for section in [last, *last.find_all("section")]}
    page.heading.find_parent("section").append(last)


def reference(target, words):
    """A link that says on which page its target is."""
    text = (
        f'<p class="on-page"><a href="#{target}">{words}<span class="page-number"></span></a></p>'
    )
    return BeautifulSoup(text, "html.parser").p


def addresses(page, pages, site, web):
    """Make the ids of a page the book's, and let its links and pictures be found from the book."""
    by_file = {other.file.resolve(): other for other in pages}
    names = Counter(name for other in pages for name in other.ids)

    def unique(name, owner=page):
        # Most are, and style sheets may name them.
        return name if names[name] == 1 else f"{owner.prefix}--{name}"

    def link(value):
        path, fragment = urldefrag(value)
        if re.match(r"[a-z][a-z0-9+.-]*:", value):
            return value
        file = (page.file.parent / unquote(path)).resolve() if path else page.file.resolve()
        target = by_file.get(file)
        if target and not fragment:
            return f"#{page_name(target)}"
        if target and unquote(fragment) in target.ids:
            return "#" + unique(unquote(fragment), target)
        return web + file.relative_to(site).as_posix() + ("#" + fragment if fragment else "")

    for element in page.article.select(WITH_ADDRESS):
        for name, value in list(element.attrs.items()):
            if name == "id":
                element[name] = unique(value)
            elif name == "href" and element.name == "a":
                element[name] = link(value)
            elif name == "src" and not value.startswith("data:"):
                element[name] = (page.file.parent / value).resolve().as_uri()
                for lazy in "loading", "decoding":
                    del element[lazy]
            elif name in ("for", "aria-labelledby", "aria-describedby"):
                element[name] = " ".join(map(unique, value.split()))
            elif isinstance(value, str) and name in ("href", "xlink:href") and value[:1] == "#":
                element[name] = "#" + unique(value[1:])
            elif isinstance(value, str) and "url(#" in value:
                element[name] = URL.sub(lambda match: f"url(#{unique(match[1])})", value)


def table_of_contents(parts):
    """The table of contents: parts, chapters, and their sections."""
    lines = ['<nav class="book-contents"><h1>Contents</h1><div>']
    for caption, pages in parts:
        if caption:
            lines.append(f'<p class="part">{html.escape(caption)}</p>')
        lines.append("<ul>")
        for page in pages:
            lines.append(f"<li>{entry(page_name(page), page.heading)}<ul>")
            for heading in page.article.find_all("h2"):
                section = heading.find_parent("section")
                if section and section.get("id"):
                    lines.append(f"<li>{entry(section['id'], heading)}</li>")
            lines.append("</ul></li>")
        lines.append("</ul>")
    return "\n".join([*lines, "</div></nav>"])


def entry(target, heading):
    return (
        f'<a href="#{target}"><span class="entry">{heading.decode_contents()}</span>'
        '<span class="dots"></span><span class="page-number"></span></a>'
    )


def title_page(home, config):
    """Title, promise, authors, edition and licence; the last come from the first page."""
    edition = home.article.find(id=re.compile("edition-licence-and-citation$"))
    promise = home.article.find(class_="promise")
    text = [
        '<section class="title-page">',
        f'<p class="book-title">{html.escape(config["title"])}</p>',
        promise.decode() if promise else "",
        f'<p class="authors">{html.escape(config["author"])}</p>',
        '<div class="imprint">',
    ]
    if edition:
        edition.extract().h2.decompose()
        text.append(edition.decode_contents())
    address = html.escape(config["html"]["baseurl"])
    text.append(
        f'<p>On the web, with all that is interactive: <a href="{address}">{address}</a></p>'
    )
    return "\n".join([*text, "</div></section>"])


def write_fonts(folder):
    """Write the book's typeface into `folder`, a file for each weight; return their style sheet.

    Chromium would draw the letters of a variable font as pictures, and then words are hard to find.
    """
    rules = []
    for weight, weights in (400, "400 549"), (600, "550 679"), (700, "680 900"):
        font = TTFont(ROOT / "book" / "_static" / "typeface.woff2")
        font = instancer.instantiateVariableFont(font, {"wght": weight})
        font.flavor = None
        font.save(folder / f"typeface-{weight}.ttf")
        rules.append(
            f'@font-face {{ font-family: "Typeface on paper"; font-weight: {weights}; '
            f'src: url("typeface-{weight}.ttf"); }}'
        )
    return "\n".join(rules)


def combine(site, folder):
    """Write the whole book as one page into `folder`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    parts = [(caption, [Page(name, site) for name in names]) for caption, names in contents.parts()]
    pages = [page for _, found in parts for page in found]
    for page in pages:
        solutions_last(page)
    for page in pages:
        addresses(page, pages, site, config["html"]["baseurl"])
    first = title_page(pages[0], config)
    pages[0].heading.string = "About this book"
    styles = [*dict.fromkeys(style for page in pages for style in page.styles)]
    rules = [
        f'@page {page_name(page)} {{ @top-left {{ content: "{css_text(page.title)}"; }} }}\n'
        f"#{page_name(page)} {{ page: {page_name(page)}; }}"
        for page in pages
    ]
    articles = [
        f'<div class="chapter" id="{page_name(page)}">{page.article.decode()}</div>'
        for page in pages
    ]
    text = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en" data-theme="light" data-mode="light"><head>',
            '<meta charset="utf-8"><meta name="color-scheme" content="only light">',
            f"<title>{html.escape(config['title'])}</title>",
            *[f'<link rel="stylesheet" href="{style.as_uri()}">' for style in styles],
            f'<link rel="stylesheet" href="{Path(__file__).with_suffix(".css").as_uri()}">',
            "<style>",
            write_fonts(folder),
            *rules,
            "</style></head><body>",
            '<main class="bd-main"><div class="bd-content"><div class="bd-article-container">',
            first,
            table_of_contents(parts),
            *articles,
            "</div></div></main></body></html>",
        ]
    )
    book = folder / "book.html"
    book.write_text(text, encoding="utf-8")
    return book


def page_name(page):
    """The name of a page, for style sheets."""
    return "chapter-" + re.sub(r"\W", "-", page.prefix)


def css_text(text):
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ")


def page_numbers(pdf):
    """On which page each target of a link is: by its name, from 1."""
    reader = PdfReader(pdf)
    pages = {page.indirect_reference.idnum: n for n, page in enumerate(reader.pages, 1)}
    return {
        name.removeprefix("/"): pages[target.page.idnum]
        for name, target in reader.named_destinations.items()
    }


NUMBERS = """
numbers => {
  const missing = [];
  for (const place of document.querySelectorAll('.page-number')) {
    const target = place.closest('a').getAttribute('href').slice(1);
    if (target in numbers) place.textContent = numbers[target];
    else missing.push(target);
  }
  return missing;
}
"""


def print_book(book, target, scheme):
    """Print a combined page into the file `target`, with page numbers wherever it names pages."""
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        # As wide and as high as what is printed on a page: A4 without the margins of make_pdf.css.
        tab = browser.new_page(viewport={"width": 658, "height": 971}, color_scheme=scheme)
        tab.set_default_timeout(300_000)  # a slow machine
        tab.emulate_media(media="print")
        tab.goto(book.as_uri(), wait_until="load")
        tab.evaluate("document.fonts.ready.then(() => null)")
        tab.evaluate(FIT)
        options = {"path": target, "prefer_css_page_size": True, "print_background": True}
        tab.pdf(**options)
        if missing := tab.evaluate(NUMBERS, page_numbers(target)):
            raise ValueError(f"the PDF has no place for {', '.join(missing)}")
        tab.pdf(**options, tagged=True, outline=True)
        browser.close()


def make(site, target, scheme="light"):
    """Write the PDF of the built `site` to `target`; return how many pages it has.

    `scheme` is what the system likes, "light" or "dark": paper is white in either.
    """
    chromium.find()  # before the work
    folder = ROOT / "_build" / "pdf"
    book = combine(site, folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pdf = Path(scratch, "book.pdf")
        print_book(book, pdf, scheme)
        count = len(PdfReader(pdf).pages)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write(target, pdf.read_bytes())
    return count


LINK = re.compile(r'\s*<p class="pdf">.*?</p>', re.DOTALL)


def add_links(site, pdf, count):
    """Let every page of the book have a link to the PDF in its footer, the first one at its top."""
    size = f"{count} pages, {pdf.stat().st_size / 1e6:.0f} MB"
    names = contents.pages()
    for name in names:
        page = site / f"{name}.html"
        address = os.path.relpath(pdf, page.parent)
        link = f'\n<p class="pdf"><a href="{address}">The whole book as a PDF</a> ({size})</p>'
        text = LINK.sub("", page.read_text(encoding="utf-8"))
        places = ['<div class="extra_footer">']
        if name == names[0]:
            places.append('<div class="actions docutils container">')
        for place in places:
            start = text.index("</div>", text.index(place))
            text = text[:start].rstrip() + link + "\n" + text[start:]
        files.write(page, text.encode())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SITE / NAME)
    target = parser.parse_args(arguments).file.resolve()
    if not (SITE / "index.html").is_file():
        sys.exit("make_pdf: there is no site in _build/html: type `make book` first")
    try:
        count = make(SITE, target)
    except (OSError, ValueError, Error) as error:
        sys.exit(f"make_pdf: {error}")
    if target == (SITE / NAME).resolve():
        add_links(SITE, target, count)
    print(f"{count} pages: {target}")


if __name__ == "__main__":
    main()
