"""What the site needs beyond its theme: no file that is not used, text that waits for no script,
drawings of our own for icons, pages that an accessibility checker accepts, and all figures in one
archive.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.builders.html._assets import _JavaScript

sys.path += [str(Path(__file__).resolve().parents[1] / "_tools"), str(Path(__file__).parent)]
import css
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
    # This one has none: it opens the pages below one in the side bar.
    (
        re.compile(r'<summary>(?=<span class="toctree-toggle")'),
        '<summary aria-label="Pages below this one">',
    ),
    (re.compile(r'(<button class="btn search-button-field[^>]*) aria-label="Search"'), r"\1"),
    (re.compile(r'(<i class="theme-switch [^>]*?) +title="[^"]*"'), r"\1"),
    # No page has such an element, so that the theme takes every link for an entry of the contents,
    # and stumbles over one to a state of the explorer, whose fragment is no name.
    (re.compile(r'data-bs-target="\.bd-toc-nav"'), 'data-bs-target=".bd-sidebar-secondary"'),
    # The role is deprecated, and a list of paragraphs needs none.
    (re.compile(r' role="doc-biblioentry"'), ""),
    (re.compile(r'<div role="list" class="citation-list">'), '<div class="citation-list">'),
)

# Both go into the head, before any style sheet. The theme's script has set `data-mode` by then.
DARK_CANVAS = '<meta name="color-scheme" content="light dark" />\n  '
COLOURS = (
    'dataset.theme = document.documentElement.dataset.mode !== "auto"'
    " ? document.documentElement.dataset.mode"
    ' : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";'
)

# What text would wait for, in pages as the theme writes them. `tests/site` looks at the weight of
# every page, and at its colours with no script there.
FIRST_TEXT = (
    # Half a megabyte that draws sixteen icons: see `use_own_icons`.
    (re.compile(r"<!-- So that users can add custom icons -->\s*"), ""),
    (re.compile(r'<script src="[^"]*/fontawesome\.js[^"]*"></script>\s*'), ""),
    # Scripts that run at the end need not be fetched before what the text needs.
    (re.compile(r"<!-- Pre-loaded scripts that we'll load fully later -->\s*"), ""),
    (re.compile(r'<link rel="preload" as="script" [^>]*>\s*'), ""),
    # Without scripts nobody writes "light" or "dark" in place of "auto": see `follow_the_system`.
    (
        re.compile(r'(<link [^>]*href="([^"]*)book\.css[^>]*>)(?!\s*<noscript>)'),
        r'\1\n    <noscript><link rel="stylesheet" href="\2without-scripts.css" /></noscript>',
    ),
    # A logo in a menu that few open.
    (
        re.compile(r'<img (?=alt="[^"]*logo" src="[^"]*/_static/images/logo_)'),
        '<img loading="lazy" ',
    ),
    # A style sheet that only says where another is costs a journey to the server and back.
    (re.compile(r"_static/styles/theme\.css\?digest="), "_static/basic.css?digest="),
    # "auto" has no colours until a script at the end says which: who reads in the dark saw white.
    (re.compile(r'(?<!" />\n  )(<script data-cfasync="false">)'), DARK_CANVAS + r"\1"),
    (re.compile(r'dataset\.theme = localStorage\.getItem\("theme"\) \|\| "auto";'), COLOURS),
)

# The theme's style sheets draw icons with a font. Without it they are smaller by a third, and where
# they named a letter of it they name a drawing, which book.css defines.
FA_SELECTOR = r"\.fa[bsr]?(?:-[\w-]+)?(?:::?\w+(?:\([^()]*\))?)?(?:\.fa-[\w-]+)?(?:>li)?"
OWN_ICONS = (
    (re.compile(r"\s*/\*!\s+\* Font Awesome.*?\*/\s*", re.DOTALL), ""),
    (re.compile(r"@font-face\s*\{[^{}]*Font Awesome[^{}]*\}"), ""),
    (re.compile(r"@keyframes fa-[\w-]+\{(?:[^{}]*\{[^{}]*\})*\}"), ""),
    (re.compile(rf"(?<=[{{}}]){FA_SELECTOR}(?:,{FA_SELECTOR})*\{{[^{{}}]*\}}"), ""),
    (re.compile(r":host,:root\{--fa-[^{}]*\}"), ""),
    (re.compile(r'--pst-(?:icon|breadcrumb)-[\w-]+:"[^"]*";?'), ""),
    (re.compile(r"font:var\(--fa-font-\w+\);?"), ""),
    (re.compile(r"font-family:Font Awesome\\ 6 Free;font-weight:900;?"), ""),
    (re.compile(r'content:"\\f107"'), "content:var(--pst-icon-angle-down)"),
    (
        re.compile(r"content:var\((--pst-(?:icon|breadcrumb)-[\w-]+)\)"),
        r'content:"";mask-image:var(\1)',
    ),
)


# What a page has in its text, and the scripts and style sheets that only this needs.
FOR = {
    r"\bsd-": ["sphinx-design", "design-tabs"],
    r'class="highlight': ["copybutton", "clipboard"],
    r'class="cell': ["mystnb"],
    r'class="([^"]* )?(toggle|dropdown)\b': ["togglebutton"],
}


def drop_unused_files(app, pagename, templatename, context, doctree):
    """Leave out thebe, which would fetch itself from another host, what is FOR things that a page
    has none of, and scripts that are listed twice. Let no page wait for the others.
    """
    unused = ["thebe", "documentation_options.pagename"]  # the latter is for a list of versions
    unused += ["doctools", "sphinx_highlight"]  # for the search of Sphinx, which search.py replaces
    for thing, names in FOR.items():
        if not re.search(thing, context.get("body", "")):
            unused += names
    kept = {}
    for script in context.get("script_files", []):
        attributes = dict(getattr(script, "attributes", {}))
        name = getattr(script, "filename", script) or ""
        text = f"{name} {attributes.get('body', '')}"
        if any(word in text.lower() for word in unused):
            continue
        # The template of the search page adds scripts that expect these to have run.
        if name and pagename != "search" and "async" not in attributes:
            attributes["defer"] = "defer"
            script = _JavaScript(name, priority=script.priority, **attributes)
        kept.setdefault(text, script)
    context["script_files"] = list(kept.values())
    context["css_files"] = [
        style
        for style in context.get("css_files", [])
        if not any(word in str(getattr(style, "filename", style)) for word in unused)
    ]


def add_explorer(app, pagename, templatename, context, doctree):
    """Load the explorer on the pages that have one, full or small."""
    if re.search(r'class="explorer-(full|small)', context.get("body", "")):
        app.add_css_file("explorer/explorer.css")
        for name in ("model", "drawing", "explorer"):
            app.add_js_file(f"explorer/{name}.js")


def add_steps(app, pagename, templatename, context, doctree):
    """Load the button of "Step through a block" on the pages that have it; it loads the rest."""
    if 'class="step-through' in context.get("body", ""):
        app.add_js_file("step/start.js")


def rewrite(path, replacements):
    """Apply `replacements`, pairs of a pattern and what takes its place, to a file."""
    text = before = path.read_text(encoding="utf-8")
    for pattern, replacement in replacements:
        text = pattern.sub(replacement, text)
    if text != before:
        path.write_text(text, encoding="utf-8")


def repair_pages(app, exception):
    """Apply REPAIRS and FIRST_TEXT to every page that was written."""
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        rewrite(page, REPAIRS + FIRST_TEXT)


def use_own_icons(app, exception):
    """Take FontAwesome out of the site: its script, its fonts, and its rules in style sheets."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    shutil.rmtree(static / "vendor" / "fontawesome", ignore_errors=True)
    for file in static.glob("scripts/fontawesome*"):
        file.unlink()
    for style in static.glob("styles/*.css"):
        rewrite(style, OWN_ICONS)


def rules_for(theme, text):
    """The rules of a style sheet that are for `theme`, "light" or "dark", made for "auto"."""
    found = []
    mine = re.compile(rf"""\[data-theme=["']?{theme}["']?\]""")
    for before, inside in css.rules(text):
        if before.startswith(css.NESTING):
            if nested := rules_for(theme, inside):
                found.append(f"{before}{{{nested}}}")
        elif not before.startswith("@"):
            named = [each for each in css.selectors(before) if mine.search(each)]
            if named := [mine.sub("[data-theme=auto]", each) for each in named]:
                found.append(f"{','.join(named)}{{{inside}}}")
    return "\n".join(found)


def follow_the_system(app, exception):
    """Write the style sheet that gives readers without scripts the colours of their system."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    names = ["styles/pydata-sphinx-theme.css", "pygments.css", "styles/sphinx-book-theme.css"]
    names += sorted(
        p.name
        for p in static.glob("*.css")
        if p.name not in (*names, "book.css", "without-scripts.css")
        and not p.name.startswith("all-")  # of a build before, see styles.py
    )
    text = "".join((static / name).read_text(encoding="utf-8") for name in [*names, "book.css"])
    text = css.COMMENT.sub("", text)
    blocks = [
        f"@media {where} {{\n{rules_for(theme, text)}\n}}\n"
        for theme, where in (
            ("light", "print, (prefers-color-scheme: light)"),  # paper is white
            ("dark", "screen and (prefers-color-scheme: dark)"),
        )
    ]
    (static / "without-scripts.css").write_text("".join(blocks), encoding="utf-8")


def add_figures(app, exception):
    """Write `figures.zip`, for slides, beside the pages; the instructors' page has a link to it."""
    if exception or app.builder.format != "html":
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures.write(Path(scratch, "figures"), notebooks.chapters(app.srcdir))
        archive = shutil.make_archive(f"{scratch}/archive", "zip", scratch, "figures")
        shutil.copy(archive, Path(app.outdir, "figures.zip"))


def setup(app):
    app.connect("html-page-context", add_explorer)
    app.connect("html-page-context", add_steps)
    # After the extensions that add scripts on the same event.
    app.connect("html-page-context", drop_unused_files, priority=900)
    app.connect("build-finished", repair_pages)
    app.connect("build-finished", use_own_icons)
    # After the theme has written the colours of code.
    app.connect("build-finished", follow_the_system, priority=900)
    app.connect("build-finished", add_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
