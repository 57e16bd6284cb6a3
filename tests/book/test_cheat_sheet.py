"""The cheat sheet: what it says of models, formulas, commands and traps is so."""

import re
import shlex

import notebooks
import pytest
import torch

from densenet_tutorial import DenseBlock, DenseLayer, Transition, densenet, list_models, memory
from densenet_tutorial.__main__ import main
from densenet_tutorial.experiments import baselines
from densenet_tutorial.network import CONFIGS

TEXT = (notebooks.ROOT / "book" / "appendix" / "cheat_sheet.md").read_text(encoding="utf-8")


def rows(title):
    section = TEXT.partition(f"## The {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_models():
    # densenet_bc is densenet_bc_100_12 unless one says more.
    assert {row[0].strip("`") for row in rows("models")} == set(list_models()) - {"densenet_bc"}
    for name, growth_rate, blocks, parameters, multiply_adds in rows("models"):
        config = CONFIGS[name.strip("`")]
        with torch.device("meta"):
            model = densenet(name.strip("`"))
        size = 32 if config.get("stem") == "cifar" else 224
        assert int(growth_rate) == config["growth_rate"]
        assert tuple(map(int, blocks.split(", "))) == config["block_config"]
        assert int(parameters.replace(",", "")) == baselines.count(model)
        assert multiply_adds == f"{baselines.multiply_adds(model, size) / 1e9:.2f}"
        assert model.num_classes == (10 if size == 32 else 1000)


def kept(mode):
    """Numbers per pixel that the small block keeps, without its parameters."""

    def bytes_of(side):
        block = memory.set_memory_efficient(DenseBlock(4, 8, 4, 4, 0.0), mode)
        x = torch.randn(1, 8, side, side, requires_grad=True)
        return memory.saved_activation_bytes(block, x)

    return (bytes_of(32) - bytes_of(16)) / 4 / (32**2 - 16**2)


def small_block():
    return DenseBlock(4, 8, 4, 4, 0.0)


def weights(module, kind=torch.nn.Module):
    return sum(
        parameter.numel()
        for part in module.modules()
        if isinstance(part, kind)
        for parameter in part.parameters(recurse=False)
    )


#: What the package says about a block with 8 channels in and four layers of 4.
MEASURED = {
    "layer $\\ell$ computes": lambda: "",
    "layer $\\ell$ reads": lambda: ", ".join(
        str(layer.norm1.num_features) for layer in small_block().values()
    ),
    "block gives": lambda: str(small_block()(torch.zeros(1, 8, 2, 2)).shape[1]),
    # Each layer reads the input and all layers before it, and the output is read once more.
    "connections in it": lambda: str(sum(range(1, len(small_block()) + 1))),
    "convolutions of a layer": lambda: str(weights(DenseLayer(8, 4, 4, 0.0), torch.nn.Conv2d)),
    "the same and two norms": lambda: str(weights(DenseLayer(8, 4, 4, 0.0))),
    "without bottleneck": lambda: str(weights(DenseLayer(8, 4, None, 0.0), torch.nn.Conv2d)),
    "transition": lambda: str(Transition(24, 12)(torch.zeros(1, 24, 4, 4)).shape[1]),
    "kept per pixel, plain": lambda: f"{kept(False):g}",
    'kept, `"checkpoint"`': lambda: f"{kept('checkpoint'):g}",
    'kept, `"recompute"`': lambda: f"{kept('recompute'):g}",
    'kept, `"minimal"`': lambda: f"{kept('minimal'):g}",
}


def computed(formula, **letters):
    """The number that a formula in LaTeX gives."""
    text = (
        re.findall(r"\$([^$]*)\$", formula)[0].partition("C = ")[2]
        or re.findall(r"\$([^$]*)\$", formula)[0]
    )
    text = text.replace("k_0", "q").replace("\\lfloor", "").replace("\\rfloor", "")
    text = text.replace("\\theta", "t").replace("\\ell", "l").replace("^2", "**2")
    text = re.sub(r"(?<=[\dA-Za-z)])(?=[A-Za-z(])", "*", text.replace(" ", ""))
    return eval(text, {"q": 8, "k": 4, "L": 4, "t": 0.5, **letters})


@pytest.mark.parametrize("row", rows("formulas"), ids=lambda row: row[0])
def test_formulas(row):
    what, formula, example = row
    assert example == MEASURED[what]()
    if "computes" in what:
        return
    if "reads" in what:
        assert example == ", ".join(str(computed(formula, l=layer)) for layer in range(1, 5))
    else:
        channels = 24 if what == "transition" else 8
        assert float(example) == computed(formula, C=channels)


def test_bottleneck_pays_above_7_2_k():
    for channels in range(1, 80):
        bottleneck, plain = (DenseLayer(channels, 4, bn, 0.0) for bn in (4, None))
        fewer = weights(plain, torch.nn.Conv2d) < weights(bottleneck, torch.nn.Conv2d)
        assert fewer == (channels < 7.2 * 4)


def test_commands(capsys):
    """Each is one that the package has, with options that it has."""
    found = re.findall(r"^densenet-tutorial (.+)$", TEXT, re.MULTILINE)
    assert len(found) >= 5
    for command in found:
        words = shlex.split(command)
        with pytest.raises(SystemExit) as ended:
            main([*words[:1], "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words if word.startswith("--"))
    for target in re.findall(r"make (\w+)", TEXT):
        assert re.search(rf"^{target}:", (notebooks.ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_chapter_has_a_trap():
    traps = TEXT.partition("## The traps")[2].partition("\n## ")[0]
    named = set(re.findall(r"\(\.\./(\d\d)_", traps))
    there = {
        path.stem[:2]
        for path in notebooks.chapters()
        if "**Wrong on purpose.**" in path.read_text(encoding="utf-8")
    }
    assert named == there
