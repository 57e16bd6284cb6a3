"""Write every figure that is stored in the chapters as a PNG or SVG file, for slides.

    python book/_tools/figures.py [FOLDER]

The folder is `_build/figures` by default. `figures.md` in it lists them, with the sentences that
describe them.
"""

import base64
import os
import sys
import tempfile
from pathlib import Path

import notebooks


def figures(path):
    """The figures of the notebook at `path`: file name, description, content."""
    number = 0
    for cell in notebooks.read(path).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if png := data.get("image/png"):
                suffix, content = "png", base64.b64decode(png)
            elif svg := data.get("image/svg+xml"):
                suffix, content = "svg", svg.encode()
            else:
                continue
            number += 1
            described = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            yield f"{path.stem}-{number}.{suffix}", described, content


def write(folder, chapters):
    """Write the figures of `chapters` and their list; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Figures of the book (CC BY 4.0)", ""]
    for path in chapters:
        for name, described, content in figures(path):
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(content)
            os.chmod(file.name, 0o644)
            os.replace(file.name, folder / name)
            lines.append(f"- `{name}`: {described}")
    notebooks.write_text(folder / "figures.md", "\n".join(lines) + "\n")
    return len(lines) - 2


if __name__ == "__main__":
    target = Path(*sys.argv[1:2]) if sys.argv[1:] else notebooks.ROOT / "_build" / "figures"
    print(f"{write(target, notebooks.chapters())} figures: {target}")
