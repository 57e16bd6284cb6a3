"""Make the whole book one PDF, from the pages of the built site.

    python book/_tools/make_pdf.py [FILE]

All pages of `_toc.yml`, in its order, become one page in `_build/pdf`, which Chromium prints, twice:
the second time the contents know the numbers of the pages. FILE is by default
`_build/html/densenet-step-by-step.pdf`, beside the pages, and then every page gets a link to it.

What is folded on the screen: long listings are shown; solutions stand at the end of their chapter,
so that nobody reads one by accident, and exercise and solution name each other's page; what sets up
a chapter or draws its figures is left out, as in Colab's "hidden" cells. Scripts do not run: what is
interactive is replaced by what its page shows without them. Dark pictures are left out.
"""

import argparse
import copy
import html
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
NAME = "densenet-step-by-step.pdf"

# Not on paper: what runs, what is clicked, links to a heading beside it, set-up, code of figures.
LEFT_OUT = (
    "script, style, button, template, a.headerlink, .only-dark, .toctree-wrapper, .with-scripts, "
    ".actions, [hidden], details.hide > summary"
)
# Code has an element for each word; those that have no colour of their own would only weigh.
PLAIN = [f".highlight span.{name}" for name in ("n", "nn", "nx", "p", "w")]
WITH_ADDRESS = "[id], [href], [src], [for], [aria-labelledby], [aria-describedby], svg *"

# What is wider than the page gets smaller type, within reason: the sizes are in pixels.
FIT = """
() => {
  const smallest = 7;
  const fit = (box, width) => {
    let size = parseFloat(getComputedStyle(box).fontSize);
    for (; size > smallest && width(box) > box.clientWidth + 0.5; size -= 0.25)
      box.style.fontSize = `${size - 0.25}px`;
  };
  for (const pre of document.querySelectorAll('pre')) fit(pre, e => e.scrollWidth);
  for (const table of document.querySelectorAll('table')) {
    const room = table.parentElement.clientWidth;
    let size = parseFloat(getComputedStyle(table).fontSize);
    for (; size > smallest && table.offsetWidth > room + 0.5; size -= 0.25)
      table.style.fontSize = `${size - 0.25}px`;
  }
}
"""


def toc():
    """Pages by the part of the book that they are in: pairs of a caption and names, root first."""
    content = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))

    def names(entries):
        for entry in entries:
            if "file" in entry:
                yield entry["file"]
            yield from names([*entry.get("sections", []), *entry.get("chapters", [])])

    parts = content.get("parts") or [{"chapters": content.get("chapters", [])}]
    yield "", [content["root"]]
    for part in parts:
        yield part.get("caption", ""), list(names(part["chapters"]))


class Page:
    """A built page, on its way into the book."""

    def __init__(self, name, site):
        self.name, self.file = name, site / f"{name}.html"
        self.prefix = name.removeprefix("book/").replace("/", "-")
        soup = BeautifulSoup(self.file.read_text(encoding="utf-8"), "html.parser")
        self.article = soup.find("article", class_="bd-article")
        styles = soup.select("head > link[rel=stylesheet]")
        self.styles = [(self.file.parent / style["href"].partition("?")[0]).resolve() for style in styles]
        self.ids = {element["id"] for element in self.article.select("[id]")}
        for element in self.article.select(LEFT_OUT):
            element.decompose()
        for element in self.article.select(f"noscript, {', '.join(PLAIN)}"):
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


def solutions_last(page, soup):
    """Move the solutions of a page to its end; each has a link to its exercise, and vice versa."""
    found = page.article.select("details.solution")
    if not found:
        return
    last = soup.new_tag("section", id="solutions", attrs={"class": "solutions"})
    last.append(BeautifulSoup("<h2>Solutions</h2>", "html.parser"))
    page.ids.add("solutions")
    for number, details in enumerate(found, 1):
        exercise = details.find_parent("section")
        heading = exercise.find(re.compile("h[2-6]"))
        solution = soup.new_tag("section", id=f"solution-{number}")
        page.ids.add(solution["id"])
        solution.append(copy.copy(heading))
        solution.h3.append(reference(soup, exercise["id"], " exercise on page "))
        code = []
        for after in details.find_next_siblings():
            if "tag_hide-cell" not in after.get("class", ()):
                break
            code.append(after)
        details.insert_before(reference(soup, solution["id"], "Solution on page ", "p"))
        details.summary.decompose()
        for element in (details, *code):
            solution.append(element.extract())
        details.name = "div"
        last.append(solution)
    section = page.article.find("section", recursive=False)
    section.append(last)


def reference(soup, target, words, name="span"):
    """A link that says on which page its target is."""
    holder = soup.new_tag(name, attrs={"class": "on-page"})
    link = soup.new_tag("a", href=f"#{target}")
    link.append(words.lstrip())
    link.append(soup.new_tag("span", attrs={"class": "page-number"}))
    holder.append(link)
    return holder


def addresses(page, pages, site, web):
    """Make the ids of a page the book's, and let its links and pictures be found from the book."""
    by_file = {other.file.resolve(): other for other in pages}

    def link(value):
        path, fragment = urldefrag(value)
        if re.match(r"[a-z][a-z0-9+.-]*:", value):
            return value
        file = (page.file.parent / unquote(path)).resolve() if path else page.file.resolve()
        target = by_file.get(file)
        if target and not fragment:
            return f"#{target.prefix}"
        if target and unquote(fragment) in target.ids:
            return f"#{target.prefix}--{unquote(fragment)}"
        return web + file.relative_to(site).as_posix() + ("#" + fragment if fragment else "")

    for element in page.article.select(WITH_ADDRESS):
        for name, value in list(element.attrs.items()):
            if name == "id":
                element[name] = f"{page.prefix}--{value}"
            elif name == "href" and element.name == "a":
                element[name] = link(value)
            elif name == "src" and not value.startswith("data:"):
                element[name] = (page.file.parent / value).resolve().as_uri()
                for lazy in "loading", "decoding":
                    del element[lazy]
            elif name in ("for", "aria-labelledby", "aria-describedby"):
                element[name] = " ".join(f"{page.prefix}--{word}" for word in value.split())
            elif isinstance(value, str) and name in ("href", "xlink:href") and value[:1] == "#":
                element[name] = f"#{page.prefix}--{value[1:]}"
            elif isinstance(value, str) and "url(#" in value:
                element[name] = value.replace("url(#", f"url(#{page.prefix}--")


def contents(parts):
    """The table of contents: parts, chapters, and their sections."""
    lines = ['<nav class="book-contents"><h1>Contents</h1><div>']
    for caption, pages in parts:
        if caption:
            lines.append(f"<p class=\"part\">{html.escape(caption)}</p>")
        lines.append("<ul>")
        for page in pages:
            lines.append(f"<li>{entry(page.prefix, page.heading)}<ul>")
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
        promise.extract().decode() if promise else "",
        f'<p class="authors">{html.escape(config["author"])}</p>',
        '<div class="imprint">',
    ]
    if edition:
        edition.extract().h2.decompose()
        text.append(edition.decode_contents())
    address = html.escape(config["html"]["baseurl"])
    text.append(f'<p>On the web, with all that is interactive: <a href="{address}">{address}</a></p>')
    return "\n".join([*text, "</div></section>"])


def combine(site, folder):
    """Write the whole book as one page into `folder`; return its path, and the chapters' anchors."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    parts = [(caption, [Page(name, site) for name in names]) for caption, names in toc()]
    pages = [page for _, found in parts for page in found]
    for page in pages:
        soup = BeautifulSoup("", "html.parser")
        solutions_last(page, soup)
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
        f'<div class="chapter" id="{page_name(page)}"><span id="{page.prefix}"></span>'
        f"{page.article.decode()}</div>"
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
            *rules,
            "</style></head><body>",
            '<main class="bd-main"><div class="bd-content"><div class="bd-article-container">',
            first,
            contents(parts),
            *articles,
            "</div></div></main></body></html>",
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "book.html"
    book.write_text(text, encoding="utf-8")
    return book, config


def page_name(page):
    return "chapter-" + re.sub(r"\W", "-", page.prefix)


def css_text(text):
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", " ")


def chromium():
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


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


def print_book(book, target, scheme="light"):
    """Print a combined page into the file `target`, with page numbers wherever it names pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        # As wide as the text on paper: 210 mm less the margins, at 96 pixels an inch.
        tab = browser.new_page(viewport={"width": 658, "height": 971}, color_scheme=scheme)
        tab.emulate_media(media="print")
        tab.goto(book.as_uri(), wait_until="load")
        tab.evaluate("document.fonts.ready.then(() => null)")
        tab.evaluate(FIT)
        options = {"prefer_css_page_size": True, "print_background": True, "tagged": True}
        tab.pdf(path=target, **options)
        missing = tab.evaluate(NUMBERS, page_numbers(target))
        if missing:
            sys.exit(f"make_pdf: the PDF has no place for {', '.join(missing)}")
        tab.pdf(path=target, outline=True, **options)
        browser.close()
