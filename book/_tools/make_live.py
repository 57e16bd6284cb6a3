"""Make what the page `book/live.md` loads when the reader starts it: the trained weights that ship
with the package, and test images, as scripts, since a page opened from disk may not fetch files.

    python book/_tools/make_live.py

In `book/_static/live` appear data-weights.js (float16, as in the package, so nothing is lost) and
data-images.js, the same, byte for byte, wherever they are made; in `book/_images/live`, light and
dark, the figure that stands there before the start, on paper and without scripts.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from densenet_tutorial import data, densenet, figures, insight
from densenet_tutorial.figures import style
from densenet_tutorial.utils import files

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "_static" / "live"
FIGURES = ROOT / "book" / "_images" / "live"
WEIGHTS = "fashion-mnist-small"
#: Images per class of the small test set, and of those that the reader can choose.
COUNTED, SHOWN = 20, 2
HEADER = "// Made by book/_tools/make_live.py: do not edit.\n"


def as_script(name, content):
    """A script that assigns `content` to a property of the page's one namespace."""
    return f"{HEADER}DenseNetLive.{name} = {json.dumps(content)};\n".encode()


def base64_of(tensor):
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def weights_script():
    model = densenet("densenet_bc", weights=WEIGHTS).eval()
    tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    assert all(torch.equal(halves[name].float(), tensor) for name, tensor in tensors.items())
    norm = model.features.norm5
    content = {
        "name": WEIGHTS,
        "blocks": [len(m) for n, m in model.features.named_children() if "block" in n],
        "growthRate": model.features.denseblock1.denselayer1.growth_rate,
        "epsilon": norm.eps,
        "tensors": [[name, list(tensor.shape)] for name, tensor in halves.items()],
        "float16": base64_of(torch.cat([tensor.flatten() for tensor in halves.values()])),
    }
    return as_script("weights", content)


def test_images(dataset, per_class):
    """Indices of the first `per_class` test images of every class, in their original order."""
    chosen = [(dataset.test_labels == c).nonzero()[:per_class] for c in range(len(dataset.classes))]
    return torch.cat(chosen).flatten().sort().values


def images_script():
    dataset = data.load_dataset("fashion-mini")
    counted = test_images(dataset, COUNTED)
    shown = test_images(dataset, SHOWN)
    content = {
        "classes": list(dataset.classes),
        "mean": dataset.mean[0],
        "std": dataset.std[0],
        "side": dataset.test_images.shape[-1],
        "labels": dataset.test_labels[counted].tolist(),
        "shown": torch.isin(counted, shown).nonzero().flatten().tolist(),
        "pixels": base64_of(dataset.test_images[counted]),
    }
    return as_script("data", content)


def scripts():
    """The content of every script, by its name."""
    return {"data-weights.js": weights_script(), "data-images.js": images_script()}


# The figure has the page's own measures, in pixels of a screen: see live.css and maps.js.
STEP, ROWS, GAP, BLOCK_GAP, TOP, CELL = 18, 12, 8, 18, 44, 26
LOOKS = {
    "light": {"ink": "#1f2328", "paper": "#ffffff", "cell": "#0072b2", "fill": 0.72,
              "maps": ["#b35806", "#f4f2f7", "#5e3c99"]},
    "dark": {"ink": "#e6e8eb", "paper": "#121212", "cell": "#4aa8e0", "fill": 0.46,
             "maps": ["#ffa45c", "#1d222a", "#c3b1ff"]},
}  # fmt: skip


def parts_to_show(model, image):
    """Two rows of strips: name, maps (C, H, W), mean weights of the connections that it reads."""
    with torch.no_grad():
        found = model.intermediate_features(image)
    k = model.features.denseblock1.denselayer1.growth_rate
    rows, row = [], [("stem", found["stem"][0], None)]
    blocks = [name for name in found if "block" in name]
    for b, block in enumerate(blocks, start=1):
        reuse = insight.feature_reuse(model, block)
        layers = len(reuse) - 1
        maps = found[block][0]
        first = len(maps) - layers * k
        for layer in range(1, layers + 1):
            own = maps[first + (layer - 1) * k : first + layer * k]
            row.append((str(layer), own, reuse[:layer, layer - 1]))
        end = found.get(f"transition{b}")
        name = "class" if end is None else f"tr. {b}"
        row.append((name, None if end is None else end[0], reuse[:, layers]))
        if b != 1:
            rows.append(row)
            row = []
    return rows


def tiled(maps, columns):
    """Maps (C, H, W) as one picture of squares of STEP - 1 pixels, scaled together."""
    most = maps.abs().flatten().quantile(0.98)
    picture = np.full((STEP * ROWS, STEP * columns), np.nan)
    big = torch.nn.functional.interpolate(maps[None], size=(STEP - 1, STEP - 1))[0] / most
    for i, one in enumerate(big.clamp(-1, 1)):
        y, x = STEP * (i // columns), STEP * (i % columns)
        picture[y : y + STEP - 1, x : x + STEP - 1] = one
    return picture


def overview(model, image, look):
    """The network as the page shows it: strips of maps, and below each the connections it reads."""
    rows = parts_to_show(model, image)
    colours = style.COLORS[:7] + (look["ink"],)
    maps_colours = LinearSegmentedColormap.from_list("maps", look["maps"])
    width = 484
    height = sum(TOP + STEP * ROWS + CELL * (len(row[-1][2]) + 1) for row in rows) - CELL
    figure = Figure(figsize=(width / 100, height / 100), dpi=200, facecolor=look["paper"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    paper, cell = np.array(to_rgb(look["paper"])), np.array(to_rgb(look["cell"]))
    text = {"ha": "center", "va": "center", "fontsize": 11, "color": look["ink"]}
    top = TOP
    for row in rows:
        x = 4
        for name, maps, reuse in row:
            columns = 4 if maps is None else -(-len(maps) // ROWS)
            wide = STEP * columns - 1
            source = int(name) if name.isdigit() else 0
            axes.text(x + wide / 2, top - 24, name, **text)
            style_of = {"facecolor": colours[source % 8], "hatch": style.HATCHES[source % 8]}
            if name[0] in "tc":
                style_of = {"facecolor": style.GREY}
            bar = {"edgecolor": look["paper"], "linewidth": 0} | style_of
            axes.add_patch(Rectangle((x, top - 13), wide, 8, **bar))
            if maps is not None:
                axes.imshow(
                    np.ma.masked_invalid(tiled(maps, columns)), cmap=maps_colours, vmin=-1, vmax=1,
                    extent=(x, x + STEP * columns, top + STEP * ROWS, top), interpolation="nearest",
                    aspect="auto",
                )  # fmt: skip
            else:
                axes.text(x + wide / 2, top + STEP * ROWS / 2, "10\nscores", **text)
            below = [] if reuse is None else (reuse / reuse.max()).tolist()
            for i, share in enumerate(below):
                y = top + STEP * ROWS + 6 + CELL * i
                fill = paper + (cell - paper) * look["fill"] * share
                box = {"facecolor": fill, "edgecolor": style.GREY, "linewidth": 0.7}
                axes.add_patch(Rectangle((x, y), wide, CELL - 3, **box))
                axes.add_patch(Rectangle((x, y), 6, CELL - 3, facecolor=colours[i % 8]))
                axes.text(x + wide / 2 + 3, y + CELL / 2 - 2, "in" if i == 0 else str(i), **text)
            x += wide + GAP + (BLOCK_GAP - GAP if name.startswith("tr") else 0)
        top += TOP + STEP * ROWS + CELL * (len(row[-1][2]) + 1)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def draw():
    """The figure, light and dark, as PNG files by name."""
    model = densenet("densenet_bc", weights=WEIGHTS).eval()
    dataset = data.load_dataset("fashion-mini")
    image = dataset.normalize(dataset.test_images[:1])
    drawn = {}
    for name, look in LOOKS.items():
        png = io.BytesIO(figures.png(overview(model, image, look)))
        small = io.BytesIO()
        picture = Image.open(png).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE)
        picture.save(small, "PNG", optimize=True)
        drawn[f"overview-{name}.png"] = small.getvalue()
    return drawn


if __name__ == "__main__":
    for folder, made in ((TARGET, scripts()), (FIGURES, draw())):
        for name, content in made.items():
            files.write(folder / name, content)
            print(f"{folder / name}: {len(content):,} bytes")
