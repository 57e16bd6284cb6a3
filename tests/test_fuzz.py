"""The fuzz target itself: a few seconds of it, so that it can be trusted when it runs for long."""

import os
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent / "fuzz" / "run.py"


def run(script, *options):
    path = os.pathsep.join(map(str, (RUN.parents[1], RUN.parents[2])))
    return subprocess.run(
        [sys.executable, str(script), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )


def test_a_few_cases_of_every_kind_are_held_or_refused():
    done = run(RUN, "--minutes", "0.1", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()[1:]]
    assert len(rows) >= 8 and rows[-1][0] == "all"
    for name, held, refused, wrong in rows:
        assert int(held.replace(",", "")) + int(refused.replace(",", "")) > 0, name
        assert wrong == "0", name


def test_what_is_wrong_is_counted_and_can_be_had_again(tmp_path):
    """A kind that crashes, raises and lies."""
    for file in RUN.parent.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "broken.py").write_text(
        "import os, kinds\n"
        "class Broken(kinds.Kind):\n"
        "    name = 'broken'\n"
        "    def case(self, random):\n"
        "        kind = random.randrange(5)\n"
        "        if kind == 0: os.abort()\n"
        "        if kind == 1: raise TypeError('a bug')\n"
        "        if kind == 2: assert False, 'other numbers'\n"
        "        if kind == 3: raise ValueError('two\\nlines')\n"
        "        raise ValueError('a sentence of ours')\n"
        "KINDS = [Broken]\n"
    )
    done = run(tmp_path / "run.py", "broken", "--minutes", "0.02")
    assert done.returncode == 1, done.stdout + done.stderr
    for what in ("ended with status -6", "TypeError: a bug", "other numbers", "no sentence: "):
        assert what in done.stdout
    refused = int(done.stdout.split("\n")[1].split()[2])
    assert refused > 0
    case = next(line for line in done.stdout.split("\n") if "a bug" in line).split()[1]
    done = run(tmp_path / "run.py", "--case", case)
    assert "TypeError: a bug" in done.stderr and "Traceback" in done.stderr
