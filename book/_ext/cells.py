"""What the site does with a chapter's cells, which stay plain in Colab and on GitHub: callouts look
like what they are, code that is not the subject, or is long, is folded, and so is what answers a
question until the reader asks for it; plots can be told from pictures.
"""

import ast
import itertools
import re

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

LONG = 40  # lines of code
SHORT = 3  # so many lines are not worth a fold
#: The bold word with which a block quote begins, and its class.
CALLOUTS = {"Predict.": "predict", "Wrong on purpose.": "wrong", "Note.": "note"}
#: A line behind an answer that is longer than it would seem.
END = "<!-- end of the answer -->"
#: Whose calls draw and do nothing else.
DRAWING = {"figures", "plt"}
#: Functions of `figures` that show pictures, or what else has to keep its colours.
PICTURES = {
    *("images", "feature_maps", "grad_cam_maps", "effective_receptive_fields"),
    "feature_reuse_maps",  # the text calls cells dark and pale
}
PROGRESS = re.compile(r"\d+%\|.*\|")  # 42%|████      |


def split(source, asked=False):
    """The lines of a cell before the calls that draw, with which it ends, and those of the calls.

    A cell that only imports and draws has no lines before. Where a question is `asked` about the
    cell, it may end with an `assert` as well, and a single line is worth a fold: titles and
    assertions tell the answer.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # such as a command of IPython
        statements = []

    def at_end(statement):
        return draws(statement) or (asked and isinstance(statement, ast.Assert))

    calls = [*itertools.takewhile(at_end, reversed(statements))]
    before = statements[: len(statements) - len(calls)]
    lines = source.split("\n")
    if not calls:
        return lines, []
    if all(isinstance(each, (ast.Import, ast.ImportFrom)) for each in before):
        return [], lines
    first = calls[-1].lineno - 1
    short = len(lines) - first <= SHORT and not asked
    if short or (before and before[-1].end_lineno > first):
        return lines, []
    return lines[:first], lines[first:]


def draws(statement):
    """Whether a statement is a call of one of DRAWING, such as `figures.curves(…)`."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    root = statement.value.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in DRAWING


def folded(source, tags):
    """What a cell's code is called on the button that shows it, or None where it lies open."""
    lines = source.count("\n") + 1
    if "guard" in tags:
        return "set-up"
    if lines > LONG:
        return f"code, {lines} lines"
    if not split(source)[0]:
        return "code of the figure"
    return "code" if {"hide-input", "hide-cell"} & {*tags} else None


def is_cell(node):
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def is_predict(node):
    return isinstance(node, nodes.block_quote) and "predict" in node["classes"]


class Callouts(SphinxTransform):
    """Name block quotes after their first word; one that goes on with another such word is two."""

    default_priority = 869

    def apply(self):
        for quote in [*self.document.findall(nodes.block_quote)]:
            parts = [quote]
            for paragraph in quote.children[1:]:
                if kind_of(paragraph):
                    parts.append(nodes.block_quote())
                if parts[-1] is not quote:
                    parts[-1].append(taken(paragraph))
            place = quote.parent.index(quote) + 1
            for part in reversed(parts[1:]):
                quote.parent.insert(place, part)
            for part in parts:
                if part.children and (kind := kind_of(part.children[0])):
                    part["classes"] += ["callout", kind]


def kind_of(paragraph):
    """The kind of callout that begins with this paragraph, if it begins one."""
    first = paragraph.next_node(nodes.strong)
    # The very first thing in it, not a bold word further on.
    if first is not None and paragraph.astext().startswith(first.astext()):
        return CALLOUTS.get(first.astext())
    return None


class Folds(SphinxTransform):
    """Fold what installs the package, what only draws, and long listings. A click shows them."""

    default_priority = 870

    def apply(self):
        asked = [*map(first_cell, filter(is_predict, self.document.findall(nodes.block_quote)))]
        for cell in self.document.findall(is_cell):
            if cell.get("hide_mode", "input") != "input":
                continue
            source, tags = cell.children[0].astext(), cell["cell_metadata"].get("tags", ())
            what = folded(source, tags)
            if what is None:
                fold_drawing(cell, *split(source, asked=any(cell is each for each in asked)))
                continue
            if what.startswith("code,"):
                cell["classes"].append("long")  # paper shows it
            cell["hide_mode"] = "input"
            cell["prompt_show"], cell["prompt_hide"] = f"Show the {what}", f"Hide the {what}"
            cell["classes"] = [*dict.fromkeys([*cell["classes"], "tag_hide-input"])]


def fold_drawing(cell, before, drawing):
    """Divide a cell's code in two, of which the second, if there is one, is folded."""
    if not drawing:
        return
    code = cell.children[0]
    second = code.deepcopy()
    for part, lines in (code, before), (second, drawing):
        text = "\n".join(lines).strip("\n")
        block = part.next_node(nodes.literal_block)
        block.rawsource = text
        block[:] = [nodes.Text(text)]
    what = "check" if drawing[0].startswith("assert") else "code of the figure"
    fold = HideCodeCellNode(prompt_show=f"Show the {what}", prompt_hide=f"Hide the {what}")
    fold["classes"] = ["above-input"]
    fold.append(second)
    cell.insert(1, fold)
    cell["classes"].append("tag_hide-input")


def is_plot(source):
    """Whether a cell draws a plot: lines and words on white, which the dark may turn round."""
    drawn = {*re.findall(r"\bfigures\.(\w+)\(", source)}
    return bool(drawn) and not drawn & PICTURES


class Plots(SphinxTransform):
    """Give plots a class."""

    default_priority = 870

    def apply(self):
        for cell in self.document.findall(is_cell):
            if is_plot(cell.children[0].astext()):
                for image in cell.findall(nodes.image):
                    image["classes"].append("plot")


class NoProgress(SphinxTransform):
    """Leave out progress bars: they are over."""

    default_priority = 870

    def apply(self):
        for output in [*self.document.findall(nodes.literal_block)]:
            if "stderr" not in output["classes"]:
                continue
            kept = [line for line in output.astext().split("\n") if not PROGRESS.search(line)]
            if any(line.strip() for line in kept):
                output[:] = [nodes.Text("\n".join(kept))]
            else:
                output.parent.remove(output)


class Answer(nodes.Element):
    """What answers a question: closed until the reader opens it."""


def visit_answer(self, node):
    self.body.append(
        '<details class="answer"><summary><span class="closed">Show the answer</span>'
        '<span class="opened">The answer</span></summary>\n'
    )


def depart_answer(self, node):
    self.body.append("</details>\n")


class Answers(SphinxTransform):
    """Put what answers a Predict behind a button.

    Without a mark, that is what the cells directly after it print and draw, and the paragraph after
    them, which says it in words, with what belongs to that: a list or formula that it announces,
    what is said of a formula, what to look for in the figure. Where no cell answers, a paragraph
    does that begins with "The answer is". Where the answer is longer, the mark :data:`END` behind
    it says so. The code of the first cell stays in view, since the question is what it does.
    """

    default_priority = 871  # the callouts have their names

    def apply(self):
        for card in [*self.document.findall(is_predict)]:
            following = card.parent.children[card.parent.index(card) + 1 :]
            answer = answer_of([*itertools.filterfalse(is_unseen, following)])
            found, place = Answer(), card
            if any(map(is_cell, answer)):
                while not is_cell(answer[0]):  # what is said before it
                    answer.pop(0)
                place, output = answer.pop(0), None
                if place.children[-1].get("nb_element") == "cell_code_output":
                    output = taken(place.children[-1])
                if output is not None and output.children:
                    shell = nodes.container(classes=["cell"], nb_element="cell_answer")
                    shell.append(output)
                    found.append(shell)
            for node in answer:
                found.append(taken(node))
            if found.children:
                place.parent.insert(place.parent.index(place) + 1, found)
            else:
                LOGGER.warning("nothing answers this Predict", location=card)
        for mark in [*filter(is_end, self.document.findall(nodes.raw))]:
            taken(mark)


def is_unseen(node):
    """Whether nothing of a node is to be seen; a mark is to be found."""
    return isinstance(node, (nodes.Invisible, nodes.target)) and not is_end(node)


def is_end(node):
    return isinstance(node, nodes.raw) and node.astext().strip() == END


def first_cell(card):
    """The cell whose code a Predict asks about, or None."""
    following = card.parent.children[card.parent.index(card) + 1 :]
    return next(filter(is_cell, answer_of([*itertools.filterfalse(is_unseen, following)])), None)


def answer_of(following):
    """Those of the nodes behind a Predict that answer it: the first ones."""
    following = [
        *itertools.takewhile(
            lambda node: not (isinstance(node, nodes.section) or is_predict(node)), following
        )
    ]
    for count, node in enumerate(following):
        if is_end(node):
            return following[:count]
    cells = [*itertools.takewhile(is_cell, following)]
    said = following[len(cells) :]
    if not said or not isinstance(said[0], nodes.paragraph):
        return cells
    if not cells and not said[0].astext().startswith("The answer is"):
        return []
    return cells + with_what_belongs(said)


def with_what_belongs(following):
    """The first of some nodes, a paragraph, and those behind it that belong to it."""
    count = 1
    for before, node in itertools.pairwise(following):
        announced = isinstance(before, nodes.paragraph) and before.astext().endswith(":")
        of_formula = isinstance(before, nodes.math_block) and isinstance(node, nodes.paragraph)
        if isinstance(node, nodes.block_quote) or is_cell(node):
            break
        if not (announced or of_formula or node.astext().startswith("What to look for.")):
            break
        count += 1
    return following[:count]


def taken(node):
    """A node without its parent."""
    node.parent.remove(node)
    return node


def setup(app):
    app.add_node(Answer, html=(visit_answer, depart_answer))
    for transform in (Plots, Callouts, Folds, NoProgress, Answers):
        app.add_transform(transform)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 5}
