"""All style sheets of a page in one file, without the rules for classes that no page and no script
names: a browser asks for a few files at a time, and text waits for them.
"""

import hashlib
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
import css

LINK = re.compile(
    r'<link [^>]*?href="(?P<folder>[^"]*_static/)(?P<name>[^"?]+\.css)(?:\?[^"]*)?"[^>]*>\s*'
)
COMMENT = re.compile(r"/\*(?!!).*?\*/", re.DOTALL)  # licences stay
# Scripts put these names together from pieces.
COMPOSED = ("bs-tooltip-",)


def together(static, names, has, own):
    """One file of the style sheets `names`, in this order; its name is made from its content.

    The theme's and the extensions' sheets lose the rules for classes for which `has` is false; the
    book's `own` stay as they are.
    """
    sheets = []
    for name in names:
        sheet = COMMENT.sub("", (static / name).read_text(encoding="utf-8"))
        if name not in own:
            sheet = css.needed(sheet, has)
        # Addresses in a sheet are relative to it.
        folder = name.rpartition("/")[0]
        if folder:
            sheet = re.sub(r"url\((?![\"']?(?:data:|/|#))([\"']?)", rf"url(\1{folder}/", sheet)
        sheets.append(sheet)
    text = re.sub(r"\s*\n\s*", "\n", "\n".join(sheets))
    path = static / f"all-{hashlib.sha256(text.encode()).hexdigest()[:12]}.css"
    path.write_text(text, encoding="utf-8")
    return path.name


def words(out):
    """Whatever may be the name of a class in the site's pages and scripts."""
    files = [*out.rglob("*.html"), *out.rglob("*.js")]
    return {word for file in files for word in re.findall(r"[\w-]+", file.read_text("utf-8"))}


def is_known(name, known):
    """Whether a class may be on a page; of "w-1/2", all pieces have to be there."""
    return name.startswith(COMPOSED) or known.issuperset(re.findall(r"[\w-]+", name))


def join(page, has, own):
    """Put the style sheets of a page together; those for readers without scripts stay apart."""
    text = page.read_text(encoding="utf-8")
    head, end, rest = text.partition("</head>")
    pieces = re.split(r"(<noscript>.*?</noscript>)", head, flags=re.DOTALL)
    found = [m for piece in pieces[::2] for m in LINK.finditer(piece) if "stylesheet" in m[0]]
    # A page that was not built again names those of which its one was made.
    made = re.search(r'data-sheets="([^"]*)"', head)
    names = made[1].split() if made else [m["name"] for m in found]
    if len(names) < 2:
        return
    folder = found[0]["folder"]
    name = together((page.parent / folder).resolve(), names, has, own)
    sheets = f'data-sheets="{" ".join(names)}"'
    link = f'<link rel="stylesheet" {sheets} href="{folder}{name}" />\n  '
    for index in range(0, len(pieces), 2):
        for match in [m for m in LINK.finditer(pieces[index]) if "stylesheet" in m[0]]:
            pieces[index] = pieces[index].replace(match[0], link, 1)
            link = ""
    page.write_text("".join(pieces) + end + rest, encoding="utf-8")


def join_all(app, exception):
    if exception or app.builder.format != "html":
        return
    out, source = Path(app.outdir), Path(app.srcdir, "book", "_static")
    known, own = words(out), {p.relative_to(source).as_posix() for p in source.rglob("*.css")}
    pages = sorted(out.rglob("*.html"))
    for page in pages:
        join(page, lambda name: is_known(name, known), own)
    named = "".join(page.read_text(encoding="utf-8") for page in pages)
    for old in (out / "_static").glob("all-*.css"):
        if old.name not in named:
            old.unlink()


def setup(app):
    # After all that is done to style sheets and to the links that name them.
    app.connect("build-finished", join_all, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
