"""Make what "Step through a block" (chapters 2 and 3) loads when the reader starts it, as a script,
since a page opened from disk may not fetch files.

    python book/_tools/make_step.py [--train]

`book/_static/step/data.js` holds the book's small block, trained, between a stem and a classifier:
weights in 32 bits, the first test image of fashion-mini, and the code that the chapters list. The
weights that stand there are kept, so that the rest can be made anew on any machine; `--train`
trains others, in a minute.
"""

import argparse
import ast
import base64
import json

import notebooks
import numpy as np
import torch

from densenet_tutorial import DenseNet, data, training
from densenet_tutorial.utils import files

TARGET = notebooks.ROOT / "book" / "_static" / "step" / "data.js"
START = "// Made by book/_tools/make_step.py: do not edit.\nDenseNetStep.data = "
RECIPE = training.Recipe(
    epochs=30, batch_size=50, lr=0.1, schedule="one-cycle", augment=("flip",), seed=0
)
#: The functions that are shown, and the chapters whose listings have them.
CODE = {
    "DenseBlock.forward": "03_dense_block",
    "DenseLayer.bn_function": "02_dense_layer",
    "DenseLayer.forward": "02_dense_layer",
}


def small_network():
    """The small block of the book, between a stem and a classifier."""
    return DenseNet(
        growth_rate=4, block_config=(4,), num_init_features=8, num_classes=10, in_channels=1,
        stem="cifar",
    )  # fmt: skip


def trained(dataset):
    torch.manual_seed(RECIPE.seed)
    model = small_network()
    training.fit(model, dataset, RECIPE)
    return model.eval()


def tensors_of(model):
    return {k: v for k, v in model.state_dict().items() if v.is_floating_point()}


def content_of(path):
    return json.loads(path.read_text(encoding="utf-8").removeprefix(START).rstrip(";\n"))


def stored(path=TARGET):
    """The model whose weights `path` holds."""
    content = content_of(path)
    numbers = torch.from_numpy(np.frombuffer(base64.b64decode(content["float32"]), "<f4").copy())
    sizes = [shape for _, shape in content["tensors"]]
    parts = numbers.split([int(np.prod(shape)) for shape in sizes])
    model = small_network()
    state = model.state_dict()
    for (name, shape), part in zip(content["tensors"], parts, strict=True):
        state[name] = part.view(shape)
    model.load_state_dict(state)
    return model.eval()


def listed(chapter, name):
    """The lines of a method of a class that `chapter` lists."""
    class_name, method = name.split(".")
    for cell in notebooks.read(notebooks.ROOT / "book" / f"{chapter}.ipynb").cells:
        if "listing" in cell.metadata.get("tags", ()):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ClassDef) and node.name == class_name:
                    found = next(f for f in node.body if getattr(f, "name", "") == method)
                    return cell.source.split("\n")[found.lineno - 1 : found.end_lineno]
    raise ValueError(f"chapter {chapter} does not list {name}")


def script(model):
    """The content of data.js, for a trained model."""
    dataset = data.load_dataset("fashion-mini")
    block = model.features.denseblock1
    tensors = tensors_of(model)
    numbers = torch.cat([tensor.flatten() for tensor in tensors.values()])
    _, accuracy = training.evaluate(model, dataset)
    content = {
        "layers": len(block),
        "growthRate": block.denselayer1.growth_rate,
        "channels": block.denselayer1.norm1.num_features,
        "epsilon": block.denselayer1.norm1.eps,
        "right": round(accuracy * len(dataset.test_labels)),
        "tested": len(dataset.test_labels),
        "epochs": RECIPE.epochs,
        "trainedOn": len(dataset.train_labels),
        "classes": list(dataset.classes),
        "label": int(dataset.test_labels[0]),
        "mean": dataset.mean[0],
        "std": dataset.std[0],
        "side": dataset.test_images.shape[-1],
        "pixels": base64.b64encode(dataset.test_images[0].numpy().tobytes()).decode(),
        "code": [[name, listed(chapter, name)] for name, chapter in CODE.items()],
        "tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()],
        "float32": base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode(),
    }
    return f"{START}{json.dumps(content)};\n".encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train the weights anew")
    train = parser.parse_args().train
    made = script(trained(data.load_dataset("fashion-mini")) if train else stored())
    files.write(TARGET, made)
    print(f"{TARGET}: {len(made):,} bytes")
