"""What the search looks through: the book's sections and the entries of its glossary, as a script,
since a page that is opened from disk may load nothing else. `search.js` does the rest.
"""

import json
import re
from pathlib import Path

import terms

#: Not in the text: outputs, drawings, and what a reader has not unfolded.
NO_TEXT = ".headerlink, .cell_output, .cell, svg, img, script, style, noscript, form, nav, button"
NO_TEXT += ", details, table, pre, dl.glossary, .citation-list"
#: What a Predict hides in words. That counts, too, and is not shown.
ANSWERS = "details.answer > :is(p, ul, ol)"
#: So do words of these: code that is in view or folded for its length, and tables.
WORDS = ".cell:not(.tag_hide-input) .cell_input pre, .cell.long .cell_input pre"
WORDS += f", pre:not(.cell pre), table, {ANSWERS}"


def plain(element):
    """The text of an element in one line; a formula as one would type it."""
    for fraction in element.select("mfrac"):
        fraction.contents[-1].insert_before("/")
    for power in element.select("msup"):
        power.contents[-1].insert_before("^")
    return " ".join(element.get_text().split())


def words(elements):
    """The different words of some elements, in the order in which they come."""
    found = re.findall(r"\w+", " ".join(element.get_text() for element in elements))
    return " ".join(dict.fromkeys(word for word in found if not word.isdigit()))


def sections(app, docname):
    """Each section of a page: its address, the page's title, its own title, its text, what is bold
    in it, that is, introduced, and other words.
    """
    address = app.builder.get_target_uri(docname)
    article = terms.parsed(app, docname).select_one("article")
    title = plain(article.h1)
    found = []
    # The innermost first: what is left of a section is its own. So is an entry of the reference.
    for section in reversed(article.select("section, dl.py")):
        heading = section.find(re.compile("^(h[1-6]|dt)$"), recursive=False)
        anchor = section.get("id") or heading.get("id")
        if not anchor:
            continue  # a part of the one around it
        heading = heading.extract().select_one(".sig-name") or heading
        own = words(section.select(WORDS))
        hidden = words(section.select(f"{ANSWERS} strong"))
        for element in section.select(NO_TEXT):
            element.decompose()
        for formula in section.select("div.math"):
            formula.string = "…"
        bold = f"{words(section.select('strong'))} {hidden}".strip()
        top = section.find_parent("section") is None
        where = address if top else f"{address}#{anchor}"
        found.append([where, title, "" if top else plain(heading), plain(section), bold, own])
        section.extract()
    return found[::-1]


def entries(app):
    """The entries of the glossary: address, names, whether these mean the same, text, and the
    chapter's address and name.
    """
    page = app.builder.get_target_uri(terms.GLOSSARY)
    for names, text in terms.glossary(app):
        forms = [form for name in names.values() for form in terms.forms(name)]
        same = not any(", " in name for name in names.values())
        chapter = text.select("a")[-1].extract()
        address = f"{page}#{next(iter(names))}"
        yield address, forms, same, plain(text), chapter["href"], plain(chapter)


def write_sections(app, exception):
    """Write `search-sections.js`."""
    if exception or app.builder.format != "html":
        return
    found = [each for name in sorted(app.env.found_docs) for each in sections(app, name)]
    page = app.builder.get_target_uri(terms.REFERENCES)
    for anchor, label, _, text in terms.references(app):
        found.append([f"{page}#{anchor}", "References", label, plain(text), "", ""])
    script = "".join(
        f"{name} = {json.dumps(content, ensure_ascii=False, separators=(',', ':'))};\n"
        for name, content in (("bookSections", found), ("bookGlossary", list(entries(app))))
    )
    Path(app.outdir, "_static", "search-sections.js").write_text(script, encoding="utf-8")


def replace_index(app):
    """No index of Sphinx's, which knows pages and no sections; its page of results stays."""
    app.builder.search = False


def add_page(app):
    return [("search", {}, "search.html")]


def add_style(app, pagename, templatename, context, doctree):
    if pagename == "search":
        app.add_css_file("search.css")


def setup(app):
    app.connect("builder-inited", replace_index)
    app.connect("html-collect-pages", add_page)
    app.connect("html-page-context", add_style)
    # When the pages are as they will be.
    app.connect("build-finished", write_sections, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
