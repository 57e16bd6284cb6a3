"""Folders of runs to go on with, what a run is told, and folders of images."""

import copy
import dataclasses
import json
import math
import os
import shutil
from random import Random

import numpy as np
import torch
from kinds import Kind, damaged
from PIL import Image

from densenet_tutorial import DenseNet, data, training
from densenet_tutorial.training import Recipe, run_folder

RECIPE = Recipe(epochs=3, batch_size=10, augment=("crop",), schedule="one-cycle", lr=0.05)

#: What a file or a program may hold in the place of something sensible.
STRANGE = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    -0.5,
    1e30,
    2**31,
    2**63,
    2**70,
    math.nan,
    math.inf,
    "",
    "no",
    "step",
    "crop",
    b"x",
    [],
    [1],
    {},
    {"epoch": 1},
    (),
    ("crop", "flip"),
    torch.zeros(2),
    torch.zeros(0),
    torch.full((2,), math.nan),
    torch.zeros(3, dtype=torch.uint8),
    torch.tensor(7),
]


def model():
    torch.manual_seed(0)
    return DenseNet(2, (1,), 4, 1, num_classes=10, in_channels=1, stem="cifar")


def strange(random: Random):
    return copy.deepcopy(random.choice(STRANGE))


def changed(value, random: Random):
    """`value` with something somewhere in it replaced, removed, doubled or moved."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, fault = random.choice(list(keys)), random.randrange(12)
        if fault == 0:
            del value[key]
        elif fault == 1:
            other = random.choice(list(keys))
            value[key], value[other] = value[other], value[key]
        elif fault == 2 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        else:
            value[key] = changed(value[key], random)
        return value
    if isinstance(value, torch.Tensor) and value.numel() and random.random() < 0.7:
        value = value.clone(memory_format=torch.contiguous_format)
        numbers = (
            [0, 1, 255] if value.dtype == torch.uint8 else [0, 1, -1, 1e30, math.nan, math.inf]
        )
        if value.is_floating_point() or value.dtype == torch.uint8:
            value.view(-1)[random.randrange(value.numel())] = random.choice(numbers)
        return value
    return strange(random)


class OfRuns(Kind):
    """A run that was stopped in its second epoch, another one, and how the first one ends."""

    def __init__(self, folder):
        super().__init__(folder)
        torch.set_num_threads(1)
        digits = data.load_dataset("digits")
        few = {f"train_{n}": getattr(digits, f"train_{n}")[:30] for n in ("images", "labels")}
        few |= {f"test_{n}": getattr(digits, f"test_{n}")[:20] for n in ("images", "labels")}
        self.dataset = dataclasses.replace(digits, **few)
        self.stopped, self.other = folder / "stopped", folder / "other"
        self.end = self.fit(folder / "whole")
        self.fit(self.other)
        try:
            self.fit(self.stopped, stop_after=5)
        except KeyboardInterrupt:
            pass

    def fit(self, output, stop_after=None, recipe=RECIPE, **options):
        """Train; the weights at the end."""
        net, steps = model(), 0

        def count(module, inputs):
            nonlocal steps
            steps += module.training
            if module.training and steps == stop_after:
                os.kill(os.getpid(), 2)

        net.register_forward_pre_hook(count)
        options = {"progress": False} | options
        history = training.fit(net, self.dataset, recipe, output=output, **options)
        assert [row["epoch"] for row in history] == list(range(1, recipe.epochs + 1))
        state = {name: value.clone() for name, value in net.state_dict().items()}
        assert all(value.isfinite().all() for value in state.values())
        return state

    def resume(self, folder, same: bool) -> None:
        """Go on with the run in `folder`. Refused, it is as it was; else it ends as if nothing had
        been.
        """
        before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        try:
            end = self.fit(folder, resume=True)
        except ValueError as error:
            if "not finite any more" not in str(error):  # numbers that were changed, not refused
                assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
            raise
        assert not same or all(torch.equal(end[name], value) for name, value in self.end.items())
        assert {path.name for path in folder.iterdir()} >= set(run_folder.FILES)

    def copied(self):
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        return shutil.copytree(self.stopped, self.folder / "run")


class Folders(OfRuns):
    """Files of a run are damaged, missing, another run's, or something else."""

    name = "run folder"

    def case(self, random: Random) -> None:
        folder = self.copied()
        for _ in range(random.choice([1, 1, 2])):
            path = folder / random.choice([*run_folder.FILES, "last.pt", "best.pt", "config.json"])
            fault = random.randrange(8)
            if path.is_dir() or not path.exists():
                continue
            if fault == 0:
                path.unlink()
            elif fault == 1:
                shutil.copy(self.other / path.name, path)
            elif fault == 2:
                shutil.copy(folder / random.choice(os.listdir(folder)), self.folder / "moved")
                shutil.move(self.folder / "moved", path)
            elif fault == 3:
                path.unlink()
                path.mkdir()
            else:
                path.write_bytes(damaged(path.read_bytes(), random))
        self.resume(folder, same=True)


class States(OfRuns):
    """What a checkpoint holds is something else, in a file that is whole."""

    name = "run state"

    def case(self, random: Random) -> None:
        folder = self.copied()
        state = torch.load(folder / "last.pt", weights_only=True)
        for _ in range(random.choice([1, 1, 2])):
            state = changed(state, random)
        torch.save(state, folder / "last.pt")
        self.resume(folder, same=False)


class Configurations(OfRuns):
    """What a configuration says is something else."""

    name = "run configuration"

    def case(self, random: Random) -> None:
        folder = self.copied()
        config = changed(run_folder.read_config(folder), random)
        try:
            text = json.dumps(config)
        except TypeError:
            text = repr(config)
        (folder / "config.json").write_text(text)
        self.resume(folder, same=True)


class Recipes(OfRuns):
    """What a program tells `fit`."""

    name = "recipe"

    def case(self, random: Random) -> None:
        names = [field.name for field in dataclasses.fields(Recipe)]
        sensible = {"epochs": 1, "batch_size": np.int64(10), "amp": "fp16", "augment": ["flip"]}
        sensible |= {"clip_norm": np.float32(1), "schedule": "cosine", "lr": 1e-3, "seed": 3}
        given = {name: strange(random) for name in random.sample(names, random.choice([0, 1, 2]))}
        recipe = dataclasses.replace(RECIPE, **sensible)
        recipe = dataclasses.replace(recipe, **given)
        if recipe.epochs > 3 or recipe.compile:  # would only take long
            recipe = dataclasses.replace(recipe, epochs=1, compile=False)
        options = {
            name: strange(random)
            for name in ("output", "resume", "allow_changes", "model_config", "initial_weights")
            if random.random() < 0.15 or (name == "output" and random.random() < 0.5)
        }
        if isinstance(options.get("output"), str):
            options["output"] = str(self.folder / f"out{random.random()}")
        self.fit(options.pop("output", None), recipe=recipe, **options)


class Images(Kind):
    """Folders of images by class."""

    name = "image folder"

    def case(self, random: Random) -> None:
        root = self.folder / "images"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        parts = random.choice([[""], ["train", "val"], ["train", "test"], ["train"], ["val"]])
        classes = random.sample(
            ["a", "b", "train", "val", ".hidden", "c d", "é"], random.randrange(4)
        )
        for part in parts:
            for name in classes[: random.choice([1, 3, 3, 3])]:
                (root / part / name).mkdir(parents=True, exist_ok=True)
                for number in range(random.choice([0, 1, 2, 3, 5])):
                    self.image(root / part / name / f"{number}", random)
        if random.random() < 0.1:
            (root / "loop").symlink_to(root, target_is_directory=True)
        dataset = data.load_folder(root, progress=False)
        files = sum(len(names) for _, _, names in os.walk(root))
        assert 2 <= len(dataset.train_images) + len(dataset.test_images)
        assert "loop" in dataset.classes or (
            len(dataset.train_images) + len(dataset.test_images) <= files
        )
        assert dataset.normalize(dataset.train_images).isfinite().all()

    def image(self, path, random: Random) -> None:
        size = random.choice([(8, 8), (8, 8), (8, 8), (1, 1), (40, 3), (300, 200)])
        mode = random.choice(["L", "RGB", "RGB", "RGBA", "P"])
        end = random.choice([".png", ".png", ".jpg", ".gif", ".txt", ".PNG", ".webp", ""])
        image = Image.new(mode, size, random.randrange(256))
        image.putpixel((0, 0), random.randrange(256))
        image = image.convert("RGB") if end in (".jpg", ".webp") else image
        image.save(
            path.with_suffix(end) if end else path,
            format=None if end.lower() in (".png", ".jpg", ".gif", ".webp") else "PNG",
        )
        if random.random() < 0.02:
            file = path.with_suffix(end) if end else path
            file.write_bytes(damaged(file.read_bytes(), random))


KINDS = [Folders, States, Configurations, Recipes, Images]
