"""Diagrams of chapters 6, 7 and 12: training loop, checkpoint, memory, batch norm, processes."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from densenet_tutorial.figures.diagrams.building import sources_of
from densenet_tutorial.figures.diagrams.svg import Diagram, Drawing, color_of, thousands
from densenet_tutorial.layers import DenseBlock, DenseLayer
from densenet_tutorial.memory import set_memory_efficient
from densenet_tutorial.training import Training
from densenet_tutorial.utils import arguments


def _step(drawing: Drawing, x: float, y: float, number: int) -> None:
    """The number of a step, in a disc with its middle at (x, y)."""
    drawing.circle(x, y, 9, "ink")
    drawing.text(x, y + 4.3, str(number), anchor="middle", bold=True, color="paper")


@arguments.check(training=arguments.instance_of(Training, "a Training"))
def training_loop(training: Training) -> Diagram:
    """The four lines of a step of `training`, and how often they run."""
    size, epochs = training.recipe.batch_size, training.recipe.epochs
    steps = training.steps_per_epoch
    numbers = sum(p.numel() for p in training.model.parameters())
    drawing = Drawing(f"Four lines are a step, {steps} steps an epoch")
    y = drawing.top + 6
    left, middle, right = 16, 128, 274
    picture = training.dataset.train_images[0]
    for shift in (8, 4, 0):
        drawing.rect(left + shift, y + 12 - shift, 50, 50, "paper", "line", line=1)
    inside = picture[0] if len(picture) == 1 else picture
    drawing.image(left + 1, y + 13, 48, 48, 255 - inside if len(picture) == 1 else inside)
    drawing.text(left, y + 79, f"{size} pictures")
    drawing.rect(middle, y + 15, 112, 44, "paper", "ink", radius=8, line=2)
    drawing.text(middle + 56, y + 34, "model", anchor="middle", bold=True)
    drawing.text(middle + 56, y + 50, f"{thousands(numbers)}", anchor="middle")
    drawing.rect(right, y + 15, 70, 44, "paper", "ink", radius=8, line=2)
    drawing.text(right + 35, y + 34, "loss", anchor="middle", bold=True)
    drawing.text(right + 35, y + 50, "1 number", anchor="middle")
    drawing.arrow((left + 66, y + 37), (middle - 2, y + 37), color="ink")
    drawing.arrow((middle + 112, y + 37), (right - 2, y + 37), color="ink")
    _step(drawing, 105, y + 20, 1)

    below = y + 112
    drawing.rect(middle, below, 112, 44, "wash", "ink-soft", radius=8, line=2)
    drawing.text(middle + 56, below + 19, "gradients", anchor="middle", bold=True)
    drawing.text(middle + 56, below + 35, f"{thousands(numbers)}", anchor="middle")
    drawing.arrow(
        (right + 35, y + 61),
        (right + 35, below + 22),
        (middle + 114, below + 22),
        color="ink",
        dashed=True,
    )
    _step(drawing, right + 3, below + 6, 3)
    drawing.text(right - 9, below + 42, "backward")
    _step(drawing, 105, below + 10, 2)
    drawing.arrow((70, below + 28), (middle - 3, below + 28), color="ink")
    drawing.text(24, below + 16, "to zero")
    drawing.arrow((middle + 56, below - 2), (middle + 56, y + 62), color="ink", width=2.4)
    _step(drawing, middle + 38, (below + y + 60) / 2, 4)
    drawing.text(middle + 68, (below + y + 60) / 2 + 4, "a little downhill")

    y = below + 76
    code = (
        "loss = cross_entropy(model(batch), labels)",
        "optimizer.zero_grad()",
        "loss.backward()",
        "optimizer.step()",
    )
    for i, line in enumerate(code, start=1):
        _step(drawing, 25, y - 4, i)
        drawing.text(42, y, line, mono=True)
        y += 24
    drawing.text(16, y + 4, f"After each of {epochs} epochs: evaluate, save.", color="ink-soft")
    return drawing.finish(
        y + 20,
        f"A loop of four steps. One: {size} pictures go through the model, which has "
        f"{thousands(numbers)} parameters, to the loss, one number. Two: the old gradients are set "
        "to zero. Three: backward, from the loss to as many gradients as there are parameters. "
        f"Four: each parameter moves a little downhill. {steps} steps are an epoch.",
    )


#: What each part of a checkpoint is for.
_MEANING = {
    "model": "weights and buffers",
    "optimizer": "momentum",
    "scheduler": "place in the schedule",
    "scaler": "scale of 16-bit gradients",
    "random": "random generators",
    "history": "finished epochs",
    "step": "steps since then",
    "sums": "loss and hits so far",
    "seconds": "time so far",
    "config": "model, data, recipe",
    "format": "which version this is",
}


def _count(value: Any) -> int:
    """How many numbers there are in tensors, anywhere in `value`."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, Mapping):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, (list, tuple)) else 0


def _as_state(value: Any) -> Any:
    if not isinstance(value, Mapping) or not {"model", "optimizer"} <= value.keys():
        raise TypeError
    return value


_state = arguments.Check(
    "the content of a checkpoint, a dict with 'model' and 'optimizer'", _as_state
)


@arguments.check(state=_state)
def checkpoint(state: Mapping[str, Any]) -> Diagram:
    """What a checkpoint holds, part by part, and what its weights alone would lose."""
    order = {name: i for i, name in enumerate(_MEANING)}
    names = sorted(state, key=lambda name: (order.get(name, len(order)), name))
    counts = {name: _count(state[name]) for name in names}
    drawing = Drawing("A checkpoint holds all that the next step needs")
    y = drawing.top + 4
    top = y
    for name in names:
        drawing.rect(38, y, 92, 22, "wash", "line", radius=3, line=1)
        drawing.text(46, y + 15.5, name, mono=True)
        drawing.text(140, y + 15.5, _MEANING.get(name, ""))
        if counts[name] > 0:
            drawing.text(344, y + 15.5, thousands(counts[name]), anchor="end", bold=True)
        y += 25
        if name == "model":
            drawing.path(f"M30 {top:.2f}h-5v22h5", None, "source-5", width=2)
    drawing.path(f"M20 {top:.2f}h-6V{y - 3:.2f}h6", None, "source-2", width=2)
    drawing.verdict(22, y + 16, False)
    drawing.text(36, y + 20, "model alone: runs on, but as a different run")
    drawing.verdict(22, y + 38, True)
    drawing.text(36, y + 42, "all of it: the same run, bit for bit on a CPU")
    return drawing.finish(
        y + 58,
        "The parts of a checkpoint file, one below the other: "
        + "; ".join(
            f"{name}, {_MEANING.get(name, 'another part')}"
            + (f", {thousands(counts[name])} numbers" if counts[name] else "")
            for name in names
        )
        + ".",
    )


# ---------------------------------------------------------------------------------- memory

#: The names of lanes and the tensors in them: what each part of a layer reads.
_LANES = {"norm1": "copies", "conv1": "after relu1", "norm2": "bottlenecks", "conv2": "after relu2"}
_MODES = (False, "checkpoint", "recompute", "minimal")


def kept_tensors(block: DenseBlock, mode: str | bool) -> dict[tuple[str, int], tuple[int, int]]:
    """What autograd keeps of `block` in `mode`, from a run with hooks on the saved tensors.

    Returns:
        By lane and the number of the layer that made it (0 is the input): its channels, and the
        first layer whose backward pass needs it, after which it is free.
    """
    block = copy.deepcopy(block).cpu().float().train()
    set_memory_efficient(block, mode)
    sources = sources_of(block)
    parts = {
        tensor.data_ptr(): (layer, name.split(".")[0])
        for layer, module in enumerate(block.values(), start=1)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    x = torch.randn(2, sources[0][1], 4, 4)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)  # held, so that no later one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)

    found: dict[tuple[str, int], tuple[int, int]] = {}

    def note(lane: str, made_by: int, channels: int, layer: int) -> None:
        first = min(layer, found.get((lane, made_by), (0, layer))[1])
        found[lane, made_by] = channels, first

    # An operation saves what it reads before its parameters. In front of that, a checkpoint saves
    # its inputs, the pieces.
    pieces = {x.untyped_storage().data_ptr(): 0}
    reads: dict[int, Tensor] = {}
    for tensor in saved:
        place = tensor.untyped_storage().data_ptr()
        if tensor.data_ptr() not in parts:
            reads |= {place: tensor} if tensor.dim() == 4 else {}
            continue
        layer, part = parts[tensor.data_ptr()]
        for place, read in reads.items():
            if read.untyped_storage().nbytes() > read.numel() * read.element_size():  # the buffer
                for source, channels in sources:
                    note("maps", source, channels, layer)
            elif place != list(reads)[-1]:
                note("maps", pieces.setdefault(place, len(pieces)), read.shape[1], layer)
            else:
                note(_LANES[part], layer, read.shape[1], layer)
        reads = {}
    return found


def _has_bottlenecks(block: Any) -> None:
    if any(getattr(layer, "bn_size", None) is None for layer in block.values()):
        raise ValueError("block must be a DenseBlock with bottlenecks, got one without")
    if len(block) > 6:
        raise ValueError(f"block must be a DenseBlock of at most 6 layers, got {len(block)}")


@arguments.check(_has_bottlenecks, block=arguments.instance_of(DenseBlock, "a DenseBlock"))
def saved_tensors(block: DenseBlock) -> Diagram:
    """A swim lane for each way to run `block`: what is kept for the backward pass, until when."""
    sources = sources_of(block)
    layers = len(sources) - 1
    modules: list[Any] = list(block.values())
    sizes = {
        "maps": dict(sources),
        "copies": {i: modules[i - 1].norm1.num_features for i in range(1, layers + 1)},
        "bottlenecks": {i: modules[i - 1].norm2.num_features for i in range(1, layers + 1)},
    }
    sizes["after relu1"], sizes["after relu2"] = sizes["copies"], sizes["bottlenecks"]
    lanes = ("maps", *_LANES.values())
    unit = 112 / sum(sum(sizes[lane].values()) for lane in lanes)
    kept_by = {mode: kept_tensors(block, mode) for mode in _MODES}
    totals = {
        mode: sum(
            channels
            for key, (channels, _) in kept.items()
            if key != ("maps", 0) or ("maps", layers) in kept  # the input is there anyway
        )
        for mode, kept in kept_by.items()
    }
    drawing = Drawing(f"Of {totals[False]} numbers a pixel, {totals['minimal']} have to be kept")
    left, right = 98.0, 344.0
    column = (right - left) / (2 * layers)
    y = drawing.top + 4

    def forward(layer: int) -> float:
        """Where layer's forward pass begins; the input is there from the start."""
        return left + max(0, layer - 1) * column

    def backward(layer: int) -> float:
        """Where its backward pass ends."""
        return right - (layer - 1) * column

    drawing.text((left + right) / 2 - 8, y, "forward", anchor="end", bold=True)
    drawing.text((left + right) / 2 + 8, y, "backward", bold=True)
    for layer in range(1, layers + 1):
        for x in (forward(layer), backward(layer) - column):
            drawing.text(x + column / 2, y + 17, str(layer), anchor="middle")
    drawing.text(16, y + 17, "layer")
    y += 32
    for mode, kept in kept_by.items():
        shared = ("maps", layers) in kept  # one buffer: copies are never made
        drawing.text(16, y + 6, "plain" if mode is False else f'"{mode}"', bold=True)
        drawing.text(right, y + 6, f"{totals[mode]} numbers a pixel", anchor="end", bold=True)
        y += 16
        top = y
        for lane in lanes:
            high = sum(sizes[lane].values()) * unit
            drawing.rect(left, y, right - left, high, "wash")
            drawing.text(left - 6, y + high / 2 + 4.2, lane, anchor="end", color="ink-soft")
            at = y
            for made_by, channels in sizes[lane].items():
                thick = channels * unit
                start = forward(made_by)
                if (lane, made_by) in kept:
                    length = backward(kept[lane, made_by][1]) - start
                    inside = sources[:made_by] if lane in ("copies", "after relu1") else ()
                    there = mode is not False and not shared and lane == "maps" and made_by == 0
                    if inside:
                        for source, width in inside:
                            drawing.rect(start, at, length, width * unit, color_of(source))
                            at += width * unit
                        at -= thick
                    else:
                        drawing.rect(
                            start,
                            at,
                            length,
                            thick,
                            color_of(made_by),
                            opacity=0.45 if there or lane != "maps" else 1,
                        )
                    drawing.line(
                        (start, at + thick), (start + length, at + thick), color="wash", width=0.8
                    )
                elif lane == "maps":
                    length = (left + right) / 2 - start
                    drawing.rect(start, at, length, thick, "line", opacity=0.4)
                elif not (shared and lane == "copies"):
                    for x in (start, backward(made_by) - column):
                        drawing.rect(
                            x + 1,
                            at + 1,
                            column - 2,
                            thick - 2,
                            None,
                            "ink-soft",
                            line=1,
                            dashed=True,
                        )
                at += thick
            y += high + 2.5
        drawing.line(((left + right) / 2, top), ((left + right) / 2, y - 2), color="ink", width=1)
        y += 18
    drawing.rect(16, y - 4, 18, 11, "source-0")
    drawing.text(40, y + 6, "kept")
    drawing.rect(98, y - 4, 18, 11, "line", opacity=0.4)
    drawing.text(122, y + 6, "there in the forward pass alone")
    y += 20
    drawing.rect(16, y - 4, 18, 11, None, "ink-soft", line=1, dashed=True)
    drawing.text(40, y + 6, "dropped, and made again")
    return drawing.finish(
        y + 22,
        "Four panels, one for each way to run the block, with five lanes each, over the forward "
        "and the backward pass. In the plain one nearly everything is filled, because copies, "
        "ReLUs and bottlenecks are kept until their layer's backward pass. Kept per pixel: "
        + ", ".join(f"{mode or 'plain'} {total}" for mode, total in totals.items())
        + " numbers.",
    )


def _trap(layer: Any, x: Tensor) -> list[tuple[str, int, float]]:
    """By way to run the first norm of `layer`: batches counted, and how far its mean has moved."""
    results = []
    for name in ("plain", "with PyTorch's checkpoint", "with this book's checkpoint"):
        run = copy.deepcopy(layer).cpu().float().train()
        run.norm1.reset_running_stats()
        inputs = x.clone().requires_grad_()
        if name == "plain":
            made = run.bn_function([inputs])
        elif name.startswith("with PyTorch"):
            made = torch_checkpoint(run.bn_function, [inputs], use_reentrant=False)
        else:
            set_memory_efficient(nn.Sequential(run), "checkpoint")
            made = run.bn_function([inputs])
        made.square().sum().backward()
        share = (run.norm1.running_mean / x.mean((0, 2, 3))).median().item()
        results.append((name, int(run.norm1.num_batches_tracked), share))
    return results


@arguments.check(layer=arguments.instance_of(DenseLayer, "a DenseLayer"))
def batch_norm_trap(layer: DenseLayer) -> Diagram:
    """How often the first norm of `layer` runs in a step, and how far its running mean moves."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, layer.norm1.num_features, 8, 8, generator=generator) + 1
    rows = _trap(layer, x)
    drawing = Drawing("Run twice, moved twice: the running mean goes too far")
    y = drawing.top + 6
    drawing.text(54, y, "forward", anchor="middle", color="ink-soft")
    drawing.text(150, y, "backward", anchor="middle", color="ink-soft")
    drawing.text(344, y, "running mean", anchor="end", color="ink-soft")
    zero, scale = 222.0, 540.0
    for name, seen, share in rows:
        y += 30
        drawing.text(16, y, name, bold=True)
        drawing.text(344, y, f"counted {seen}", anchor="end")
        y += 10
        again = name != "plain"
        drawing.rect(16, y, 76, 28, "wash", "source-0", radius=4, line=2)
        drawing.text(54, y + 18.5, "norm", anchor="middle")
        if again:
            drawing.rect(
                112,
                y,
                76,
                28,
                None,
                "source-5" if seen > 1 else "ink-soft",
                radius=4,
                line=2,
                dashed=True,
            )
            drawing.text(150, y + 18.5, "norm", anchor="middle")
        base = y + 22
        drawing.line((zero, base), (zero + 0.225 * scale, base), color="ink-soft")
        for tick in (0.0, 0.1, 0.2):
            at = zero + tick * scale
            drawing.line((at, base - 3), (at, base + 3), color="ink-soft")
            drawing.text(at, base + 18, f"{100 * tick:.0f} %", anchor="middle")
        at = 0.0
        moves = [share] if seen == 1 else [0.1, share]
        for move in moves:
            drawing.path(
                f"M{zero + at * scale:.2f} {base}Q{zero + (at + move) / 2 * scale:.2f} "
                f"{base - 26} {zero + move * scale:.2f} {base - 4}",
                None,
                "source-0" if move == moves[0] else "source-5",
                width=2,
            )
            at = move
        drawing.circle(
            zero + share * scale, base, 5, "source-5" if seen > 1 else "source-0", "paper"
        )
        drawing.verdict(205, y + 12, seen == 1)
        y += 34
    worst = max(share for _, _, share in rows)
    drawing.text(
        16,
        y + 26,
        f"of the way to the batch's mean: {100 * rows[0][2]:.0f} %, not {100 * worst:.0f} %",
    )
    return drawing.finish(
        y + 40,
        "Three ways to run the same batch norm in one training step: "
        + "; ".join(
            f"{name}: it counts {seen}, and its running mean moves {share:.0%} of the way"
            for name, seen, share in rows
        )
        + ".",
    )


# ------------------------------------------------------------------------------- processes


def _shares(batch: Tensor, processes: int) -> None:
    if len(batch) % processes or not 2 <= processes <= 3:
        raise ValueError(
            "processes must be 2 or 3, and divide the number of examples in batch, of shape "
            f"{list(batch.shape)}, got {processes}"
        )


@arguments.check(
    _shares,
    batch=arguments.tensor("floats", "N"),
    weight=arguments.finite_number,
    processes=arguments.positive_int,
)
def all_reduce(batch: Tensor, weight: float, processes: int = 2) -> Diagram:
    """One step of several processes for the smallest model: the loss of x is (weight x)²."""
    w = torch.tensor(float(weight), dtype=torch.float64, requires_grad=True)

    def gradient(x: Tensor) -> float:
        (found,) = torch.autograd.grad((w * x.double()).square().mean(), w)
        return float(found)

    shares = batch.cpu().chunk(processes)
    gradients = [gradient(share) for share in shares]
    whole, averaged = gradient(batch.cpu()), sum(gradients) / processes
    drawing = Drawing(f"{processes} processes, one gradient")
    y = drawing.top + 8
    wide, gap = (328 - 20 * (processes - 1)) / processes, 20
    columns = [16 + i * (wide + gap) for i in range(processes)]
    for rank, (x, share, found) in enumerate(zip(columns, shares, gradients)):
        middle = x + wide / 2
        drawing.rect(x, y, wide, 148, "wash", radius=8)
        drawing.rect(x, y + 220, wide, 96, "wash", radius=8)
        drawing.text(middle, y + 20, f"rank {rank}", anchor="middle", bold=True)
        side = min(26, (wide - 16) / len(share))
        for i, value in enumerate(share.tolist()):
            at = middle - len(share) * side / 2 + i * side
            drawing.rect(at + 1, y + 30, side - 2, 24, "paper", "line", radius=3, line=1)
            drawing.text(at + side / 2, y + 46.5, f"{value:g}", anchor="middle")
        drawing.arrow((middle, y + 56), (middle, y + 70))
        drawing.rect(middle - 42, y + 72, 84, 26, "paper", "ink", radius=6, line=2)
        drawing.text(middle, y + 89.5, f"w = {weight:g}", anchor="middle")
        drawing.arrow((middle, y + 100), (middle, y + 114), dashed=True)
        drawing.text(middle, y + 132, f"gradient {found:g}", anchor="middle", bold=True)
        drawing.arrow((middle, y + 140), (middle, y + 164), color="ink", width=2.2)
        drawing.arrow((middle, y + 206), (middle, y + 232), color="ink", width=2.2)
        drawing.text(middle, y + 250, f"gradient {averaged:g}", anchor="middle", bold=True)
        drawing.arrow((middle, y + 258), (middle, y + 272))
        drawing.rect(middle - 42, y + 274, 84, 26, "paper", "ink", radius=6, line=2)
        drawing.text(middle, y + 291.5, "the same w", anchor="middle")
    drawing.rect(16, y + 166, 328, 40, "paper", "source-0", radius=20, line=2.4)
    terms = " + ".join(f"{g:g}" for g in gradients)
    drawing.text(
        180, y + 191, f"all-reduce: ({terms}) / {processes} = {averaged:g}", anchor="middle"
    )
    y += 340
    drawing.text(16, y, f"The whole batch in one process: gradient {whole:g}.")
    return drawing.finish(
        y + 18,
        f"{processes} columns, one for each process. Each has its share of the batch and a copy of "
        f"the same weight, and computes a gradient: {terms.replace(' + ', ' and ')}. An all-reduce "
        f"across all columns makes the mean, {averaged:g}, which each gets and takes the same step "
        "with.",
    )
