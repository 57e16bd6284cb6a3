"""Reading and writing the book's notebooks so that the same content always gives the same bytes."""

import hashlib
import json
from pathlib import Path

import nbformat

from densenet_tutorial.utils import files

ROOT = Path(__file__).resolve().parents[2]

# Nothing in here names a version of Python, so that a newer one leaves the file as it is.
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
CELL_METADATA = ("mystnb", "tags")  # what the book uses; editors leave all sorts of other things


def chapters(root=ROOT):
    """The notebooks of the book, in order."""
    return sorted((Path(root) / "book").glob("*.ipynb"))


def read(path):
    """The notebook at `path`, in the current format, with an id in every cell."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    if raw.get("nbformat") != 4:
        raise ValueError(f"{path}: notebook format {raw.get('nbformat')}, but 4 is needed")
    raw["nbformat_minor"] = 5
    taken = set()
    for cell in raw["cells"]:
        if not cell.get("id") or cell["id"] in taken:
            # Made from the content, not drawn at random: the same file again gives the same id.
            digest = hashlib.sha256("".join(cell["source"]).encode()).hexdigest()
            cell["id"] = next(i for n in range(57) if (i := digest[n : n + 8]) not in taken)
        taken.add(cell["id"])
    # Joins the lists of lines that the format uses for text.
    return nbformat.reads(json.dumps(raw), as_version=4)


def normalise(notebook):
    """Drop from `notebook`, in place, what changes from run to run or from editor to editor."""
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        cell.metadata = {k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)}
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
            for output in cell.outputs:
                output.pop("transient", None)
    return notebook


def _join_streams(outputs):
    """What was printed, as one output for each stream: how often the kernel flushes is chance."""
    joined, streams = [], {}
    for output in outputs:
        if output.output_type != "stream":
            joined.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
            joined.append(output)
    for output in streams.values():
        output.text = _last_state(output.text)
    return joined


def _last_state(text):
    """`text` as a terminal leaves it: after a carriage return, a line is written over."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(lines)


def write(notebook, path):
    """Write `notebook` to `path`, whole or not at all."""
    nbformat.validate(notebook)
    write_text(path, nbformat.writes(notebook) + "\n")


def write_text(path, text):
    """Write `text` to `path`, whole or not at all: an interruption leaves the old file."""
    files.write(path, text.encode())
