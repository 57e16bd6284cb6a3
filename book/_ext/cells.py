"""What the site does with a chapter's cells, which stay plain in Colab and on GitHub: callouts look
like what they are, and code that is not the subject, or is long, is folded.
"""

from docutils import nodes
from sphinx.transforms import SphinxTransform

LONG = 40  # lines of code
#: The bold word with which a block quote begins, and its class.
CALLOUTS = {"Predict.": "predict", "Wrong on purpose.": "wrong", "Note.": "note"}


class Callouts(SphinxTransform):
    """Name block quotes after their first word."""

    default_priority = 870

    def apply(self):
        for quote in self.document.findall(nodes.block_quote):
            first = quote.next_node(nodes.strong)
            # The very first thing in it, not a bold word further on.
            kind = CALLOUTS.get(first.astext()) if first is not None else None
            if kind and quote.astext().startswith(first.astext()):
                quote["classes"] += ["callout", kind]


class Folds(SphinxTransform):
    """Fold the cell that installs the package, and long listings. A click shows them."""

    default_priority = 870

    def apply(self):
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") != "cell_code" or cell.get("hide_mode", "input") != "input":
                continue
            lines = cell.children[0].astext().count("\n") + 1
            if "guard" in cell["cell_metadata"].get("tags", ()):
                what = "set-up"
            elif lines > LONG:
                what = f"code, {lines} lines"
                cell["classes"].append("long")  # paper shows it
            else:
                continue
            cell["hide_mode"] = "input"
            cell["prompt_show"], cell["prompt_hide"] = f"Show the {what}", f"Hide the {what}"
            cell["classes"] = [*dict.fromkeys([*cell["classes"], "tag_hide-input"])]


def setup(app):
    app.add_transform(Callouts)
    app.add_transform(Folds)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
