"""The first cell of every notebook, run for real where the package is missing, as in Colab."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import notebooks
import repository
import yaml

PRESENT = ("torch", "torchvision", "numpy")  # what Colab brings and the guard must leave alone
ABSENT = ("torchinfo", "densenet_tutorial")  # what Colab lacks and the guard must install

REPORT = """
import importlib.metadata, importlib.util, json, sys
print(json.dumps({
    name: [importlib.metadata.version(name), importlib.util.find_spec(name).origin]
    for name in sys.argv[1:]
    if importlib.util.find_spec(name)
}))
"""
RUN_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell(sys.argv[1]).raise_error()
"""


def commit_copy(source, target):
    """A git repository at `target` whose one commit is the working tree at `source`."""
    for path in repository.files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    git = ["git", "-c", "user.name=A test", "-c", "user.email=test@example.org", "-C", str(target)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "A copy"]):
        subprocess.run([*git, *command], check=True)


def environment_like_colab(folder):
    """A virtual environment that sees all packages of this one, less ABSENT; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    links = folder / "links"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        editable = entry.name.startswith("__editable__") or entry.suffix == ".pth"
        if not editable and not entry.name.startswith(ABSENT):
            (links / entry.name).symlink_to(entry)
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    Path(purelib.strip(), "links.pth").write_text(f"{links}\n", encoding="utf-8")
    return python


def test_guard_installs_the_package_and_leaves_torch_alone(tmp_path):
    commit_copy(notebooks.ROOT, tmp_path / "origin")
    python = environment_like_colab(tmp_path / "colab")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["IPYTHONDIR"] = str(tmp_path / "ipython")

    def run(script, *arguments):
        command = [python, "-c", script, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, text=True, capture_output=True
        ).stdout

    before = json.loads(run(REPORT, *PRESENT, *ABSENT))
    assert sorted(before) == sorted(PRESENT), "the environment is not like Colab's"

    config = yaml.safe_load((notebooks.ROOT / "_config.yml").read_text(encoding="utf-8"))
    cells = notebooks.read(notebooks.chapters()[0]).cells
    guard = next(cell.source for cell in cells if cell.cell_type == "code")
    local = guard.replace(config["repository"]["url"], f"file://{tmp_path / 'origin'}")
    assert local != guard
    print(run(RUN_CELL, local))

    after = json.loads(run(REPORT, *PRESENT, *ABSENT))
    assert sorted(after) == sorted(PRESENT + ABSENT)
    assert {name: after[name] for name in PRESENT} == before
    for name in ABSENT:
        assert Path(after[name][1]).is_relative_to(tmp_path / "colab"), after[name]
    run("import densenet_tutorial, torchinfo; densenet_tutorial.densenet121")
    installed, package = (
        Path(after["densenet_tutorial"][1]).parent,
        notebooks.ROOT / "densenet_tutorial",
    )
    data = [*package.glob("*/bundled/*"), *package.glob("experiments/results/*")]
    assert len(data) >= 11
    for file in data:
        assert (installed / file.relative_to(package)).read_bytes() == file.read_bytes()
