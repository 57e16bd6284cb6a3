"""Files of weights, checkpoints of ours that are read as weights, and state dicts."""

import copy
import importlib.util
import io
import pickle
import pickletools
import re
import zipfile
from random import Random

import torch
import torchvision
from kinds import Kind, damaged
from test_layouts import chexnet, nested, old_keys, prefixed

from densenet_tutorial import densenet, weights
from densenet_tutorial.weights import layouts

OPTIONS = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8}
CONFIG = {
    "model": {
        "name": "densenet_bc",
        "num_classes": 5,
        "in_channels": 3,
        "stem": "imagenet",
        **OPTIONS,
        "block_config": [2, 3],
    },
    "dataset": {
        "name": "few",
        "classes": list("abcde"),
        "image_shape": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    },
}


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class OfWeights(Kind):
    """What they have in common: a small network, and how what was read is compared with it."""

    def __init__(self, folder):
        super().__init__(folder)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torchvision.models.DenseNet(**OPTIONS, num_classes=5)
        model(torch.randn(4, 3, 64, 64))
        self.state = dict(model.state_dict())
        self.checkpoint = {
            "format": layouts.CHECKPOINT_FORMAT,
            "config": CONFIG,
            "model": self.state,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
            "history": [{"epoch": 1, "test_accuracy": 0.5}],
        }

    def read(self, content, strict=True) -> None:
        """Read bytes or a state dict, and load it; `strict`ly, the numbers are those of the
        network.
        """
        given = content
        if isinstance(content, bytes):
            given = self.folder / "weights.pt"
            given.write_bytes(content)
        found = weights.read(given)
        assert all(
            value.dtype == torch.float32 for k, value in found.model.items() if "num_" not in k
        )
        assert all(value.isfinite().all() for value in found.model.values())
        if found.config is None:
            model = densenet("densenet121", weights=found, **OPTIONS)
        else:
            model = densenet("densenet_bc", weights=found, stem="imagenet")
        if strict:
            state = model.state_dict()
            assert all(torch.equal(state[k], v) for k, v in self.state.items() if "num_" not in k)


class Archives(OfWeights):
    """PyTorch's format, which has checksums: what is read is right to the bit."""

    name = "archive"

    def __init__(self, folder):
        super().__init__(folder)
        self.contents = [saved(self.state), saved(self.checkpoint), saved(chexnet(self.state))]

    def case(self, random: Random) -> None:
        self.read(damaged(random.choice(self.contents), random))


class Records(OfWeights):
    """The same, damaged by somebody who makes the checksums right again, so that other numbers are
    nobody's fault.
    """

    name = "archive, checksums right"

    def __init__(self, folder):
        super().__init__(folder)
        self.contents = []
        for content in (self.state, self.checkpoint, chexnet(self.state)):
            with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
                self.contents.append({name: archive.read(name) for name in archive.namelist()})

    def case(self, random: Random) -> None:
        records = dict(random.choice(self.contents))
        pickled = next(name for name in records if name.endswith("data.pkl"))
        for _ in range(random.choice([1, 1, 2])):
            name = random.choice([pickled, pickled, pickled, *records])
            if name not in records:
                continue
            fault = random.randrange(5)
            if fault == 0 and name != pickled:
                del records[name]
            elif fault == 1:
                other = random.choice(list(records))
                records[name], records[other] = records[other], records[name]
            elif fault <= 3 and name == pickled:
                records[name] = other_instructions(records[name], random)
            else:
                records[name] = damaged(records[name], random)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", random.choice([0, 0, 0, 8])) as archive:
            for name, content in records.items():
                archive.writestr(name, content)
        self.read(buffer.getvalue(), strict=False)


HOSTILE = [
    b"cposix\nsystem\n(X\x06\0\0\0exit 9tR",
    b"cbuiltins\neval\n(X\x04\0\0\0q**qtR",
    b"c__builtin__\nexec\n",
    b"ctorch\nload\n(X\x01\0\0\0atR",
    b"ctorch._utils\n_rebuild_tensor_v2\n(ttR",
    b"ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsNsb",
    b"ctorch\nfloat32\n}b",
    b"\x8a\xff" + b"\x7f" * 255,
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"\x8e" + (2**62).to_bytes(8, "little"),
    b"}" * 5000,
    b"(" * 5000 + b"l" * 5000,
    b")" + b"\x85" * 50_000,
    b"]\x94h\0a",
    b"}h\0K\0h\0s",
    b"J\xff\xff\xff\xff",
    b"(J\0\0\0\x80J\0\0\0\x80t",
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQ",
    b"\x8f(K\1\x90",
    b"i__builtin__\neval\n",
    b"\x96" + (2**50).to_bytes(8, "little"),
]


def other_instructions(content: bytes, random: Random) -> bytes:
    """A pickle some of whose instructions are left out, repeated, moved, or others."""
    starts = [place for _, _, place in pickletools.genops(content)]
    ends = [*starts[1:], len(content)]
    steps = [content[start:end] for start, end in zip(starts, ends)]
    for _ in range(random.choice([1, 1, 2, 5])):
        one, other = (random.randrange(len(steps)) for _ in range(2))
        fault = random.randrange(6)
        if fault == 0:
            del steps[one]
        elif fault == 1:
            steps.insert(one, steps[other])
        elif fault == 2:
            steps[one] = steps[other]
        elif fault == 3:
            steps[one], steps[other] = steps[other], steps[one]
        elif fault == 4:
            steps.insert(one, random.choice(HOSTILE))
        else:
            number = random.choice([0, 1, 2, 255, 2**31 - 1, -1, -(2**31)])
            steps[one] = b"J" + number.to_bytes(4, "little", signed=True)
    return b"".join(steps)


class Chains(OfWeights):
    """PyTorch's old format, which has no checksums: a damaged number is a number."""

    name = "old format"

    def __init__(self, folder):
        super().__init__(folder)
        old = {"_use_new_zipfile_serialization": False}
        self.contents = [saved(old_keys(self.state), **old), saved(self.checkpoint, **old)]

    def case(self, random: Random) -> None:
        content = random.choice(self.contents)
        if random.randrange(2):
            return self.read(damaged(content, random), strict=False)
        pickles, parts = io.BytesIO(content), []
        for _ in range(5):
            start = pickles.tell()
            for _ in pickletools.genops(pickles):
                pass
            parts.append(content[start : pickles.tell()])
        part = random.choice([3, 3, 3, 4, random.randrange(5)])
        parts[part] = other_instructions(parts[part], random)
        self.read(b"".join(parts) + content[pickles.tell() :], strict=False)


class Safetensors(OfWeights):
    """Its header is held to the file's size; it has no checksums either."""

    name = "safetensors"

    def __init__(self, folder):
        super().__init__(folder)
        from safetensors.torch import save

        self.contents = [save(self.state), save(prefixed("module.")(self.state))]

    def case(self, random: Random) -> None:
        content = random.choice(self.contents)
        length = int.from_bytes(content[:8], "little")
        if random.randrange(2):
            header = damaged(content[8 : 8 + length], random)
            length = len(header) if random.randrange(4) else length
            content = length.to_bytes(8, "little") + header + content[8 + length :]
        else:
            content = damaged(content, random)
        self.read(content, strict=False)


class Pickles(OfWeights):
    """Bare pickles, pictures, text, and other files that somebody takes for weights."""

    name = "no weights"

    def __init__(self, folder):
        super().__init__(folder)
        self.contents = [
            pickle.dumps({key: value.tolist() for key, value in list(self.state.items())[:9]}),
            b"<!doctype html><html>404</html>",
            b"\x89PNG\r\n\x1a\n" + bytes(500),
            b"PK\3\4" + bytes(100),
            b'{"weights": [1, 2, 3]}',
            bytes(5000),
        ]

    def case(self, random: Random) -> None:
        self.read(damaged(random.choice(self.contents), random))


class StateDicts(OfWeights):
    """State dicts in layouts that people make, which are read; with a fault in them, which are
    refused.
    """

    name = "layout"

    def case(self, random: Random) -> None:
        state, faulty = dict(self.state), random.randrange(3) == 0
        if faulty:
            key = random.choice([k for k in state if not k.endswith("num_batches_tracked")])
            fault = random.choice(FAULTS)
            state = fault(state, key)
        content = state
        changes = [
            one for one in CHANGES if not faulty or one != half_and_back
        ]  # this would mend it
        for change in random.sample(changes, random.randrange(4)):
            content = change(content, random)
        if random.randrange(3) == 0:
            content = nested(content)
        for _ in range(random.randrange(3)):
            content = wrapped(content, random)
        if random.randrange(2) or isinstance(content, list):
            try:
                content = saved(content, _use_new_zipfile_serialization=bool(random.randrange(2)))
            except (RuntimeError, NotImplementedError) as error:  # of a sparse tensor, say
                raise ValueError("torch.save does not even write it") from error
        self.read(content)
        assert not faulty, f"{fault.__name__} of {key} was not seen"


def word(random: Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz_ABC0123456789 -äß"
    return "".join(random.choices(letters, k=random.randrange(1, 9)))


def wrapped(content, random):
    beside = {word(random): random.choice([3, "x", None, [1.5], {"lr": 0.1}, torch.ones(2)])}
    kind = random.randrange(3)
    if kind == 0:
        return beside | {f"{word(random)}+": content}
    if kind == 1:
        return [beside, content]
    content = {f"{word(random)}+": content}
    return content | beside | {"itself": content}


def any_prefix(state, random):
    return prefixed(".".join(word(random) for _ in range(random.randrange(1, 4))) + ".")(state)


def dots(state, random):
    return old_keys(state) if any(k.endswith("running_var") for k in state) else state


def another_head(state, random):
    name = ".".join(word(random) for _ in range(random.randrange(1, 3)))
    return {re.sub(r"\bclassifier\.", f"{name}+.", k): v for k, v in state.items()}


def more(state, random):
    return state | {f"{word(random)}+.weight": torch.ones(random.randrange(1, 4))}


def half_and_back(state, random):
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def wrapper_inside(state, random):
    part = random.choice(
        ["denseblock1", "denselayer2", "conv0", "transition1", "norm5", "features"]
    )
    name = random.choice(["module", "_orig_mod", f"{word(random)}+"])
    return {re.sub(rf"\b{part}\.", f"{part}.{name}.", k): v for k, v in state.items()}


def twice(state, random):
    return prefixed("one.")(state) | prefixed("other.")(copy.deepcopy(state))


CHANGES = [any_prefix, dots, another_head, more, half_and_back, wrapper_inside, twice]


def integers(state, key):
    return state | {key: state[key].round().int()}


def complex_numbers(state, key):
    return state | {key: state[key].cfloat()}


def sparse(state, key):
    return state | {key: state[key].to_sparse()}


def meta(state, key):
    return state | {key: state[key].to("meta")}


def expanded(state, key):
    return state | {key: torch.ones(1).expand(3 * state[key].numel())}


def expanded_to_its_shape(state, key):
    return state | {key: torch.ones([1] * state[key].dim()).expand(state[key].shape)}


def not_numbers(state, key):
    changed = state[key].clone()
    changed.view(-1)[-1] = torch.nan
    return state | {key: changed}


def infinite(state, key):
    return {k: v * torch.inf if k == key else v for k, v in state.items()}


def negative_variances(state, key):
    return {k: -v if k.endswith("running_var") else v for k, v in state.items()}


def missing(state, key):
    return {k: v for k, v in state.items() if k != key or k == "classifier.bias"} | (
        {"features.norm9.weight": torch.ones(1)} if key == "classifier.bias" else {}
    )


def of_another_shape(state, key):
    return state | {key: torch.ones(state[key].numel() + 1)}


def another_part(state, key):
    return state | {"features.denseblock1000000000.denselayer1.conv1.weight": torch.ones(3)}


def two_that_differ(state, key):
    return prefixed("a.")(state) | prefixed("b.")(state | {key: state[key] + 1})


FAULTS = [integers, complex_numbers, sparse, meta, expanded, expanded_to_its_shape, not_numbers]
FAULTS += [infinite, negative_variances, missing, of_another_shape, another_part, two_that_differ]


class Checkpoints(OfWeights):
    """Checkpoints of ours whose configuration somebody has changed."""

    name = "checkpoint"

    def case(self, random: Random) -> None:
        content = copy.deepcopy({k: v for k, v in self.checkpoint.items() if k != "model"})
        for _ in range(random.choice([1, 1, 2, 3])):
            place = random.choice([content, content["config"], *content["config"].values()])
            if not isinstance(place, dict) or not place:
                continue
            key = random.choice(list(place))
            if random.randrange(3) == 0:
                del place[key]
            else:
                place[random.choice([key, key, key, word(random)])] = value(random)
            if not isinstance(content.get("config"), dict):
                break
        path = self.folder / "best.pt"
        path.write_bytes(saved(content | {"model": self.state}))
        refused = []
        for function in (
            lambda: weights.transforms(path)(torch.zeros(3, 40, 50, dtype=torch.uint8)),
            lambda: weights.categories(path)[4],
            lambda: self.read(path.read_bytes()),
        ):
            try:
                function()
            except ValueError as error:
                refused.append(error)
        if refused:
            raise refused[0]


def value(random: Random):
    return random.choice(
        [
            *(None, True, 0, 1, -1, 4, 10**6, 10**12, 2**70, 0.5, -0.5, float("nan"), 1e308),
            *("", "densenet121", "x" * 200, "\x1b[2J", b"\0", [], [4], [2, 3], [10**9] * 3),
            *({}, {"name": 3}, [[1], [2]], ["a"] * 5, [0.5] * 3, torch.ones(3), (1, 2, 3)),
            *("densenet-tutorial checkpoint 2", "densenet-tutorial checkpoint", "imagenet"),
        ]
    )


KINDS = [Archives, Records, Chains, Pickles, StateDicts, Checkpoints]
if importlib.util.find_spec("safetensors"):
    KINDS.append(Safetensors)
