"""Make what the page `book/live.md` loads when the reader starts it: the trained weights that ship
with the package, and test images, as scripts, since a page opened from disk may not fetch files.

    python book/_tools/make_live.py

In `book/_static/live` appear data-weights.js (float16, as in the package, so nothing is lost) and
data-images.js; in `book/_images/live`, the figure that stands there before the start, on paper and
without scripts. Both scripts are the same, byte for byte, wherever they are made.
"""

import base64
import json
from pathlib import Path

import torch

from densenet_tutorial import data, densenet
from densenet_tutorial.utils import files

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "_static" / "live"
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


if __name__ == "__main__":
    for name, content in scripts().items():
        files.write(TARGET / name, content)
        print(f"{TARGET / name}: {len(content):,} bytes")
