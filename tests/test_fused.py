"""The kernels of the mode "fused", and the mode where they run: in channels_last, in float32."""

import copy
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densenet_tutorial import DenseNet, set_memory_efficient
from densenet_tutorial.layers import DenseBlock, DenseLayer, Transition
from densenet_tutorial.memory import fused, kernels, saved_activation_bytes

COMPILER = os.environ.get("CXX") or "c++"
needs_compiler = pytest.mark.skipif(
    not shutil.which(COMPILER) and "CI" not in os.environ,
    reason=f"needs a C++ compiler, {COMPILER}",
)
DEVICES = [
    pytest.param("cpu", marks=needs_compiler),
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]
each_device = pytest.mark.parametrize("device", DEVICES)

# N, C, H, W, and the channels of the tensor whose first C are read
SHAPES = [
    (2, 40, 5, 7, 40),
    (2, 40, 5, 7, 101),
    (1, 3, 40, 30, 3),
    (3, 70, 1, 1, 70),
    (3, 70, 1, 1, 90),
    (1, 33, 1, 9, 64),
    (5, 1, 4, 1, 2),
    (2, 64, 25, 25, 96),
    (1, 200, 3, 3, 200),
]


def batch(shape, device, dtype=torch.float32):
    """x, the gradient of the output, and mean, variance, weight and bias of the norm."""
    n, c, h, w, channels = shape
    torch.manual_seed(0)
    x = (3 + torch.randn(n, h, w, channels)).to(device, dtype).permute(0, 3, 1, 2)[:, :c]
    grad = torch.randn(n, h, w, c).to(device, dtype).permute(0, 3, 1, 2)
    exact = x.double()
    mean, var = exact.mean((0, 2, 3)).float(), exact.var((0, 2, 3), unbiased=False).float()
    weight, bias = torch.randn(c).to(device), torch.randn(c).to(device)
    weight[::5] = 0
    return x, grad, mean, var, weight, bias


def true_values(x, grad, weight, bias):
    """Output and gradients by PyTorch, in float64."""
    x, weight, bias = (t.double().clone().requires_grad_() for t in (x, weight, bias))
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5).relu()
    y.backward(grad.double())
    return y.detach(), x.grad, weight.grad, bias.grad


def assert_near(found, expected, most):
    error = (found.double() - expected).norm()
    assert error <= most * expected.norm() + 1e-6, f"{error / expected.norm():.1e}"


@each_device
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_give_what_batch_norm_and_relu_give(shape, device):
    x, grad, *norm = batch(shape, device)
    y, d_x, d_weight, d_bias = true_values(x, grad, *norm[2:])
    assert_near(kernels.norm_relu(x, *norm, 1e-5), y, 1e-6)
    found = kernels.norm_relu_backward(grad.clone(), x, *norm, 1e-5)
    for value, expected in zip(found, (d_x, d_weight, d_bias), strict=True):
        assert_near(value, expected, 3e-6)


@each_device
@pytest.mark.parametrize("shape", SHAPES)
def test_what_several_layers_add_is_corrected_at_the_end(shape, device):
    n, _, h, w, channels = shape
    x, *_ = batch((n, channels, h, w, channels), device)
    above = torch.randn(n, h, w, channels).to(device).permute(0, 3, 1, 2)
    mean = x.mean((0, 2, 3))
    total = kernels.Sum(above, x, mean)
    expected = above.double()
    for end in (channels, max(1, channels // 2), 1):
        part, grad, _, var, weight, bias = batch((n, end, h, w, channels), device)
        of_part = (mean[:end], var, weight, bias, 1e-5)
        true = true_values(part, grad, weight, bias)
        none, d_weight, d_bias = kernels.norm_relu_backward(grad.clone(), part, *of_part, total)
        assert none is None
        assert_near(d_weight, true[2], 3e-6)
        assert_near(d_bias, true[3], 3e-6)
        expected[:, :end] += true[1]
    assert_near(total.of(0, channels), expected, 3e-6)
    assert_near(total.of(channels // 2, channels), expected[:, channels // 2 :], 3e-6)


@each_device
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_batch_norm(device):
    x, grad, _, _, weight, bias = batch((4, 32, 16, 16, 32), device)
    x = x + 1000
    exact = x.double()
    mean, var = exact.mean((0, 2, 3)).float(), exact.var((0, 2, 3), unbiased=False).float()
    _, d_x, d_weight, _ = true_values(x, grad, weight, bias)
    found = kernels.norm_relu_backward(grad.clone(), x, mean, var, weight, bias, 1e-5)
    assert_near(found[0], d_x, 2e-3)  # some values near zero are on the other side of ReLU
    assert_near(found[1], d_weight, 2e-3)


@each_device
def test_what_is_not_a_number_stays_so(device):
    x, _, *norm = batch((2, 40, 5, 7, 40), device)
    x[1, 3, 2, 2] = torch.nan
    y = kernels.norm_relu(x, *norm, 1e-5)
    assert y.isnan().sum() == 1 and y[1, 3, 2, 2].isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_in_low_precision(shape, dtype):
    x, grad, *norm = batch(shape, "cuda", dtype)
    y, d_x, d_weight, d_bias = true_values(x, grad, *norm[2:])
    assert_near(kernels.norm_relu(x, *norm, 1e-5), y, 5e-3)
    found = kernels.norm_relu_backward(grad.clone(), x, *norm, 1e-5)
    assert found[0].dtype == dtype
    for value, expected in zip(found, (d_x, d_weight, d_bias), strict=True):
        assert_near(value, expected, 2e-2)


INTERPRETED = """
import sys
sys.path.insert(0, "tests")
import torch
from densenet_tutorial.memory import kernels
from densenet_tutorial.memory.kernels import gpu
import test_fused

kernels.library = lambda: None

def run(name, x, *rest):
    getattr(gpu, name)(x.numel() // x.shape[1], x.shape[1], x, kernels._stride(x), *rest)

kernels._run = run
for shape in test_fused.SHAPES:
    test_fused.test_kernels_give_what_batch_norm_and_relu_give(shape, "cpu")
    test_fused.test_what_several_layers_add_is_corrected_at_the_end(shape, "cpu")
test_fused.test_what_is_not_a_number_stays_so("cpu")
print("all right")
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="this torch has no Triton")
def test_the_kernels_for_gpus_in_tritons_interpreter():
    """On the CPU, so that every machine tests them."""
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "all right\n", run.stderr


# ------------------------------------------------------------------------------- the mode


SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}


def network(**options):
    torch.manual_seed(1)
    model = DenseNet(**(SMALL | options))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
    return model.to(memory_format=torch.channels_last)


def images(device="cpu"):
    torch.manual_seed(2)
    return torch.randn(3, 3, 36, 44).to(device, memory_format=torch.channels_last)


def steps(model, x):
    """Outputs, gradients and buffers of two training steps, by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    found = {}
    for step in range(2):
        torch.manual_seed(step)
        found[f"output {step}"] = model(x)
        F.cross_entropy(found[f"output {step}"], torch.arange(3, device=x.device)).backward()
    found["x"] = x.grad
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def counted(monkeypatch):
    """How often a kernel computed norm and ReLU."""
    calls = []
    original = kernels.norm_relu
    monkeypatch.setattr(
        kernels, "norm_relu", lambda x, *rest: calls.append(x.shape) or original(x, *rest)
    )
    return calls


def nothing(model):
    pass


def some_learn(model):
    model.features.conv0.requires_grad_(False)
    model.features.norm0.requires_grad_(False)
    model.features.denseblock1.requires_grad_(False)
    model.features.denseblock2.denselayer2.norm1.requires_grad_(False)
    model.features.denseblock2.denselayer2.conv2.requires_grad_(False)
    model.features.denseblock2.denselayer3.norm2.bias.requires_grad_(False)
    model.features.transition1.conv.requires_grad_(False)


def nothing_is_tracked(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def other_momenta(model):
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = 0.01 * i, 1e-3 / (i + 1)


@each_device
@pytest.mark.parametrize("change", [nothing, some_learn, nothing_is_tracked, other_momenta])
@pytest.mark.parametrize(
    "options",
    [{}, {"bn_size": None, "stem": "cifar"}, {"block_config": (1, 1, 2), "compression": 1.0}],
)
def test_numbers_are_those_of_the_plain_model(monkeypatch, options, change, device):
    if device == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if change is some_learn and options:
        options = {}
    plain = network(**options).to(device)
    change(plain)
    efficient = set_memory_efficient(copy.deepcopy(plain), "fused")
    calls = counted(monkeypatch)
    found, expected = steps(efficient, images(device)), steps(plain, images(device))
    assert len(calls) > 2 * len(SMALL["block_config"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value.double()).norm()
        assert error <= 2e-4 * value.double().norm() + 1e-5, name


def test_dropout_and_running_statistics_leave_the_blocks_to_recompute(monkeypatch):
    for options, prepare in (({"drop_rate": 0.3}, nn.Module.train), ({}, nn.Module.eval)):
        model = prepare(network(**options))
        found = []
        for mode in ("recompute", "fused"):
            copied = set_memory_efficient(copy.deepcopy(model), mode)
            found.append(steps(copied, images()))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_kernels_run_in_channels_last_and_float32_alone(monkeypatch):
    calls = counted(monkeypatch)
    model = set_memory_efficient(network(), "fused")
    model(images())
    assert len(calls) == 1 + 2 * 5 + 1  # stem, layers, transition
    calls.clear()
    model(images().contiguous())
    assert calls  # the model itself is in channels_last, and with it its feature maps
    calls.clear()
    contiguous = model.to(memory_format=torch.contiguous_format)
    contiguous(images().contiguous())
    contiguous.double()(images().double())
    with torch.no_grad():
        model.float()(images())
    assert not calls


def test_gradients_of_gradients_and_batches_of_gradients():
    torch.manual_seed(0)
    plain = nn.Sequential(DenseBlock(2, 8, 4, 4, 0.0), Transition(16, 8))
    plain.to(memory_format=torch.channels_last)
    efficient = set_memory_efficient(copy.deepcopy(plain), "fused")
    results = []
    for model in (plain, efficient):
        x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = model(x)
        (d_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        d_x.square().sum().backward()
        second = [x.grad, *(p.grad for p in model.parameters())]
        y = model(x)
        batch = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1))
        many = torch.autograd.grad(y, [x, *model.parameters()], batch, is_grads_batched=True)
        results.append([*second, *many])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_it_keeps_what_recompute_keeps():
    kept = []
    for mode in ("recompute", "fused"):
        model = set_memory_efficient(network(growth_rate=12, block_config=(6, 6)), mode)
        kept.append(saved_activation_bytes(model, images()))
    assert kept[1] <= 1.02 * kept[0]


def test_changing_the_feature_maps_in_place_is_an_error_not_a_wrong_gradient():
    block = set_memory_efficient(DenseBlock(3, 8, 4, 4, 0.0), "fused")
    output = block(torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_weight_that_is_changed_between_the_passes_is_an_error():
    block = set_memory_efficient(DenseBlock(3, 8, 4, 4, 0.0), "fused")
    output = block(torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last))
    with torch.no_grad():
        block.denselayer2.norm1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@needs_compiler
def test_every_number_of_threads_gives_the_same_up_to_rounding():
    x, grad, *norm = batch((2, 64, 25, 25, 96), "cpu")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            y = kernels.norm_relu(x, *norm, 1e-5)
            found.append((y, *kernels.norm_relu_backward(grad.clone(), x, *norm, 1e-5)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for value, expected in zip(others, found[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_under_autocast_on_a_cpu_a_block_is_left_to_recompute():
    """Its features are in float32, and its bottlenecks are not."""
    torch.manual_seed(0)
    plain = nn.Sequential(DenseBlock(2, 8, 4, 4, 0.0), Transition(16, 8))
    plain.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    found = []
    for mode in ("recompute", "fused"):
        model = set_memory_efficient(copy.deepcopy(plain), mode)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        output.float().square().sum().backward()
        found.append([output, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_compiler
def test_kernels_for_cpus_refuse_other_tensors():
    """They would read and write past the end of them."""
    x, grad, mean, var, weight, bias = batch((2, 40, 5, 7, 40), "cpu")
    for wrong in ((x.bfloat16(), weight), (x.double(), weight), (x, weight.double())):
        with pytest.raises(TypeError, match="float32"):
            kernels.norm_relu(wrong[0], mean, var, wrong[1], bias, 1e-5)
        with pytest.raises(TypeError, match="float32"):
            kernels.norm_relu_backward(grad.clone(), wrong[0], mean, var, wrong[1], bias, 1e-5)


def one_norm_twice(block):
    block.denselayer2.norm2 = block.denselayer1.norm2


def one_mean_twice(block):
    block.denselayer3.norm2.running_mean = block.denselayer1.norm2.running_mean


@pytest.mark.parametrize("share", [one_norm_twice, one_mean_twice])
def test_running_statistics_that_are_shared_are_updated_one_after_another(share):
    results = []
    for mode in (False, "fused"):
        torch.manual_seed(0)
        block = DenseBlock(3, 8, 4, 4, 0.0).to(memory_format=torch.channels_last)
        share(set_memory_efficient(block, mode))
        x = torch.randn(3, 8, 6, 6).to(memory_format=torch.channels_last)
        for _ in range(2):
            block(x).square().sum().backward()
        results.append([*block.buffers(), *(p.grad for p in block.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_norm_without_weights_is_left_to_recompute(missing):
    torch.manual_seed(0)
    plain = DenseBlock(2, 8, 4, 4, 0.0).to(memory_format=torch.channels_last)
    setattr(plain.denselayer2.norm1, missing, None)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    found = []
    for mode in ("recompute", "fused"):
        block = set_memory_efficient(copy.deepcopy(plain), mode)
        block(x).square().sum().backward()
        found.append([p.grad for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_layer_alone_is_computed_as_by_recompute():
    torch.manual_seed(0)
    plain = DenseLayer(8, 4, 4, 0.0).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    found = []
    for mode in ("recompute", "fused"):
        layer = set_memory_efficient(copy.deepcopy(plain), mode)
        layer(x).square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


WITHOUT_COMPILER = """
import copy, warnings, torch
from densenet_tutorial import DenseNet, set_memory_efficient

torch.manual_seed(0)
plain = DenseNet(4, (2, 2), 8, num_classes=5).to(memory_format=torch.channels_last)
x = torch.randn(2, 3, 36, 44).to(memory_format=torch.channels_last)
found = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for mode in ("recompute", "fused"):
        model = set_memory_efficient(copy.deepcopy(plain), mode)
        model(x).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
print(all(torch.equal(a, b) for a, b in zip(*found)))
for warning in caught:
    print(warning.message)
"""


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "No such file"), ("false", "exit status 1")]
)
def test_without_a_compiler_it_computes_as_recompute_and_says_so_once(compiler, said):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=os.environ | {"CXX": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    same, *warned = run.stdout.splitlines()
    assert same == "True"
    assert len(warned) == 1
    assert warned[0].startswith('memory_efficient="fused" computes as "recompute" does')
    assert compiler in warned[0] and said in warned[0]


@needs_compiler
def test_the_compiler_may_be_named_with_options():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from densenet_tutorial.memory import kernels; kernels.library().correct",
        ],
        env=os.environ | {"CXX": f"{COMPILER} -DNOTHING"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and not run.stderr, run.stderr


@needs_compiler
def test_the_kernels_are_there_on_a_machine_with_a_compiler():
    """Otherwise all of the above would compare "recompute" with itself."""
    model = network()
    x = images()
    assert kernels.can_compute(model.features.conv0(x))
    assert fused.is_fusable(model.features.conv0(x), [])
