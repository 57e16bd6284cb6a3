"""Random models, changes to them and ways of using them: does each memory-efficient mode do what
the plain model does?

    python tests/random_situations.py --count 2000 --seed 0

Every situation is drawn from a seed and run three times: by the plain model in the situation's
    precision, by the plain
model in float64, and by the mode. What counts is everything that is left behind: outputs,
gradients, buffers, what hooks saw, or an error. A mode is *equal* if it is as near to float64 as
the plain model is, but for a factor that rounding explains, and fails where and as the plain model
fails; it is *refused* if it fails where the plain model does not, in words that name
`memory_efficient`; and *wrong* otherwise.
"""

import argparse
import contextlib
import copy
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from densenet_tutorial import (
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    memory,
    set_memory_efficient,
)

MODES = tuple(mode for mode in memory.MODES if isinstance(mode, str))


# ---------------------------------------------------------------------------------------- the model


def draw_model(draw):
    """A function that builds the drawn model, the same each time, and the shape of its input
    without the batch.
    """
    growth, bn_size = draw.randint(1, 5), draw.choice([None, 1, 2, 4])
    drop = draw.choice([0.0, 0.0, 0.3])
    channels, side = draw.randint(2, 9), draw.randint(1, 9)
    kind = draw.choice(
        ["network", "network", "network", "block", "layer", "transition", "sequence"]
    )
    if kind == "network":
        stem = draw.choice(["imagenet", "cifar"])
        options = {
            "growth_rate": growth,
            "block_config": tuple(draw.randint(1, 3) for _ in range(draw.randint(1, 3))),
            "num_init_features": draw.randint(2, 9),
            "bn_size": bn_size,
            "drop_rate": drop,
            "num_classes": 3,
            "in_channels": draw.choice([1, 3]),
            "stem": stem,
            "compression": draw.choice([0.5, 1.0, 0.71]),
        }
        smallest = DenseNet(**options).min_size
        shape = (
            options["in_channels"],
            smallest + draw.randint(0, 9),
            smallest + draw.randint(0, 5),
        )
        return lambda: DenseNet(**options), shape
    parts = {
        "block": lambda: DenseBlock(3, channels, bn_size, growth, drop),
        "layer": lambda: DenseLayer(channels, growth, bn_size, drop),
        "transition": lambda: Transition(channels, max(1, channels // 2)),
        "sequence": lambda: nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            DenseBlock(2, channels, bn_size, growth, drop),
            Transition(channels + 2 * growth, 4),
            nn.BatchNorm2d(4),
        ),
    }
    least = {"transition": 2, "sequence": 4}.get(kind, 1)
    return parts[kind], (channels, least + side, least + draw.randint(0, 6))


# ------------------------------------------------------------------------ what is done to the model


class Noisy(nn.Module):
    """Wraps a module in something with random numbers and a state."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return F.dropout(self.inner(x), 0.2, self.training)


class OtherLayer(nn.Module):
    """Takes the place of a dense layer: it reads the last of the tensors that it is given."""

    def __init__(self, layer):
        super().__init__()
        self.width = layer.growth_rate

    def forward(self, features):
        last = features[-1] if isinstance(features, (list, tuple)) else features
        return last[:, :1].expand(-1, self.width, -1, -1) * 2


def modules_of(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def pick(draw, model, kind):
    found = modules_of(model, kind)
    return draw.choice(found) if found else None


def replace(model, old, new):
    for module in model.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new) if not isinstance(
                    module, nn.ModuleDict
                ) else module.update({name: new})
                return


def plain_change(action, *kinds):
    """A change to one random module of `kinds`."""

    def change(draw, model, seen):
        target = pick(draw, model, kinds)
        if target is not None:
            action(draw, model, target)

    return change


def frozen(draw, model, seen):
    for parameter in model.parameters():
        parameter.requires_grad_(draw.random() < 0.5)


def all_frozen_but_one(draw, model, seen):
    model.requires_grad_(False)
    draw.choice(list(model.parameters())).requires_grad_(True)


def evaluation(draw, model, seen):
    model.eval()


def some_norms_frozen(draw, model, seen):
    for norm in modules_of(model, nn.BatchNorm2d):
        norm.train(draw.random() < 0.5)


def norms_without(draw, model, seen):
    what = draw.choice(["affine", "bias", "tracking", "counter", "momentum", "tracking flag"])
    for norm in modules_of(model, nn.BatchNorm2d):
        if draw.random() < 0.5:
            continue
        if what == "affine":
            norm.affine, norm.weight, norm.bias = False, None, None
        elif what == "bias":
            norm.bias = None
        elif what == "tracking":
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        elif what == "counter":
            norm.num_batches_tracked = None
        elif what == "momentum":
            norm.momentum = None
        else:
            norm.track_running_stats = False


def shared_relu(draw, model, seen):
    for layer in modules_of(model, DenseLayer):
        layer.relu1 = layer.relu2 = nn.ReLU()


def shared_conv(draw, model, seen):
    blocks = modules_of(model, DenseBlock)
    for block in blocks:
        layers = [
            layer
            for layer in block.values()
            if isinstance(layer, DenseLayer) and hasattr(layer, "conv2")
        ]
        for layer in layers[1:]:
            layer.conv2 = layers[0].conv2


def probe(draw, model, seen):
    target = pick(draw, model, (DenseLayer, DenseBlock, Transition))
    if isinstance(target, DenseLayer):
        target.probe = draw.choice([nn.Sigmoid(), nn.BatchNorm2d(3), nn.Conv2d(2, 2, 1)])
    elif isinstance(target, Transition):
        target.add_module("probe", draw.choice([nn.Sigmoid(), nn.ReLU()]))


def other_activation(draw, model, target):
    target_class = draw.choice([nn.LeakyReLU, nn.GELU, nn.Sigmoid, lambda: nn.ReLU(inplace=True)])
    replace(model, target, target_class())


def other_norm(draw, model, target):
    channels = target.num_features
    new = draw.choice([lambda: nn.GroupNorm(1, channels), nn.Identity, lambda: Noisy(target)])()
    replace(model, target, new)


def other_conv(draw, model, target):
    what = draw.choice(["bias", "reflect", "spectral", "weight norm", "pruned", "noisy", "same"])
    if what == "bias":
        target.bias = nn.Parameter(torch.ones(target.out_channels))
    elif what == "reflect" and target.padding == (1, 1):
        target.padding_mode, target._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
    elif what == "spectral":
        parametrizations.spectral_norm(target)
    elif what == "weight norm":
        parametrizations.weight_norm(target)
    elif what == "pruned":
        with contextlib.suppress(RuntimeError):  # it cannot prune weights in channels_last
            prune.random_unstructured(target, "weight", amount=0.3)
    elif what == "noisy":
        replace(model, target, Noisy(target))
    elif what == "same" and target.kernel_size == (3, 3) and target.stride == (1, 1):
        target.padding = "same"


def other_pool(draw, model, target):
    new = draw.choice(
        [
            nn.MaxPool2d(2),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AvgPool2d(2, divisor_override=3),
            nn.Identity(),
        ]
    )
    replace(model, target, new)


def other_layer(draw, model, target):
    replace(model, target, OtherLayer(target))


def own_forward(draw, model, target):
    usual = target.forward
    target.forward = lambda *args: usual(*args) * 2


def watching_hook(draw, model, seen):
    target = draw.choice(list(model.modules()))
    held = []
    seen.append(held)

    def hook(module, inputs, output):
        if isinstance(output, torch.Tensor):
            held.append(output)

    target.register_forward_hook(hook)


def changing_hook(draw, model, seen):
    target = draw.choice(list(model.modules()))
    target.register_forward_hook(lambda module, inputs, output: output * 2)


def input_hook(draw, model, seen):
    target = draw.choice(
        modules_of(model, (DenseLayer, nn.BatchNorm2d, nn.ReLU, nn.Conv2d)) or [model]
    )

    def hook(module, inputs):
        if isinstance(inputs[0], torch.Tensor):
            return (inputs[0] + 1,)
        return ([piece + 1 for piece in inputs[0]],)

    target.register_forward_pre_hook(hook)


def gradient_hook(draw, model, seen):
    target = draw.choice(list(model.modules()))
    target.register_full_backward_pre_hook(lambda module, grads: tuple(g * 2 for g in grads))


def parameter_hook(draw, model, seen):
    parameter = draw.choice(list(model.parameters()))
    if parameter.requires_grad:
        parameter.register_hook(lambda grad: grad * 3)


def channels_last_weights(draw, model, seen):
    model.to(memory_format=torch.channels_last)


CHANGES = {
    change.__name__ if isinstance(name, int) else name: change
    for name, change in [
        (0, frozen),
        (1, all_frozen_but_one),
        (2, evaluation),
        (3, some_norms_frozen),
        (4, norms_without),
        (5, shared_relu),
        (6, shared_conv),
        (7, probe),
        ("other_activation", plain_change(other_activation, nn.ReLU)),
        ("other_norm", plain_change(other_norm, nn.BatchNorm2d)),
        ("other_conv", plain_change(other_conv, nn.Conv2d)),
        ("other_pool", plain_change(other_pool, nn.AvgPool2d, nn.MaxPool2d)),
        ("other_layer", plain_change(other_layer, DenseLayer)),
        (
            "own_forward",
            plain_change(own_forward, DenseLayer, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, Transition),
        ),
        (8, watching_hook),
        (9, changing_hook),
        (10, input_hook),
        (11, gradient_hook),
        (12, parameter_hook),
        (13, channels_last_weights),
    ]
}


# ---------------------------------------------------------------------------- how the model is used


def loss_of(output):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return (output * weights).sum() + output.square().mean()


def forward(model, x, seed):
    torch.manual_seed(seed)  # of dropout
    return model(x)


def one_step(model, x, found):
    found["output"] = forward(model, x, 1)
    loss_of(found["output"]).backward()


def two_steps(model, x, found):
    for step in range(2):
        found[f"output {step}"] = forward(model, x, step)
        loss_of(found[f"output {step}"]).backward()


def two_forward_passes(model, x, found):
    first, second = forward(model, x, 1), forward(model, x.flip(0) * 2, 2)
    found |= {"first": first, "second": second}
    loss_of(second).backward()
    loss_of(first).backward()


def weights_change_between(model, x, found):
    found["output"] = forward(model, x, 1)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 4).mul_(2)
    loss_of(found["output"]).backward()


def evaluation_between(model, x, found):
    found["output"] = forward(model, x, 1)
    model.eval()
    loss_of(found["output"]).backward()


def statistics_change_between(model, x, found):
    found["output"] = forward(model, x, 1)
    with torch.no_grad():
        model(x * 3)
    if any(not n.training for n in modules_of(model, nn.BatchNorm2d)):
        return  # the plain model saves the running statistics themselves
    loss_of(found["output"]).backward()


def copied_between(model, x, found):
    output = forward(model, x.detach(), 1)
    other = copy.deepcopy(model)
    found["copy"] = forward(other, x.detach(), 2)
    loss_of(output).backward()
    loss_of(found["copy"]).backward()
    found |= {f"copy's {name}": p.grad for name, p in other.named_parameters()}


def other_parameters(model, x, found):
    parameters = {
        n: (p.detach() * 1.5).requires_grad_(p.requires_grad) for n, p in model.named_parameters()
    }
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    torch.manual_seed(1)
    output = torch.func.functional_call(model, (parameters, buffers), (x,))
    found["output"] = output
    wanted = [p for p in parameters.values() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(output), wanted, allow_unused=True)
    found |= {f"functional {i}": g for i, g in enumerate(gradients)}
    found |= {f"functional {n}": b for n, b in buffers.items()}


def adapted_parameters(model, x, found):
    """One step of an inner loop, differentiated (MAML)."""
    parameters = dict(model.named_parameters())
    torch.manual_seed(1)
    wanted = {n: p for n, p in parameters.items() if p.requires_grad}
    inner = loss_of(torch.func.functional_call(model, parameters, (x,)))
    gradients = torch.autograd.grad(
        inner, list(wanted.values()), create_graph=True, allow_unused=True
    )
    stepped = parameters | {
        n: p - 0.01 * g for (n, p), g in zip(wanted.items(), gradients) if g is not None
    }
    torch.manual_seed(2)
    found["output"] = torch.func.functional_call(model, stepped, (x,))
    loss_of(found["output"]).backward()


def gradient_penalty(model, x, found):
    output = forward(model, x, 1)
    (gradient,) = torch.autograd.grad(loss_of(output), x, create_graph=True)
    found["gradient"] = gradient
    (loss_of(output) + gradient.square().sum()).backward()


def gradient_penalty_by_inputs(model, x, found):
    output = forward(model, x, 1)
    (gradient,) = torch.autograd.grad(loss_of(output), x, create_graph=True)
    wanted = [p for p in model.parameters() if p.requires_grad]
    penalty = gradient.square().sum()
    seconds = torch.autograd.grad(penalty, wanted, allow_unused=True)
    found |= {f"second {i}": second for i, second in enumerate(seconds)}


def hessian_vector(model, x, found):
    def function(x):
        return loss_of(forward(model, x, 1))

    found["value"], found["hvp"] = torch.autograd.functional.hvp(
        function, x.detach(), x.detach() + 1
    )


def batched_gradients(model, x, found):
    output = forward(model, x, 1)
    batch = torch.stack(
        [
            torch.ones_like(output),
            torch.linspace(0, 1, output.numel(), dtype=output.dtype).view_as(output),
        ]
    )
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    found |= dict(
        enumerate(
            torch.autograd.grad(output, wanted, batch, is_grads_batched=True, allow_unused=True)
        )
    )


def functional_gradient(model, x, found):
    model.eval()  # in training mode, batch norm writes to buffers
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def function(parameters):
        torch.manual_seed(1)
        return loss_of(torch.func.functional_call(model, (parameters, buffers), (x.detach(),)))

    found |= torch.func.grad(function)(parameters)


def per_sample_gradients(model, x, found):
    model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def function(parameters, x):
        return loss_of(torch.func.functional_call(model, parameters, (x.unsqueeze(0),)))

    found |= torch.func.vmap(torch.func.grad(function), (None, 0), randomness="same")(
        parameters, x.detach()
    )


def forward_derivative(model, x, found):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        torch.manual_seed(1)
        found["output"], found["tangent"] = forward_ad.unpack_dual(model(dual))


def traced(model, x, found):
    torch.manual_seed(1)
    found["output"] = torch.jit.trace(model, (x.detach(),), check_trace=False)(x.detach())


def second_backward(model, x, found):
    loss = loss_of(forward(model, x, 1))
    loss.backward(retain_graph=True)
    loss.backward()


def second_backward_without_graph(model, x, found):
    loss = loss_of(forward(model, x, 1))
    loss.backward()
    loss.backward()


def backward_to_some(model, x, found):
    wanted = [p for p in model.parameters() if p.requires_grad][::2]
    loss_of(forward(model, x, 1)).backward(inputs=wanted)


def no_gradients(model, x, found):
    with torch.no_grad():
        found["output"] = forward(model, x, 1)
    with torch.inference_mode():
        found["inference"] = forward(model, x, 2).clone()


def autocast_around(model, x, found, backward=False, forward_=True):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward_):
        output = forward(model, x, 1)
    found["output"] = output.float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
        loss_of(found["output"]).backward()


def autocast_forward(model, x, found):
    autocast_around(model, x, found)


def autocast_both(model, x, found):
    autocast_around(model, x, found, backward=True)


def autocast_backward(model, x, found):
    autocast_around(model, x, found, backward=True, forward_=False)


def whole_checkpointed(model, x, found):
    torch.manual_seed(1)
    found["output"] = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    loss_of(found["output"]).backward()
    for norm in modules_of(
        model, nn.BatchNorm2d
    ):  # moved twice by the plain model, once or twice by the modes
        norm._buffers.clear()


def saved_tensors_copied(model, x, found):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        found["output"] = forward(model, x, 1)
    loss_of(found["output"]).backward()


def anomalies_detected(model, x, found):
    with torch.autograd.detect_anomaly(check_nan=False):
        one_step(model, x, found)


def output_changed_in_place(model, x, found):
    output = forward(model, x, 1)
    found["output"] = output * 1
    output.mul_(2)  # a block's output is a buffer that its layers need
    loss_of(output).backward()


def global_hook(model, x, found):
    held = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            held.append((output, output.detach().clone()))
            if isinstance(output, torch.Tensor)
            else None
        )
    )
    try:
        one_step(model, x, found)
    finally:
        hook.remove()
    found["calls"] = torch.tensor(len(held))
    found |= {f"held {i}": output.detach().clone() for i, (output, _) in enumerate(held)}


USES = (
    one_step,
    two_steps,
    two_forward_passes,
    weights_change_between,
    evaluation_between,
    statistics_change_between,
    copied_between,
    other_parameters,
    adapted_parameters,
    gradient_penalty,
    gradient_penalty_by_inputs,
    hessian_vector,
    batched_gradients,
    functional_gradient,
    per_sample_gradients,
    forward_derivative,
    traced,
    second_backward,
    second_backward_without_graph,
    backward_to_some,
    no_gradients,
    autocast_forward,
    autocast_both,
    autocast_backward,
    whole_checkpointed,
    saved_tensors_copied,
    anomalies_detected,
    output_changed_in_place,
    global_hook,
)


# ---------------------------------------------------------------------------------------- comparing


def draw_input(draw, shape):
    """A function that makes the drawn input in a given dtype."""
    batch = draw.choice([0, 1, 2, 2, 2, 3, 3, 3])
    form = draw.choice([*["contiguous", "channels last", "sliced", "expanded"] * 3, "wrong"])
    channels, height, width = shape
    wrong = draw.choice(
        [
            (channels + 1, height, width),
            (600, height, width),
            (channels, height),
            (channels, 1, 0),
            (channels, height, width, 2),
        ]
    )
    seed = draw.randint(0, 10**6)

    def make(dtype):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

        if form == "wrong":
            return normal(batch, *wrong)
        if form == "channels last":
            return normal(batch, *shape).contiguous(memory_format=torch.channels_last)
        if form == "sliced":
            return normal(batch, 2 * channels, height, width)[:, ::2]
        if form == "expanded":
            return normal(batch, 1, height, width).expand(-1, channels, -1, -1)
        return normal(batch, *shape)

    return make, f"{batch} x {form}{' ' + str(wrong) if form == 'wrong' else ''}"


@dataclass
class Situation:
    """What one seed draws."""

    seed: int
    mode: str = ""
    words: list = field(default_factory=list)

    def run(self, mode, dtype, noise=0.0):
        """Everything that is left behind, by name; or an error."""
        draw = random.Random(self.seed)
        build, shape = draw_model(draw)
        make_input, words = draw_input(draw, shape)
        use = draw.choice(USES)
        changes = draw.sample(list(CHANGES), draw.choice([0, 0, 1, 1, 2, 3]))
        input_needs = draw.random() < 0.8 or "penalty" in use.__name__
        own = draw.choice(
            [torch.float32, torch.float32, torch.float64, torch.float64, torch.bfloat16]
        )
        if "autocast" in use.__name__ or dtype is not None:
            own = dtype or torch.float32
        self.words = [words, use.__name__, str(own), *changes]
        self.precision = torch.bfloat16 if "autocast" in use.__name__ else own

        torch.manual_seed(self.seed)
        model = build()
        for norm in modules_of(model, nn.BatchNorm2d):  # so that no norm is the identity
            nn.init.uniform_(norm.weight, -1, 2)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        seen = []
        for name in changes:
            CHANGES[name](draw, model, seen)
        model.to(own)
        if mode:
            with contextlib.suppress(ValueError):  # nothing of ours is left in it
                set_memory_efficient(model, mode)
        x = make_input(own)
        if noise:
            generator = torch.Generator().manual_seed(self.seed)
            x = x * (1 + noise * torch.finfo(own).eps * torch.randn(x.shape, generator=generator))
            x = x.to(own)
        if input_needs:
            x.requires_grad_()
        found = {}
        try:
            use(model, x, found)
        except Exception as error:  # noqa: BLE001, whatever it is, the plain model has to raise it too
            return error
        found = {
            str(name): value.detach().clone() for name, value in found.items() if value is not None
        }
        if x.grad is not None:
            found["gradient of x"] = x.grad
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name}"] = parameter.grad
        found |= dict(model.named_buffers())
        with contextlib.suppress(RuntimeError):  # tensors of a transformation that is over
            found |= {
                f"held {i} {j}": output.detach().clone()
                for i, held in enumerate(seen)
                for j, output in enumerate(held)
            }
        return found


def distance(found, expected):
    return (found.double() - expected.double()).norm().item()


def verdict(situation, mode):
    """ "equal", "refused", "fails alike" or a sentence that says what is wrong."""
    plain = situation.run(False, None)
    eps = torch.finfo(situation.precision).eps
    found = situation.run(mode, None)
    if isinstance(plain, Exception):
        if isinstance(found, Exception):
            same = type(found) is type(plain)
            return "fails alike" if same else f"another error: {plain!r:.200} and {found!r:.200}"
        return f"the plain model fails ({plain!r:.300}), the mode does not"
    if isinstance(found, Exception):
        limit = "output_changed_in_place" in situation.words and "inplace" in str(found)
        return "refused" if limit or "memory_efficient" in str(found) else f"fails: {found!r:.300}"
    if found.keys() != plain.keys():
        return f"other results: {sorted(found.keys() ^ plain.keys())[:3]}"

    exact, single, moved = (
        plain if isinstance(one, Exception) else one
        for one in (
            situation.run(False, torch.float64),
            situation.run(False, torch.float32),
            situation.run(False, None, noise=4),
        )
    )
    for name, value in plain.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            got, expected = (f"{v.dtype} {list(v.shape)}" for v in (found[name], value))
            return f"{name}: {got}, not {expected}"
        if not value.is_floating_point():
            if not torch.equal(value, found[name]):
                return f"{name} is {found[name].tolist()}, not {value.tolist()}"
            continue
        true = exact.get(name, value)
        if not value.isfinite().all() or distance(value, true) > 0.1 * true.double().norm():
            continue  # the plain model's own number means nothing
        if not found[name].isfinite().all():
            return f"{name} is not finite"
        # What rounding alone does: to the plain model, and to it on an input that differs in the
        # last digits.
        rounding = max(
            distance(value, true),
            distance(single.get(name, value), true) * eps / torch.finfo(torch.float32).eps,
            distance(value, moved.get(name, value)),
        )
        room = 64 * rounding + 2000 * eps * (1 + value.double().norm().item())
        if distance(found[name], true) > room:
            off = distance(found[name], value) / (value.double().norm().item() + 1e-30)
            return f"{name} is off by {off:.1e}"
    return "equal"


def check(seed):
    """The verdict of each mode on the situation of `seed`."""
    results = {}
    for mode in MODES:
        situation = Situation(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[mode] = verdict(situation, mode)
    return situation.words, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="situations (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first one (default: %(default)s)"
    )
    options = parser.parse_args()
    counts = Counter()
    for seed in range(options.seed, options.seed + options.count):
        words, results = check(seed)
        for mode, result in results.items():
            known = result in ("equal", "refused", "fails alike")
            counts[result if known else "wrong"] += 1
            if not known:
                print(f"{seed} {mode}: {result} [{', '.join(words)}]", flush=True)
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    raise SystemExit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()
