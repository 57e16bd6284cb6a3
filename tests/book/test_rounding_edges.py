"""The check of printed numbers, on cells of a line or two."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import rounding_edges
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shell():
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    rounding_edges.load_ipython_extension(shell)
    shell.run_cell("import numpy as np, torch")
    yield shell
    plt.uninstall_repl_displayhook()  # matplotlib would look for the shell later
    InteractiveShell.clear_instance()


@pytest.fixture
def report(shell, monkeypatch):
    """What is reported for a cell; an empty text if nothing is."""

    def run(cell):
        found = []
        monkeypatch.setattr(shell.display_pub, "publish", lambda data, **_: found.append(data))
        shell.run_cell(cell, store_history=True).raise_error()
        return "".join(data.get(rounding_edges.REPORT, "") for data in found)

    return run


@pytest.mark.parametrize(
    "cell",
    [
        "print(f'{4.0625:.3f}')",
        "print(f'{4.0625:{9}.{3}f}')",
        "print(f'{0.125:.0%} of them')",
        "print(f'{1 / 3}')",
        "print(f'{1 / 3!s:>30}')",
        "print(f'{torch.tensor(0.125):.2f}')",
        "print(f'{np.float32(0.125):.2f}')",
        "print(f'{[0.1 + 0.2]}')",
        "print(format(0.125, '.2f'))",
        "print('{:.2f} and {x}'.format(0.125, x=1))",
        "print('{x:.2f}'.format(x=0.125))",
        "print('{0[loss]:.2f}'.format({'loss': 0.125}))",
        "print('%.2f' % 0.125)",
        "print('%s: %.2f' % ('loss', 0.125))",
        "print('%(loss).2f' % {'loss': 0.125})",
        "print(0.1 + 0.2)",
        "print('sum:', 0.1 + 0.2, 3)",
        "print(*[1 / 3, 2])",
        "print(str(0.1 + 0.2))",
        "print(repr(0.1 + 0.2))",
        "print([1 / 3, 2])",
        "print({'loss': (1, 1 / 3)})",
        "print(round(0.125, 2))",
        "print(round(2.5))",
        "print(round(0.5000001))",
        "print([round(x, 2) for x in [0.125]])",
        "print(round(1 / 3, 9))",
        "print(torch.tensor([1.5, 0.03125]))",
        "print(torch.tensor(0.03125, requires_grad=True))",
        "print(np.array([1 / 3]))",
        "torch.tensor([1.5, 0.03125])",
        "np.array([[1 / 3]])",
        "np.float64(1 / 3)",
        "1 / 3",
        "[1 / 3]",
        "{'loss': 1 / 3}",
        "display(1 / 3)",
        "def say(x):\n    print(f'{x:.2f}')\nsay(0.125)",
        "print(f'{1e-9:.2f}')",  # 0.00 here, -0.00 on another machine
        "print(f'{-1e-9:.2f}')",
        "print(round(-1e-9, 2))",
        "print(torch.tensor([-0.0]))",
        "import sys\nsys.stdout.write(f'{0.125:.2f}')",
    ],
)
def test_a_number_on_an_edge_is_found(report, cell):
    assert "by a millionth" in report(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "print(f'{4.0624:.3f} {0.126:.2f} {1 / 3:.4f}')",
        "print(f'{1234567:,} {1234567:.2e} {25:.0e} {2**40}')",
        "print(1234567, 2**40, [1, 2], {'a': 3}, {1, 2}, range(3), torch.Size([1, 2]))",
        "print(0.1, 0.25, 12.5, 0.0001, 1e-05, [0.5, 2.0], {'lr': 0.1})",
        "print(f'{0.1} {12.5!r}')",
        "print(np.array([0.5, 1.0]), np.float32(0.1), np.arange(3))",
        "print(torch.tensor([4.0, 1.0]), torch.tensor([0.25]), torch.tensor([1, 2]))",
        "print('%d of %d' % (1, 2), 17 % 5, 1.75 % 0.5 == 0.25, 'a.b %s' % 'c')",
        "print('{} of {}'.format(1, 2), format(3, '03'), str(7), repr('x'))",
        "print(round(2.4), round(0.126, 2), round(0.1 + 0.2, 3))",
        "print([round(x, 2) + 0.0 for x in (-1e-9, 0.126)])",
        "print(f'{-1e-9:z.2f} {0.0:.1f}')",
        "print(torch.__version__, '2.15.0', 'model.py', None, True)",
        "print('an accuracy of 0.125 is low')",
        "print(float('inf'), float('nan'), f'{float(\"nan\"):.2f}')",
        "3",
        "0.5",
        "'text'",
        "torch.Size([1, 2])",
        "torch.tensor([True])",
        "1 / 3;",
        "x = f'{1 / 3:.2f}'\nprint(x)",
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(1.5, 2.5))",
    ],
)
def test_other_numbers_are_not_reported(report, cell):
    assert report(cell) == ""


@pytest.mark.parametrize(
    "cell",
    [
        "import statistics\nprint(','.join(map(str, [statistics.mean([1, 2])])))",
        "import subprocess\nprint(subprocess.getoutput('echo 1.$((2 + 3))'))",
        "import dataclasses\n@dataclasses.dataclass\nclass Row:\n    loss: float\nRow(3 / 2)",
    ],
)
def test_a_decimal_is_reported_whose_value_was_not_seen(report, cell):
    assert report(cell) == "1.5: its value was not seen"


def test_a_cell_writes_what_it_would_write_unchecked(shell, report, capsys):
    cell = (
        "print(f'{1 / 3:8.2f}|{0.125!r:>8}|', '{:.1f}'.format(2), '%5.1f' % 2, sep='-', end='!')\n"
        "left = round(-1e-9, 2), 7 % 4, format(2.5, '.0f')"
    )
    report(cell)
    assert capsys.readouterr().out == "    0.33|   0.125|-2.0-  2.0!"
    assert repr(shell.user_ns["left"]) == "(-0.0, 3, '2')"


def test_nbval_fails_such_a_cell_unless_a_tag_says_why_it_may_stay(tmp_path):
    notebook = nbformat.v4.new_notebook()
    for tags in ([], ["no-edge-typed"], ["nbval-ignore-output"]):
        cell = nbformat.v4.new_code_cell("print(f'{4.0625:.3f}')", metadata={"tags": tags})
        cell.execution_count = 1
        cell.outputs = [nbformat.v4.new_output("stream", text="4.062\n")]
        notebook.cells.append(cell)
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    options = "-q -p no:cacheprovider -p nbval_kernel --nbval --nbval-current-env --color=no"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), "tiny.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "4.062 is 4.063 if 4.0625 changes by a millionth" in done.stdout
