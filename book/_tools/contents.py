"""What the book consists of: the parts and pages of `_toc.yml`, in their order."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def parts(root=ROOT):
    """Pages by the part of the book that they are in: pairs of a caption and names, root first."""
    toc = yaml.safe_load(Path(root, "_toc.yml").read_text(encoding="utf-8"))
    yield "", [toc["root"]]
    for part in toc["parts"]:
        yield part["caption"], list(_names(part["chapters"]))


def pages(root=ROOT):
    """The name of every page, such as ``book/01_why_dense_connections``."""
    return [name for _, names in parts(root) for name in names]


def _names(entries):
    for entry in entries:
        yield entry["file"]
        yield from _names(entry.get("sections", []))
