"""When a memory-efficient mode may act, and what it does in situations that nobody thought of."""

import copy
import inspect
import json
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from random_situations import check
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from densenet_tutorial import (
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    densenet,
    memory,
    set_memory_efficient,
)
from densenet_tutorial.memory.conditions import Stage, is_supported

ROOT = Path(__file__).resolve().parents[1]
MODES = tuple(mode for mode in memory.MODES if isinstance(mode, str))
OWN = ("recompute", "minimal", "fused")

each_mode = pytest.mark.parametrize("mode", MODES)
each_own_mode = pytest.mark.parametrize("mode", OWN)


# ------------------------------------------------------------------------------------ the predicate


def layer():
    torch.manual_seed(0)
    return DenseLayer(8, 4, 4, 0.0)


def features(channels=8, *, batch=2, size=5, dtype=torch.float32):
    return torch.randn(batch, channels, size, size).to(dtype)


def acts(layer, *inputs):
    stages = [Stage(layer.norm1, layer.relu1, layer.conv1)]
    return is_supported(list(inputs), [*stages, Stage(layer.norm2, layer.relu2, layer.conv2)])


def changed(change):
    """A layer on which `change` was called."""
    found = layer()
    change(found)
    return found


class OwnNorm(nn.BatchNorm2d):
    pass


class OwnTensor(torch.Tensor):
    pass


def without_variance(layer):
    layer.norm1.running_var = None


def reparametrised(layer):
    parametrizations.weight_norm(layer.conv1)


def with_own_forward(layer):
    layer.relu1.forward = lambda x: x


def with_stride(layer):
    layer.conv1.stride = (2, 2)


def with_weight(part, make):
    """A layer of which the weight of one part is made anew, from the one that it has."""

    def change(m):
        module = getattr(m, part)
        module.weight = nn.Parameter(make(module.weight.detach()))

    return changed(change)


def elsewhere(weight):
    return weight.to("meta")


def of_a_subclass(weight):
    return weight.as_subclass(OwnTensor)


def with_norms_in(dtype, others):
    """A layer in the precision `others`, but for its norms."""

    def change(m):
        m.to(others)
        m.norm1.to(dtype)
        m.norm2.to(dtype)

    return changed(change)


MAY = {
    "a layer": lambda: acts(layer(), features()),
    "one column of one image": lambda: acts(layer(), torch.randn(1, 8, 2, 1)),
    "one row of one image": lambda: acts(layer(), torch.randn(1, 8, 1, 2)),
    "norms in float32": lambda: acts(
        with_norms_in(torch.float32, torch.bfloat16), features(dtype=torch.bfloat16)
    ),
    "several pieces": lambda: acts(layer(), features(5), features(3)),
    "frozen": lambda: acts(layer().requires_grad_(False), features()),
    "in evaluation mode": lambda: acts(layer().eval(), features()),
    "one value a channel, in evaluation mode": lambda: acts(
        layer().eval(), features(batch=1, size=1)
    ),
    "channels_last": lambda: acts(layer(), features().to(memory_format=torch.channels_last)),
    "gaps between the images": lambda: acts(layer(), features(16)[:, :8]),
    "float64": lambda: acts(layer().double(), features(dtype=torch.float64)),
    "bfloat16": lambda: acts(layer().bfloat16(), features(dtype=torch.bfloat16)),
    "norms that do not track": lambda: acts(
        changed(lambda m: m.norm1.__init__(8, track_running_stats=False)), features()
    ),
    "an extra module": lambda: acts(
        changed(lambda m: m.add_module("probe", nn.Sigmoid())), features()
    ),
    "one ReLU twice": lambda: acts(changed(lambda m: setattr(m, "relu2", m.relu1)), features()),
    "norms without weights": lambda: acts(
        changed(lambda m: m.norm1.__init__(8, affine=False)), features()
    ),
}


@pytest.mark.parametrize("situation", MAY)
def test_a_mode_may_act_on(situation):
    assert MAY[situation]()


def under(context, *, model=None, x=None):
    with context:
        return acts(model or layer(), features() if x is None else x)


def hooked(register):
    def change(m):
        getattr(m.norm2, register)(lambda *arguments: None)

    return changed(change)


def with_global_hook(register):
    handle = getattr(nn.modules.module, register)(lambda *arguments: None)
    try:
        return acts(layer(), features())
    finally:
        handle.remove()


def in_a_transform(transform):
    seen = []

    def function(x):
        seen.append(acts(m, x))
        return x.sum()

    m = layer()
    transform(function)(features())
    return any(seen)


def traced():
    seen = []
    m = layer()

    def function(x):
        seen.append(acts(m, x))
        return x * 2

    torch.jit.trace(function, features())
    return any(seen)


MAY_NOT = {
    "without gradients": lambda: under(torch.no_grad()),
    "inference mode": lambda: under(torch.inference_mode()),
    "traced": traced,
    "torch.func.grad": lambda: in_a_transform(torch.func.grad),
    "torch.func.vmap": lambda: in_a_transform(torch.func.vmap),
    "forward-mode derivative": lambda: under(torch.autograd.forward_ad.dual_level()),
    "meta tensors": lambda: acts(layer().to("meta"), features().to("meta")),
    "a parameter on another device": lambda: acts(layer().to("meta"), features()),
    "a subclass of Tensor": lambda: acts(layer(), features().as_subclass(OwnTensor)),
    "no tensor": lambda: acts(layer(), [1.0]),
    "nothing": lambda: acts(layer()),
    "three dimensions": lambda: acts(layer(), torch.randn(8, 5, 5)),
    "five dimensions": lambda: acts(layer(), torch.randn(2, 8, 5, 5, 2)),
    "more channels": lambda: acts(layer(), features(600)),
    "fewer channels": lambda: acts(layer(), features(7)),
    "whole numbers": lambda: acts(layer(), torch.ones(2, 8, 5, 5, dtype=torch.int64)),
    "complex numbers": lambda: acts(layer(), torch.ones(2, 8, 5, 5, dtype=torch.complex64)),
    "float64 into float32": lambda: acts(layer(), features(dtype=torch.float64)),
    "bfloat16 into float32": lambda: acts(layer(), features(dtype=torch.bfloat16)),
    "a sparse tensor": lambda: acts(layer(), features().to_sparse()),
    "an empty batch": lambda: acts(layer(), features(batch=0)),
    "no rows": lambda: acts(layer(), torch.randn(2, 8, 0, 5)),
    "no columns": lambda: acts(layer(), torch.randn(2, 8, 5, 0)),
    "one value a channel behind a stride": lambda: acts(
        changed(with_stride), features(batch=1, size=2)
    ),
    "a pooling in place of a norm": lambda: acts(
        changed(lambda m: setattr(m, "norm1", nn.AvgPool2d(1))), features()
    ),
    "a pooling in place of an activation": lambda: acts(
        changed(lambda m: setattr(m, "relu1", nn.AvgPool2d(1))), features()
    ),
    "a convolution of other channels": lambda: acts(
        changed(lambda m: setattr(m, "conv1", nn.Conv2d(9, 16, 1, bias=False))), features()
    ),
    "a norm's weight of another shape": lambda: acts(
        with_weight("norm1", lambda weight: weight.repeat(2)), features()
    ),
    "a kernel of another shape": lambda: acts(
        with_weight("conv1", lambda weight: weight[..., 0]), features()
    ),
    **{
        f"{part}.weight {make.__name__}": lambda part=part, make=make: acts(
            with_weight(part, make), features()
        )
        for part in ("norm1", "conv1", "norm2", "conv2")
        for make in (elsewhere, of_a_subclass)
    },
    "norms in float32, the rest in float64": lambda: acts(
        with_norms_in(torch.float32, torch.float64), features(dtype=torch.float64)
    ),
    "norms in bfloat16, the rest in float16": lambda: acts(
        with_norms_in(torch.bfloat16, torch.float16), features(dtype=torch.float16)
    ),
    "norms in bfloat16, the rest in float32": lambda: acts(
        with_norms_in(torch.bfloat16, torch.float32), features()
    ),
    "one value a channel": lambda: acts(layer(), features(batch=1, size=1)),
    "pieces of two sizes": lambda: acts(layer(), features(5), features(3, size=6)),
    "pieces of two dtypes": lambda: acts(layer(), features(5), features(3, dtype=torch.float64)),
    "a synchronised norm": lambda: acts(
        changed(lambda m: setattr(m, "norm1", nn.SyncBatchNorm(8))), features()
    ),
    "a norm of one's own": lambda: acts(
        changed(lambda m: setattr(m, "norm1", OwnNorm(8))), features()
    ),
    "another norm": lambda: acts(changed(lambda m: setattr(m, "norm2", nn.Identity())), features()),
    "half of the running statistics": lambda: acts(changed(without_variance), features()),
    "a norm of other channels": lambda: acts(
        changed(lambda m: setattr(m, "norm1", nn.BatchNorm2d(9))), features()
    ),
    "another activation": lambda: acts(
        changed(lambda m: setattr(m, "relu1", nn.GELU())), features()
    ),
    "a convolution with bias": lambda: acts(
        changed(lambda m: setattr(m, "conv1", nn.Conv2d(8, 16, 1))), features()
    ),
    "padding by name": lambda: acts(
        changed(lambda m: setattr(m.conv2, "padding", "same")), features()
    ),
    "circular padding": lambda: acts(
        changed(lambda m: setattr(m.conv2, "padding_mode", "circular")), features()
    ),
    "a parametrisation": lambda: acts(changed(reparametrised), features()),
    "pruning": lambda: acts(
        changed(lambda m: prune.random_unstructured(m.conv1, "weight", 0.5)), features()
    ),
    "a forward pass of its own": lambda: acts(changed(with_own_forward), features()),
    **{
        register: lambda register=register: acts(hooked(register), features())
        for register in (
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_full_backward_hook",
            "register_full_backward_pre_hook",
        )
    },
    **{
        register: lambda register=register: with_global_hook(register)
        for register in (
            "register_module_forward_hook",
            "register_module_forward_pre_hook",
            "register_module_full_backward_hook",
            "register_module_full_backward_pre_hook",
        )
    },
    "autocast, and a kernel in float64": lambda: under(
        torch.autocast("cpu", torch.bfloat16),
        model=with_norms_in(torch.float32, torch.float64),
    ),
    "autocast to another precision than that of the features": lambda: under(
        torch.autocast("cpu", torch.float16), x=features(dtype=torch.bfloat16)
    ),
    "autocast to a precision that does not fit": lambda: under(
        torch.autocast("cpu", torch.float16),
        model=layer().bfloat16(),
        x=features(dtype=torch.bfloat16),
    ),
}


@pytest.mark.parametrize("situation", MAY_NOT)
def test_a_mode_may_not_act_on(situation):
    assert not MAY_NOT[situation]()


# -------------------------------------------------------------------------------- random situations


@pytest.mark.parametrize("first", range(0, 160, 10))
def test_random_situations_end_as_with_the_plain_model(first):
    for seed in range(first, first + 10):
        words, results = check(seed)
        wrong = {m: r for m, r in results.items() if r not in ("equal", "refused", "fails alike")}
        assert not wrong, f"python tests/random_situations.py --seed {seed} --count 1: {words}"


# ------------------------------------------------------------------------------------------- limits


def test_the_docstring_and_the_chapter_name_the_same_limits():
    chapter = json.loads((ROOT / "book" / "07_memory.ipynb").read_text(encoding="utf-8"))
    text = next(
        "".join(c["source"]) for c in chapter["cells"] if "### Limits" in "".join(c["source"])
    )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = [row[0] for row in rows[rows.index(["situation", "what happens"]) + 1 :]]
    documented = inspect.getdoc(set_memory_efficient).partition("Limits:")[2]
    documented = " ".join(documented.replace("``", "`").split())
    assert len(names) > 10
    assert [name for name in names if f"- {name}: " not in documented] == []


@pytest.mark.parametrize(("mode", "copied"), [(False, 183), ("recompute", 61)])
def test_hooks_that_copy_see_each_layers_view(mode, copied):
    model, x = densenet("densenet121", memory_efficient=mode), torch.randn(2, 3, 224, 224)
    there_anyway = {t.data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    sizes = []

    def pack(tensor):
        if tensor.data_ptr() not in there_anyway:
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    assert round(sum(sizes) / len(x) / 2**20) == copied


# ------------------------------------------------------------------------------- found by an attack


def small(mode, **options):
    torch.manual_seed(1)
    sizes = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}
    return DenseNet(**(sizes | options), memory_efficient=mode)


def images(batch=3):
    return torch.randn(batch, 3, 36, 44, generator=torch.Generator().manual_seed(2))


WRONG_INPUTS = """
import torch
from densenet_tutorial import DenseBlock, DenseLayer, Transition, set_memory_efficient
for mode in ("checkpoint", "recompute", "minimal"):
    for module in (DenseLayer(8, 4, 4, 0.0), DenseBlock(2, 8, 4, 4, 0.0), Transition(8, 4)):
        set_memory_efficient(module, mode)
        of_channels = ((2, channels, 8, 8) for channels in (600, 1, 7))
        for shape in (*of_channels, (8, 8, 8), (2, 8, 8), (2, 8), (2, 8, 4, 4, 4)):
            for _ in range(20):
                try:
                    module(torch.randn(shape))
                except (RuntimeError, ValueError):
                    continue
                raise SystemExit(f"{mode} {type(module)} {shape}: no error")
print("alive")
"""


def test_wrong_shapes_are_refused_and_corrupt_nothing():
    run = subprocess.run(
        [sys.executable, "-c", WRONG_INPUTS], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "alive", run.stdout + run.stderr[-2000:]


@each_mode
@pytest.mark.parametrize(
    "shape", [(2, 600, 8, 8), (8, 8, 8), (2, 7, 8, 8), (1, 8, 1, 1), (0, 8, 4, 4)]
)
@pytest.mark.parametrize("kind", [DenseLayer, DenseBlock, Transition])
def test_errors_are_the_plain_modules(mode, shape, kind):
    arguments = {DenseLayer: (8, 4, 4, 0.0), DenseBlock: (2, 8, 4, 4, 0.0), Transition: (8, 4)}

    def outcome(module):
        try:
            return module(torch.ones(shape)).shape
        except (RuntimeError, ValueError) as error:
            return type(error), str(error)

    plain = kind(*arguments[kind])
    assert outcome(set_memory_efficient(copy.deepcopy(plain), mode)) == outcome(plain)


@each_mode
def test_second_derivatives_by_every_route(mode):
    def second_derivatives(model, x):
        def penalty():
            (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            return gradient.square().sum()

        parameters = list(model.parameters())
        found = list(torch.autograd.grad(penalty(), parameters, allow_unused=True))
        penalty().backward(inputs=parameters)
        found += [p.grad for p in parameters]
        functional, shift = torch.autograd.functional, torch.zeros(1, dtype=torch.float64)
        found += functional.hvp(lambda x: model(x).square().sum(), x, x.detach())
        return [*found, functional.hessian(lambda shift: model(x + shift).sum(), shift)]

    results = [
        second_derivatives(small(m).double(), images().double().requires_grad_())
        for m in (False, mode)
    ]
    for plain, ours in zip(*results, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)


@each_mode
def test_gradgradcheck(mode):
    torch.manual_seed(0)
    model = nn.Sequential(DenseBlock(2, 3, 2, 2, 0.0), Transition(7, 3)).double()
    set_memory_efficient(model, mode)
    names = [name for name, _ in model.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, (x, *model.parameters()), nondet_tol=1e-9)


def in_a_batch(output, inputs, gradients):
    return torch.autograd.grad(output, inputs, gradients, is_grads_batched=True)


def by_vmap(output, inputs, gradients):
    return torch.func.vmap(lambda g: torch.autograd.grad(output, inputs, g, retain_graph=True))(
        gradients
    )


@each_mode
@pytest.mark.parametrize("several", [in_a_batch, by_vmap])
def test_several_gradients_at_once(mode, several):
    found, expected = [], []
    for m, results in ((mode, found), (False, expected)):
        model = small(m).double()
        x = images().double().requires_grad_()
        inputs, output = [x, *model.parameters()], model(x)
        gradients = torch.randn(
            4, *output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        if m:
            results += several(output, inputs, gradients)
        else:
            each = [torch.autograd.grad(output, inputs, g, retain_graph=True) for g in gradients]
            results += [torch.stack(one) for one in zip(*each, strict=True)]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


@each_mode
def test_a_hook_on_a_parameter_fires_once_for_a_differentiable_gradient(mode):
    calls = []
    model = small(mode)
    weight = model.features.denseblock1.denselayer1.conv1.weight
    weight.register_hook(lambda gradient: calls.append(gradient))
    model(images()).sum().backward(create_graph=True)
    assert len(calls) == 1


@each_mode
def test_several_threads_lose_hardly_an_update(mode):
    """Batch norm's own counting is not atomic: the plain model loses one in some thousands too."""
    model = small(mode)

    def work():
        for _ in range(20):
            model(images(2)).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert min(norm.num_batches_tracked.item() for norm in norms) >= 78


@each_mode
@pytest.mark.parametrize("between", ["eval", "float64", "momentum", "statistics", "running"])
def test_what_a_module_holds_later_does_not_matter(mode, between):
    results = []
    for m in (False, mode):
        model = small(m)
        output = model(images())
        for norm in (n for n in model.modules() if isinstance(n, nn.BatchNorm2d)):
            if between == "eval":
                norm.eval()
            elif between == "momentum":
                norm.momentum, norm.eps = 0.9, 1.0
            elif between == "statistics":
                norm.track_running_stats = False
                norm.running_mean = norm.running_var = None
            elif between == "running":
                norm.running_mean = torch.full_like(norm.running_mean, 7.0)
            elif between == "float64":
                norm.running_mean = norm.running_mean.double()
        output.square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@each_mode
def test_a_weight_changed_in_place_is_noticed(mode):
    for name in ("norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "conv2.weight"):
        model = small(mode)
        output = model(images())
        with torch.no_grad():
            model.features.denseblock1.denselayer2.get_parameter(name).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@each_mode
def test_the_precision_is_that_of_the_forward_pass(mode):
    def gradients(m, *, forward, backward):
        model = small(m)
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            output = model(images())
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            output.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradients(False, forward=False, backward=False)
    for forward in (True, False):
        for backward in (True, False):
            plain = gradients(False, forward=forward, backward=backward)
            ours = gradients(mode, forward=forward, backward=backward)
            # As near to float32 as the plain model, which in bfloat16 is not very near.
            most = 1.5 * (plain - exact).norm() + 1e-5 * exact.norm()
            assert (ours - exact).norm() < most, (forward, backward)


@each_mode
def test_tracing_exporting_and_compiling_step_aside(mode, tmp_path):
    model, plain = small(mode).eval(), small(False).eval()
    x = images()
    expected = plain(x)
    assert torch.equal(torch.jit.trace(model, x, check_trace=False)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


@each_mode
def test_a_wrapped_norm_moves_its_statistics_once(mode):
    class Counting(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.calls = norm, 0

        def forward(self, x):
            self.calls += 1
            return F.dropout(self.norm(x), 0.5, self.training)

    results = []
    for m in (False, mode):
        model = small(m)
        layer = model.features.denseblock1.denselayer2
        layer.norm1 = Counting(layer.norm1)
        torch.manual_seed(3)
        model(images()).square().sum().backward()
        results.append((layer.norm1.calls, layer.conv1.weight.grad))
    assert results[0][0] == results[1][0] == 1
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


@each_own_mode
def test_a_saved_output_holds_nothing_but_itself(mode, tmp_path):
    block = set_memory_efficient(DenseBlock(3, 8, 4, 4, 0.0), mode)
    output = block(torch.randn(2, 8, 6, 6))
    torch.save(output.detach(), tmp_path / "output.pt")
    assert (tmp_path / "output.pt").stat().st_size < output.numel() * 4 + 4000
    assert torch.equal(torch.load(tmp_path / "output.pt", weights_only=True), output)
    assert not vars(output)


@each_own_mode
def test_a_slice_of_the_features_keeps_its_mode(mode):
    model = small(mode)
    part = model.features[:6]
    assert type(part) is type(model.features)
    x = images().requires_grad_()
    part(x).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    small(False).features[:6](x).sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------- patched methods


def triple(self, x, weight, bias):
    return F.conv2d(x, 3 * weight, bias, self.stride, self.padding)


def squashed(self, inputs):
    return DENSE_LAYER_BN_FUNCTION(self, inputs).tanh()


def doubled(self, x):
    return 2 * BATCH_NORM_FORWARD(self, x)


DENSE_LAYER_BN_FUNCTION, BATCH_NORM_FORWARD = DenseLayer.bn_function, nn.BatchNorm2d.forward
PATCHES = {
    "a convolution": lambda block: (block.denselayer2.conv2, "_conv_forward", triple),
    "a first convolution": lambda block: (block.denselayer1.conv1, "_conv_forward", triple),
    "a layer": lambda block: (block.denselayer2, "bn_function", squashed),
    "a norm": lambda block: (block.denselayer3.norm1, "forward", doubled),
}


@each_mode
@pytest.mark.parametrize("where", PATCHES)
@pytest.mark.parametrize("on_the_class", [False, True])
def test_a_patched_method_is_called(where, on_the_class, mode, monkeypatch):
    def result(mode):
        torch.manual_seed(0)
        block = set_memory_efficient(DenseBlock(3, 8, 2, 4, 0.0).double(), mode)
        module, name, function = PATCHES[where](block)
        if on_the_class:
            kind = DenseLayer if isinstance(module, DenseLayer) else type(module)
            monkeypatch.setattr(kind, name, function)
        else:
            setattr(module, name, types.MethodType(function, module))
        out = block(torch.randn(2, 8, 6, 6, dtype=torch.float64))
        out.square().sum().backward()
        monkeypatch.undo()
        return out.detach(), *(p.grad for p in block.parameters())

    for found, expected in zip(result(mode), result(False), strict=True):
        torch.testing.assert_close(found, expected)


@each_mode
@pytest.mark.parametrize("kind", [nn.Sequential, DenseBlock])
def test_a_patched_forward_of_a_container_is_called(kind, mode, monkeypatch):
    plain = kind.forward
    parts = DenseBlock(2, 8, 2, 4, 0.0), Transition(16, 8)
    model = set_memory_efficient(nn.Sequential(*parts).double(), mode)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * plain(self, x))
    found = model(x)
    torch.testing.assert_close(found, set_memory_efficient(model, False)(x))


@pytest.mark.parametrize(
    ("mode", "part", "name"),
    [
        (mode, part, name)
        for mode in ("checkpoint", "recompute", "minimal")
        for part, name in [
            ("transition1", "forward"),
            ("denseblock1", "forward"),
            ("denseblock1.denselayer1", "forward"),
            ("denseblock1.denselayer1", "bn_function"),
        ]
    ],
)
def test_a_method_that_is_patched_on_the_class_that_a_module_has(mode, part, name, monkeypatch):
    """Which is that of the mode, not the one that was written in the model's code."""
    model = small(mode)
    module = model.features.get_submodule(part)
    kind, calls = type(module), []
    method = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *a: calls.append(self) or method(self, *a))
    model(torch.randn(2, model.in_channels, 32, 32))
    assert any(call is module for call in calls)


# ------------------------------------------------------------------------- switching a model's mode


def test_a_model_changes_its_mode_and_nothing_else():
    model = small(False)
    before = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    for mode in (*MODES, True, False):
        assert set_memory_efficient(model, mode) is model
        assert [id(p) for p in model.parameters()] == parameters
        assert list(model.state_dict()) == list(before)
        assert [name for name, _ in model.named_modules()] == [
            n for n, _ in small(False).named_modules()
        ]
    assert [type(m) for m in model.modules()] == [type(m) for m in small(False).modules()]


@each_mode
def test_part_of_a_larger_model_changes_and_the_rest_stays(mode):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), DenseBlock(2, 8, 4, 4, 0.0)
    )
    kinds = [type(m) for m in model[0].modules()]
    set_memory_efficient(model, mode)
    assert [type(m) for m in model[0].modules()] == kinds
    assert type(model[1].denselayer1) is not DenseLayer


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.ReLU())])
def test_a_model_without_dense_layers_is_refused(model):
    with pytest.raises(ValueError, match="model must hold a DenseLayer, DenseBlock or Transition"):
        set_memory_efficient(model, "recompute")


@pytest.mark.parametrize("mode", ["Recompute", None, 1, "yes"])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(ValueError, match=f"mode must be one of .*'fused', got {mode!r}"):
        set_memory_efficient(small(False), mode)
