"""What search engines and those who share a link see of a page: descriptions written by hand, in
`book/descriptions.yml`, data on what it teaches, a list of pages, and a page for wrong addresses.
"""

import html
import json
from pathlib import Path

import yaml

CARD_ALT = "Title and drawing of the page, on the card of {title}"
LICENCE = "https://creativecommons.org/licenses/by/4.0/"

NOT_FOUND = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="color-scheme" content="light dark">
<title>Page not found — {title}</title>
<style>
  body {{ font: 1.125rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto;
         padding: 0 1.25rem; }}
  a {{ color: LinkText; display: inline-block; padding: 0.6rem 0; }}
</style>
</head>
<body>
<main>
<h1>There is no such page</h1>
<p>It may have moved. All chapters are on the first page, and the search knows every word.</p>
<p><a href="{base}book/index.html">{title}: the first page</a><br>
<a href="{base}search.html">Search the book</a></p>
</main>
</body>
</html>
"""


def descriptions(app):
    """A sentence or two for each page, by its name."""
    path = Path(app.srcdir, "book", "descriptions.yml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def card(app, pagename):
    """The address of the picture for links to a page; pages without one have the first page's."""
    cards = Path(app.srcdir, "book", "_static", "cards")
    name = Path(pagename).name
    return f"_static/cards/{name if (cards / f'{name}.png').is_file() else 'index'}.png"


def describe(app, pagename, templatename, context, doctree):
    """Add the description and the structured data to a page's head."""
    text = descriptions(app).get(pagename)
    if text is None or doctree is None:
        return
    base = app.config.html_baseurl
    # The extension that writes the og: tags takes this instead of the first words of the page.
    context["meta"] = {
        **(context.get("meta") or {}),
        "og:description": html.escape(text),
        "og:image": base + card(app, pagename),
        "og:image:alt": CARD_ALT.format(title=app.config.html_title),
    }
    book = {"@type": "Book", "name": app.config.html_title, "url": f"{base}book/index.html"}
    data = {
        "@context": "https://schema.org",
        "@type": "LearningResource",
        "name": doctree.next_node(lambda n: n.tagname == "title").astext(),
        "description": text,
        "url": base + app.builder.get_target_uri(pagename),
        "inLanguage": "en",
        "isAccessibleForFree": True,
        "educationalLevel": "university",
        "about": ["DenseNet", "convolutional neural networks", "PyTorch"],
        "license": LICENCE,
        "author": {"@type": "Organization", "name": app.config.author},
        "isPartOf": book,
    }
    text_of_data = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    context["metatags"] = (
        context.get("metatags", "")
        + f'<meta name="description" content="{html.escape(text)}" />\n'
        + '<meta name="twitter:card" content="summary_large_image" />\n'
        + f'<script type="application/ld+json">{text_of_data}</script>\n'
    )


def write_lists(app, exception):
    """Write sitemap.xml, robots.txt and 404.html."""
    if exception or app.builder.format != "html":
        return
    base, out = app.config.html_baseurl, Path(app.outdir)
    pages = sorted(name for name in app.env.found_docs if name != app.config.root_doc)
    pages = [app.config.root_doc, *pages]
    rows = [f"<url><loc>{base}{app.builder.get_target_uri(name)}</loc></url>" for name in pages]
    sitemap = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">',
        *rows,
        "</urlset>",
    ]
    (out / "sitemap.xml").write_text("\n".join(sitemap) + "\n", encoding="utf-8")
    robots = f"User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n"
    (out / "robots.txt").write_text(robots, encoding="utf-8")
    missing = NOT_FOUND.format(title=html.escape(app.config.html_title), base=base)
    (out / "404.html").write_text(missing, encoding="utf-8")


def setup(app):
    # Before the extension that writes the og: tags.
    app.connect("html-page-context", describe, priority=100)
    app.connect("build-finished", write_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
