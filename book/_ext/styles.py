"""All style sheets of a page in one file: a browser asks for a few at a time, and text waits."""

import hashlib
import re
from pathlib import Path

LINK = re.compile(
    r'<link [^>]*?href="(?P<folder>[^"]*_static/)(?P<name>[^"?]+\.css)(?:\?[^"]*)?"[^>]*>\s*'
)
COMMENT = re.compile(r"/\*(?!!).*?\*/", re.DOTALL)  # licences stay


def together(static, names):
    """One file of the style sheets `names`, in this order; its name is made from its content."""
    sheets = []
    for name in names:
        css = COMMENT.sub("", (static / name).read_text(encoding="utf-8"))
        # Addresses in a sheet are relative to it.
        folder = name.rpartition("/")[0]
        if folder:
            css = re.sub(r"url\((?![\"']?(?:data:|/|#))([\"']?)", rf"url(\1{folder}/", css)
        sheets.append(css)
    text = re.sub(r"\s*\n\s*", "\n", "\n".join(sheets))
    path = static / f"all-{hashlib.sha256(text.encode()).hexdigest()[:12]}.css"
    path.write_text(text, encoding="utf-8")
    return path.name


def join(page):
    """Put the style sheets of a page together; those for readers without scripts stay apart."""
    text = page.read_text(encoding="utf-8")
    head, end, rest = text.partition("</head>")
    pieces = re.split(r"(<noscript>.*?</noscript>)", head, flags=re.DOTALL)
    found = [m for piece in pieces[::2] for m in LINK.finditer(piece) if "stylesheet" in m[0]]
    if len(found) < 2:
        return
    folder = found[0]["folder"]
    name = together((page.parent / folder).resolve(), [match["name"] for match in found])
    link = f'<link rel="stylesheet" href="{folder}{name}" />\n  '
    for index in range(0, len(pieces), 2):
        for match in [m for m in LINK.finditer(pieces[index]) if "stylesheet" in m[0]]:
            pieces[index] = pieces[index].replace(match[0], link, 1)
            link = ""
    page.write_text("".join(pieces) + end + rest, encoding="utf-8")


def join_all(app, exception):
    if exception or app.builder.format != "html":
        return
    pages = sorted(Path(app.outdir).rglob("*.html"))
    for page in pages:
        join(page)
    named = "".join(page.read_text(encoding="utf-8") for page in pages)
    for old in Path(app.outdir, "_static").glob("all-*.css"):
        if old.name not in named:  # a page that was not built again keeps its own
            old.unlink()


def setup(app):
    # After all that is done to style sheets and to the links that name them.
    app.connect("build-finished", join_all, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
