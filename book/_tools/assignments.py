"""Make the student's version, the solution and the autograder of every assignment, with
otter-grader.

    python book/_tools/assignments.py [--secret SECRET] [NAME …]

Each master notebook in `book/assignments/` becomes `_build/assignments/NAME/student/NAME.ipynb`,
`…/solution/NAME.ipynb` and `…/autograder.zip`. Otter grades the solution with the new autograder,
and nothing is written unless it gets every point. The secret decides on which inputs the hidden
tests try an answer; without one, a new one is drawn.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import secrets
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import notebooks

MASTERS = notebooks.ROOT / "book" / "assignments"
OUTPUT = notebooks.ROOT / "_build" / "assignments"


def masters():
    """The master notebooks, by name."""
    return {path.stem: path for path in sorted(MASTERS.glob("*.ipynb"))}


def seed_of(secret, name):
    """The seed of an assignment's hidden tests: six digits that do not give the secret away."""
    digest = hashlib.sha256(f"{secret}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10**6


def with_seed(master, seed):
    """`master` with `seed` in its configuration for the plugin."""
    config = master.cells[0]
    config.source, count = re.subn(
        r"^(      seed: )\d+$", rf"\g<1>{seed}", config.source, flags=re.MULTILINE
    )
    if count != 1:
        raise ValueError("the first cell of a master notebook needs one line `      seed: 0`")
    return master


def tidy(notebook):
    """Without what otter leaves for itself: marks around solutions, tags, and comments for PDFs."""
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)
        cell.source = re.sub(r"^ *# (BEGIN|END) SOLUTION.*\n?", "", cell.source, flags=re.MULTILINE)
        cell.source = re.sub(r"^<!-- (BEGIN|END) QUESTION -->\n*", "", cell.source).rstrip("\n")
    return notebooks.normalise(notebook)


def make(path, seed, output):
    """Make everything for the master notebook at `path`, under `output`."""
    from otter.assign import main as assign

    name = path.stem
    with tempfile.TemporaryDirectory() as scratch:
        master, made = Path(scratch, path.name), Path(scratch, "made")
        notebooks.write(with_seed(notebooks.read(path), seed), master)
        try:
            assign(str(master), str(made), no_pdfs=True)
        except Exception as error:
            raise ValueError(f"{path.name}: otter says: {error}") from error
        (archive,) = (made / "autograder").glob("*.zip")
        new = Path(scratch, "new")
        for version, folder in (("student", "student"), ("solution", "autograder")):
            notebook = tidy(notebooks.read(made / folder / path.name))
            (new / version).mkdir(parents=True)
            notebooks.write(notebook, new / version / path.name)
        shutil.copy(archive, new / "autograder.zip")
        # The new folder takes the place of the old one, whole.
        target = output / name
        output.mkdir(parents=True, exist_ok=True)
        waiting = output / f".{name}.new"
        for old in (waiting, target):
            if old == target:
                shutil.copytree(new, waiting)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(waiting, target)
    return target


def quiet():
    """Keep what otter and its kernels say to themselves off the terminal."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"default: all of {', '.join(masters())}")
    parser.add_argument("--secret", default="", help="decides the inputs of the hidden tests")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: _build/assignments")
    options = parser.parse_args(arguments)
    found = masters()
    if unknown := set(options.name) - found.keys():
        raise ValueError(f"no assignment is called {', '.join(sorted(unknown))}")
    secret = options.secret or secrets.token_hex(8)
    if not options.secret:
        print(f"A secret was drawn. To make the same tests again: make assignments SECRET={secret}")
    names = options.name or list(found)
    seeds = [seed_of(secret, name) for name in names]
    # Processes, since otter changes the folder that it works in. Each imports everything once.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count(), len(names)), spawn, quiet) as pool:
        paths = [found[name] for name in names]
        targets = pool.map(make, paths, seeds, [options.output.resolve()] * len(names))
        for name, seed, target in zip(names, seeds, targets):
            print(f"{name}: {target} (hidden tests: seed {seed}; the solution gets every point)")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"assignments: {error}")
