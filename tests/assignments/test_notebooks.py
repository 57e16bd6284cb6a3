"""The students' notebooks, blank and solved, in Jupyter and with torch and the package alone."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbclient
import notebooks
import pytest
from masters import ASSIGNMENTS
from packaging.requirements import Requirement

LIMIT = 600  # seconds, after which something hangs
REPORT = re.compile(r"^\w+: (\d+) of (\d+) right", re.MULTILINE)

# What IPython does, as far as these notebooks need it: run the cells, show the value of a last
# expression.
RUN = """
import ast, json, sys

names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        source = "".join(cell["source"]).replace("%pip", "raise SystemExit #")
        body = ast.parse(source).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        if value is not None:
            print(repr(value))
"""


def reports(text):
    """For each report in `text`: how much is right, and of how much."""
    return [(int(right), int(of)) for right, of in REPORT.findall(text)]


@pytest.mark.parametrize("version", ["student", "solution"])
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_runs_from_top_to_bottom(made, name, version):
    notebook = notebooks.read(made / name / version / f"{name}.ipynb")
    nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    said = "\n".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "Traceback" not in said
    if version == "student":
        assert said.count("not answered yet") == 4
    else:
        assert len(reports(said)) == 4
        assert all(right == of for right, of in reports(said))


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A Python with this package and what it depends on, and nothing else: no Jupyter, no otter."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    package = notebooks.ROOT / "densenet_tutorial"
    (site / package.name).symlink_to(package)
    wanted, seen = ["torch", "torchvision", "numpy", "matplotlib", "tqdm", "torchinfo"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for entry in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            target = Path(found.locate_file(entry))
            if not (site / entry).exists() and target.exists():
                (site / entry).symlink_to(target)
        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return folder / "bin" / "python"


def in_fresh(python, *arguments):
    return subprocess.run(
        [python, "-I", *arguments], check=False, capture_output=True, text=True, timeout=LIMIT
    )


def test_the_fresh_environment_has_no_grader(fresh):
    for module in ("otter", "nbformat", "IPython"):
        assert in_fresh(fresh, "-c", f"import {module}").returncode


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_student_notebook_needs_torch_and_the_package_alone(made, fresh, tmp_path, name):
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    path = made / name / "student" / f"{name}.ipynb"
    done = in_fresh(fresh, tmp_path / "run.py", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not answered yet") == 4
    assert (
        json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
    )
