"""Run notebooks from top to bottom, keep what they print, and note how long they took.

    python book/_tools/execute.py [NOTEBOOK …]

Without a name, every chapter is run. A notebook is written only if all of it ran, and in a
normalised form: a second run gives the same bytes, except in cells whose output depends on time. A
row of `book/results/chapters.csv` is renewed with it. With DENSENET_TUTORIAL_DEVICE=cuda only that
row is: the outputs in the book remain those of the CPU, which every reader can get again.
"""

import argparse
import csv
import datetime
import importlib.metadata
import io
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import notebooks

OFFLINE = Path(__file__).parent / "offline"
CELL_TIMEOUT = 600  # seconds
COLUMNS = (
    "Chapter",
    "CPU, seconds",
    "CPU",
    "GPU, seconds",
    "GPU",
    "Downloads",
    "Verified with",
    "On",
)
NOT_MEASURED = "not measured yet"


def run(path, device="auto"):
    """Run the notebook at `path`; return it executed, with the seconds and the hosts it tried to
    reach.
    """
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "hosts")
        environment = os.environ | {
            "DENSENET_TUTORIAL_DEVICE": device,
            "DENSENET_TUTORIAL_NETWORK_LOG": str(log),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH")))
            ),
        }
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            # Errors only: not that the kernel listens on TCP, which it does on this machine alone.
            extra_arguments=["--Application.log_level=40"],
            resources={"metadata": {"path": str(Path(path).parent)}},
        )
        start = time.perf_counter()
        try:
            client.execute(env=environment)
        except (nbclient.exceptions.DeadKernelError, AssertionError) as error:
            # nbclient stumbles over a dead kernel while it cleans up.
            raise ValueError(f"{path}: the kernel died; was there memory enough?") from error
        seconds = time.perf_counter() - start
        hosts = sorted(set(log.read_text().split())) if log.exists() else []
    return notebooks.normalise(notebook), seconds, hosts


def cpu_name():
    """The processor and how many of its cores a chapter runs on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        name = found.group(1) if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {os.environ.get('OMP_NUM_THREADS', cores)} cores"


def gpu_name():
    """The GPU's name, or a ValueError without one."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("DENSENET_TUTORIAL_DEVICE=cuda, but torch sees no GPU here")
    return torch.cuda.get_device_name()


def versions():
    """The versions that decide what a chapter prints, in one line."""
    named = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
    return f"Python {platform.python_version()}, " + ", ".join(named)


def record(table, chapter, title, device, seconds, hardware, hosts):
    """Renew the row of `chapter` in the CSV file `table`; rows of other chapters stay."""
    rows = {}
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            rows = {chapter_of(row["Chapter"]): row for row in csv.DictReader(file)}
    row = rows.setdefault(chapter, dict.fromkeys(COLUMNS, NOT_MEASURED))
    row["Chapter"] = f"[{title}](../{chapter}.ipynb)"
    name = "GPU" if device == "cuda" else "CPU"
    row[name], row[f"{name}, seconds"] = hardware, f"{seconds:.0f}"
    row["Downloads"] = ", ".join(hosts) or "nothing"
    row["Verified with"], row["On"] = versions(), datetime.date.today().isoformat()
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    table.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write_text(table, text.getvalue())


def chapter_of(link):
    """`02_dense_layer` of `[The dense layer](../02_dense_layer.ipynb)`."""
    return re.search(r"\(\.\./(.+)\.ipynb\)$", link).group(1)


def title_of(notebook):
    """The first heading of a notebook."""
    for cell in notebook.cells:
        found = re.search(r"^# (.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            return found.group(1).strip()
    raise ValueError("a chapter needs a heading of the first level")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="*", type=Path, help="default: every chapter")
    paths = parser.parse_args(arguments).notebook or notebooks.chapters()
    # Chapters are stored as the CPU runs them, whatever this machine has.
    device = "cuda" if os.environ.get("DENSENET_TUTORIAL_DEVICE") == "cuda" else "cpu"
    hardware = gpu_name() if device == "cuda" else cpu_name()
    for path in paths:
        print(f"{path.name}: running on {device} …", flush=True)
        notebook, seconds, hosts = run(path, device)
        if device == "cpu":
            notebooks.write(notebook, path)
        table = path.resolve().parent / "results" / "chapters.csv"
        record(table, path.stem, title_of(notebook), device, seconds, hardware, hosts)
        print(f"{path.name}: {seconds:.0f} s, downloads: {', '.join(hosts) or 'nothing'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, nbclient.exceptions.CellControlSignal) as error:
        sys.exit(f"execute: {error}")
