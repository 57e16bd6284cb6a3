"""What the site needs beyond its theme: no script that is not used, pages that an accessibility
checker accepts, and all figures in one archive.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "_tools"))
import figures
import notebooks

# Each of these is markup of the theme or of an extension that axe-core objects to. `tests/site`
# runs axe-core on every page, so a replacement that no longer matches after an upgrade, and is
# still needed, is noticed there.
REPAIRS = (
    # The book's title, at the top of the side bar, is in no landmark.
    (
        re.compile(r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)'),
        '<div class="sidebar-primary-item" role="navigation" aria-label="Home">',
    ),
    # These have text that says what they do; the label says something else.
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'(<button class="btn search-button-field[^>]*) aria-label="Search"'), r"\1"),
    (re.compile(r'(<i class="theme-switch [^>]*?) +title="[^"]*"'), r"\1"),
    # The role is deprecated, and a list of paragraphs needs none.
    (re.compile(r' role="doc-biblioentry"'), ""),
    (re.compile(r'<div role="list" class="citation-list">'), '<div class="citation-list">'),
)


def drop_unused_scripts(app, pagename, templatename, context, doctree):
    """Leave out thebe, which would fetch itself from another host, and scripts that are listed
    twice.
    """
    kept = {}
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        text = f"{getattr(script, 'filename', script)} {attributes.get('body', '')}"
        if "thebe" not in text.lower():
            kept.setdefault(text, script)
    context["script_files"] = list(kept.values())


def repair_pages(app, exception):
    """Apply REPAIRS to every page that was written."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = before = page.read_text(encoding="utf-8")
        for pattern, replacement in REPAIRS:
            text = pattern.sub(replacement, text)
        if text != before:
            page.write_text(text, encoding="utf-8")


def add_figures(app, exception):
    """Write `figures.zip`, for slides, beside the pages; the instructors' page has a link to it."""
    if exception or app.builder.format != "html":
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures.write(Path(scratch, "figures"), notebooks.chapters(app.srcdir))
        archive = shutil.make_archive(f"{scratch}/archive", "zip", scratch, "figures")
        shutil.copy(archive, Path(app.outdir, "figures.zip"))


def setup(app):
    # After the extensions that add scripts on the same event.
    app.connect("html-page-context", drop_unused_scripts, priority=900)
    app.connect("build-finished", repair_pages)
    app.connect("build-finished", add_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
