"""Terms and citations show, where they stand, what the glossary and the references say of them.

Chapters are plain Markdown: the first time that a section of a chapter uses a term becomes a link
to the glossary here, and a link to a paper of the references is marked. `terms.js` shows the entry,
from a file that this writes and that is loaded when the first one is asked for.
"""

import itertools
import json
import posixpath
import re
import sys
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

sys.path.append(str(Path(__file__).parent))
import cells

GLOSSARY, REFERENCES = "book/appendix/glossary", "book/appendix/references"
#: Nothing in these becomes a link. What is closed may stay closed: a later use gets the link.
LEFT_ALONE = (
    cells.Answer,
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.strong,
    nodes.table,
    nodes.caption,
    nodes.raw,
)
#: Words with other meanings as well: they are links in the chapter that introduces the term.
EVERYDAY = {"buffer", "cache", "checkpoint", "control", "head", "path", "process", "rank", "reader"}
EVERYDAY |= {"shortcut", "source", "storage"}


def is_chapter(docname):
    return docname.startswith("book/") and docname.count("/") == 1 and docname != "book/index"


def forms(term):
    """How a term of the glossary is written: "batch normalisation (BN)" is so in two ways."""
    for part in term.split(", "):
        short = re.search(r" \((\w+)\)$", part)
        yield part.removesuffix(short[0]) if short else part
        if short:
            yield short[1]


def pattern(form):
    """What finds a form and its plural; one with capitals in it only as it is written."""
    text = re.escape(form).replace(r"\ ", r"\s+").replace("'", "['’]")
    return rf"(?-i:{text}s?)" if re.search("[A-Z]{2}", form) else rf"{text}(?:e?s)?"


def finder(forms):
    """What finds any of `forms`, the longest first: "batch norm" is no "batch"."""
    any_form = "|".join(f"({pattern(form)})" for form in forms)
    return re.compile(rf"(?<![\w-])(?:{any_form})(?![\w-])", re.IGNORECASE)


def left_alone(text):
    """Whether `text` stands in a heading, in code, in a formula, in a link or in bold type."""
    element = text.parent
    # Tags of HTML stand between the texts that they are for.
    before = itertools.takewhile(lambda node: node is not text, element.children)
    html = "".join(node.astext() for node in before if isinstance(node, nodes.raw))
    tags = re.findall(r"<(/?)(?:a|button|code|summary)\b", html)
    if tags and tags[-1] != "/":
        return True
    while not isinstance(element, nodes.section):
        if isinstance(element, LEFT_ALONE) or element.get("nb_element") == "cell_code":
            return True
        element = element.parent
    return False


class Terms(SphinxPostTransform):
    """Link the first use of each term in a chapter, and mark the papers that it cites."""

    default_priority = 900  # when references are resolved
    formats = ("html",)

    def run(self):
        if not is_chapter(self.env.docname):
            return
        papers = self.env.get_domain("cite").bibdata.data.entries.values()
        papers = {paper.fields.get("url") for paper in papers}
        for reference in self.document.findall(nodes.reference):
            if reference.get("refuri") in papers:
                reference["classes"].append("cite")
        anchors = self.anchors()
        longest_first = sorted(anchors, key=len, reverse=True)
        find, linked = finder(longest_first), set()
        anchors = [anchors[form] for form in longest_first]
        for section in self.document.children[0].children:
            if not isinstance(section, nodes.section):
                continue
            # Where a term is introduced, in bold type, it needs no link.
            bold = " ".join(node.astext() for node in section.findall(nodes.strong))
            introduced = {anchors[each.lastindex - 1] for each in find.finditer(bold)}
            for text in list(section.findall(nodes.Text)):
                if not left_alone(text):
                    self.link(text, find, anchors, linked, introduced)

    def anchors(self):
        """The anchor in the glossary of each form of each term that may be a link on this page."""
        found = {}
        for entry in self.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
            chapter = list(entry.findall(addnodes.pending_xref))[-1]["reftarget"]
            names = list(entry.findall(nodes.term))
            for form in (form for name in names for form in forms(name.astext())):
                if form not in EVERYDAY or chapter == self.env.docname:
                    found[form] = names[0]["ids"][0]
        return found

    def link(self, text, find, anchors, linked, introduced):
        """Make links of what is found in `text` and is not yet in `linked`."""
        glossary = self.app.builder.get_relative_uri(self.env.docname, GLOSSARY)
        pieces, end = [], 0
        for each in find.finditer(text):
            anchor = anchors[each.lastindex - 1]
            if anchor in linked or anchor in introduced:
                continue
            linked.add(anchor)
            pieces.append(nodes.Text(text[end : each.start()]))
            uri = f"{glossary}#{anchor}"
            pieces.append(nodes.reference("", each[0], refuri=uri, internal=True, classes=["term"]))
            end = each.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text[end:])])


def parsed(app, docname):
    """A page of the site, and a function that gives its links as seen from the site's root."""
    page = Path(app.outdir, app.builder.get_target_uri(docname))
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for heading_link in soup.select(".headerlink"):
        heading_link.decompose()
    for anchor in soup.select("article a[href]"):
        if not re.match(r"\w+:", anchor["href"]):
            folder = posixpath.dirname(app.builder.get_target_uri(docname))
            anchor["href"] = posixpath.normpath(posixpath.join(folder, anchor["href"]))
    return soup


def glossary(app):
    """Each entry of the glossary as the anchors and the names of its terms, and its text."""
    entries, terms = [], {}
    for element in parsed(app, GLOSSARY).select("dl.glossary > dt, dl.glossary > dd"):
        if element.name == "dt":
            terms[element["id"]] = element.get_text().strip()
        else:
            entries.append((terms, element.p))
            terms = {}
    return entries


def references(app):
    """Each entry of the references as its anchor, its label, the paper's address and its text."""
    for entry in parsed(app, REFERENCES).select(".citation"):
        label = entry.select_one(".label").get_text().strip("[]")
        yield entry["id"], label, entry.select("a.external")[-1]["href"], entry.p


def write_entries(app, exception):
    """Write what `terms.js` shows: HTML by the anchor of a term and by the address of a paper."""
    if exception or app.builder.format != "html":
        return
    page = app.builder.get_target_uri(REFERENCES)
    entries = {
        anchor: f"<strong>{', '.join(terms.values())}</strong> {text.decode_contents()}"
        for terms, text in glossary(app)
        for anchor in terms
    }
    for anchor, label, address, text in references(app):
        more = f'<a href="{page}#{anchor}">All references</a>'
        entries[address] = f"<strong>{label}</strong> {text.decode_contents()} {more}"
    script = f"bookEntries = {json.dumps(entries, ensure_ascii=False, indent=0)};\n"
    Path(app.outdir, "_static", "terms-entries.js").write_text(script, encoding="utf-8")


def add_files(app, pagename, templatename, context, doctree):
    """Load the script where a term or a citation is, the style where entries are as well."""
    marked = re.search(r'<a class="(?:term|cite) ', context.get("body", ""))
    if marked:
        app.add_js_file("terms.js")
    if marked or pagename in (GLOSSARY, REFERENCES):
        app.add_css_file("terms.css")


def read_again(app, env, docnames):
    """Links stand in chapters, and come from the glossary: when it changes, so do they."""
    if GLOSSARY in docnames:
        docnames += [name for name in env.found_docs if is_chapter(name) and name not in docnames]


def setup(app):
    app.add_post_transform(Terms)
    app.connect("env-before-read-docs", read_again)
    app.connect("html-page-context", add_files)
    # When the pages are as they will be.
    app.connect("build-finished", write_entries, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
