"""How long a chapter takes to read, from its words: under its title, and on the first page."""

import json
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.transforms import SphinxTransform

sys.path.append(str(Path(__file__).resolve().parent))
import cells

WORDS, LINES = 200, 20  # a minute: of prose, of code
#: What is no word to read: solutions, which are folded, and the markup; a formula is one word.
MARKUP = (
    (re.compile(r"<details.*?</details>|<!--.*?-->|```.*?```", re.DOTALL), " "),
    (re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.DOTALL), " formula "),
    (re.compile(r"</?\w[^>]*>|\]\([^)]*\)|[|*_`#]"), " "),
)


def counted(path):
    """The words, and the lines of code, of the chapter in the notebook `path` that lie open."""
    words = lines = 0
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for pattern, replacement in MARKUP:
                text = pattern.sub(replacement, text)
            words += len(re.findall(r"\w+(?:[-.,'’]\w+)*", text))
        elif not cells.folded(text, cell["metadata"].get("tags", ())):
            lines += sum(bool(line.strip()) for line in cells.split(text)[0])
    return words, lines


def minutes(path):
    """How many minutes it takes to read the chapter in the notebook `path`, to the nearest five."""
    words, lines = counted(path)
    return max(5, 5 * round((words / WORDS + lines / LINES) / 5))


def said_before(sentence):
    """What is left of it, if anything goes on behind the minutes."""
    return f" {sentence[1].upper()}" if sentence[1] else ""


class ReadingTime(SphinxTransform):
    """Say under a chapter's title how long it is."""

    default_priority = 870

    def apply(self):
        path = Path(self.env.doc2path(self.env.docname))
        title = self.document.next_node(nodes.title)
        if title is None or path.suffix != ".ipynb" or not re.match(r"\d\d_", path.name):
            return
        words, lines = counted(path)
        text = f"{minutes(path)} minutes to read: {words:,} words, {lines:,} lines of code"
        paragraph = nodes.paragraph(text, text, classes=["reading-time"])
        title.parent.insert(title.parent.index(title) + 1, paragraph)
        # In Colab and on GitHub the first cell says it.
        for text in [*title.parent.findall(nodes.Text)]:
            rest = re.sub(r" Reading takes about \d+ minutes(?:\.|; (t)(?=he ))", said_before, text)
            if rest != text:
                text.parent.replace(text, nodes.Text(rest))
                return


def setup(app):
    app.add_transform(ReadingTime)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
