"""The recipes of CONTRIBUTING.md do what they say: their changes apply, and their commands work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_there_is_a_recipe_for_every_everyday_change():
    assert len(RECIPES) == 7 and sum(bool(blocks(text, "diff")) for text in RECIPES.values()) == 5


@pytest.mark.parametrize("title", [title for title in RECIPES if blocks(RECIPES[title], "diff")])
def test_a_recipe_works(title, tmp_path):
    leave_out = shutil.ignore_patterns("__pycache__", "site", "book", "assignments")
    for folder in ("densenet_tutorial", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave_out)
    for diff in blocks(RECIPES[title], "diff"):
        apply = ["git", "apply", "-"]
        subprocess.run(apply, input=diff, text=True, cwd=tmp_path, check=True)
    for commands in blocks(RECIPES[title], "sh"):
        commands = commands.replace(".venv/bin/python", sys.executable)
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", commands],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "100"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
