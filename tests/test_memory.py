"""The memory-efficient modes: the plain model's numbers, whatever is done with the model, and less
memory.
"""

import copy
import io
import subprocess
import sys
from collections import Counter

import pytest
import torch
from exact import assert_exact, assert_near
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from densenet_tutorial import (
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    densenet,
    memory,
    set_memory_efficient,
)
from densenet_tutorial.memory.variants import RecomputedSequential

MODES = tuple(mode for mode in memory.MODES if isinstance(mode, str))
OWN = ("recompute", "minimal", "fused")
SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}

each_mode = pytest.mark.parametrize("mode", MODES)
each_own_mode = pytest.mark.parametrize("mode", OWN)


def network(mode, **options):
    """A small network; the same weights for every mode."""
    torch.manual_seed(1)
    model = DenseNet(**(SMALL | options), memory_efficient=mode)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that no norm is the identity
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def pair(mode, **options):
    """The plain network to compare with, and the one in `mode`.

    Where the transitions of `mode` pool before their convolution, so does the plain network: the
    order moves the last digits, and this way every digit of all the rest can be compared. By how
    much it moves them has its own test.
    """
    plain = network(False, **options)
    if mode in OWN:
        pool_first(plain)
    return plain, network(mode, **options)


def pool_first(model):
    for module in model.modules():
        if isinstance(module, Transition):
            module.conv = nn.Sequential(module.pool, module.conv)
            module.pool = nn.Identity()


def by_usual_name(found):
    """`found` with the names of a network on which :func:`pool_first` has not been called."""
    return {name.replace(".conv.1.", ".conv."): value for name, value in found.items()}


def images(requires_grad=True):
    torch.manual_seed(2)
    return torch.randn(3, 3, 36, 44).requires_grad_(requires_grad)


def steps(model, x, *, amp=None):
    """Everything that two training steps leave behind, by name."""
    found = {}
    for step in range(2):
        torch.manual_seed(3 + step)  # of dropout
        with torch.autocast("cpu", dtype=amp, enabled=amp is not None):
            output = model(x)
        found[f"output {step}"] = output.detach()
        F.cross_entropy(output.float(), torch.tensor([0, 1, 2])).backward()
    if x.requires_grad:
        found["gradient of x"] = x.grad
    for name, parameter in model.named_parameters():
        found[f"gradient of {name}"] = parameter.grad
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(found, expected, *, exact=("output", "gradient", "features")):
    """Equal; to the last bit where names begin with one of `exact`, and where
    :func:`assert_exact` says so.
    """
    expected = by_usual_name(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or name.startswith(exact):
            assert_exact(found[name], value, name)
        else:
            assert_near(found[name], value, name)


def in_eval_mode(model):
    model.eval()


def in_channels_last(model):
    model.to(memory_format=torch.channels_last)


def in_float64(model):
    model.double()


def frozen_norms(model):
    for module in norms(model):
        module.eval()


def frozen_parameters(model):
    model.features.denseblock1.requires_grad_(False)
    model.features.denseblock2.denselayer2.norm1.requires_grad_(False)
    model.features.denseblock2.denselayer2.conv2.requires_grad_(False)
    model.features.transition1.conv.requires_grad_(False)


def frozen_stem(model):
    model.features.conv0.requires_grad_(False)
    model.features.norm0.requires_grad_(False)


def only_the_norms_learn(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)


def norms_without_weights(model):
    for module in norms(model):
        module.affine, module.weight, module.bias = False, None, None


def norms_that_do_not_track(model):
    for module in norms(model):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
    model.features.denseblock1.eval()


def norms_that_average_all_batches(model):
    for module in norms(model):
        module.momentum = None


def other_norms_here_and_there(model):
    model.features.denseblock2.denselayer1.norm1 = nn.GroupNorm(2, 8)
    model.features.denseblock2.denselayer2.norm2 = nn.Identity()


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def nothing(model):
    pass


@each_mode
@pytest.mark.parametrize(
    "change",
    [
        nothing,
        in_eval_mode,
        in_channels_last,
        in_float64,
        frozen_norms,
        frozen_parameters,
        frozen_stem,
        only_the_norms_learn,
        norms_without_weights,
        norms_that_do_not_track,
        norms_that_average_all_batches,
        other_norms_here_and_there,
    ],
)
@pytest.mark.parametrize("x_requires_grad", [True, False])
def test_outputs_gradients_and_buffers_are_the_plain_models(mode, change, x_requires_grad):
    results = []
    for model in pair(mode):
        change(model)
        x = images().to(next(model.parameters()).dtype).detach().requires_grad_(x_requires_grad)
        results.append(steps(model, x))
    # In float64 the running variance takes another path to the same digits, all but the last.
    exact = ("output", "gradient") if change is in_float64 else ("output", "gradient", "features")
    if mode == "fused" and change is in_channels_last:
        exact = ()  # kernels of our own: see `test_fused.py`
    assert_same(results[1], results[0], exact=exact)


@each_mode
@pytest.mark.parametrize(
    "options",
    [
        {"drop_rate": 0.3},
        {"bn_size": None},
        {"stem": "cifar"},
        {"stem": "cifar", "drop_rate": 0.3, "bn_size": None},
        {"block_config": (1,)},
        {"compression": 1.0, "in_channels": 3, "block_config": (1, 1, 2)},
    ],
)
def test_every_kind_of_network_gives_the_plain_numbers(mode, options):
    assert list(network(False, **options).state_dict()) == list(
        network(mode, **options).state_dict()
    )
    plain, efficient = pair(mode, **options)
    assert_same(steps(efficient, images()), steps(plain, images()))


@each_own_mode
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("change", [nothing, in_eval_mode, in_channels_last])
def test_pooling_before_the_transitions_convolution_moves_the_last_digits_alone(
    mode, dtype, most, change
):
    results = []
    for model in (network(False), network(mode)):
        model.to(dtype)
        change(model)
        results.append(steps(model, images().to(dtype).detach().requires_grad_()))
    for name, expected in results[0].items():
        error = (results[1][name].double() - expected.double()).norm()
        assert error <= most * expected.double().norm(), name


@each_mode
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", [nothing, in_channels_last])
def test_mixed_precision_gives_the_plain_numbers(mode, amp, change):
    results = []
    for model in pair(mode):
        change(model)
        results.append(steps(model, images(), amp=amp))
    assert all(value.dtype != amp for name, value in results[1].items() if "gradient" in name)
    assert_same(results[1], results[0], exact=("output", "gradient"))


@each_mode
def test_true_gradients_by_finite_differences(mode):
    torch.manual_seed(0)
    model = nn.Sequential(DenseBlock(2, 3, 2, 2, 0.0), Transition(7, 3)).double()
    set_memory_efficient(model, mode)
    names = [name for name, _ in model.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters)), (x,))

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *model.parameters()))


@each_mode
def test_a_layer_alone_takes_a_tensor_or_a_list(mode):
    torch.manual_seed(0)
    plain = DenseLayer(12, 4, 4, 0.0)
    efficient = set_memory_efficient(copy.deepcopy(plain), mode)
    pieces = [torch.randn(2, 8, 5, 7, requires_grad=True), torch.randn(2, 4, 5, 7)]
    for input in (pieces, torch.cat(pieces, 1).detach()):
        gradients = []
        for layer in (plain, efficient):
            layer.zero_grad()
            pieces[0].grad = None
            layer(input).square().sum().backward()
            gradients.append([pieces[0].grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*gradients):
            assert_exact(b, a)


@each_mode
@pytest.mark.parametrize("learns", ["norm1.weight", "norm1.bias", "conv1.weight", "norm2.bias"])
def test_a_single_parameter_of_a_layer_may_learn(mode, learns):
    torch.manual_seed(0)
    plain = DenseLayer(8, 4, 4, 0.0).requires_grad_(False)
    plain.get_parameter(learns).requires_grad_()
    efficient = set_memory_efficient(copy.deepcopy(plain), mode)
    x = torch.randn(2, 8, 5, 7)
    for layer in (plain, efficient):
        layer(x).square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert_exact(efficient.get_parameter(name).grad, parameter.grad, name)


def test_any_order_of_operations_in_a_sequence():
    torch.manual_seed(0)
    parts = [
        *(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False)),
        *(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2, bias=False)),
        nn.AvgPool2d(2),
    ]
    plain = nn.Sequential(*parts)
    efficient = RecomputedSequential(*copy.deepcopy(parts))
    results = []
    for model in (plain, efficient):
        x = torch.randn(
            2, 3, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True
        )
        model(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        assert_exact(b, a)


@each_mode
def test_batches_are_counted_where_nothing_else_is_tracked(mode):
    block = set_memory_efficient(DenseBlock(2, 8, 4, 4, 0.0), mode)
    for norm in norms(block):
        norm.running_mean = norm.running_var = None
    for _ in range(3):
        block(torch.randn(2, 8, 5, 5)).sum().backward()
    assert [norm.num_batches_tracked.item() for norm in norms(block)] == [3] * 4


@each_own_mode
@pytest.mark.parametrize("size", [(2, 2), (2, 6), (4, 4), (5, 4), (3, 3)])
@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_transitions_of_every_size(mode, size, format):
    """Also where they leave a single pixel, whose gradient goes to four."""
    torch.manual_seed(0)
    plain = Transition(6, 3).double().to(memory_format=format)
    results = []
    for transition in (plain, set_memory_efficient(copy.deepcopy(plain), mode)):
        x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1)).double()
        x = x.to(memory_format=format).requires_grad_()
        weights = torch.linspace(-1, 1, 3).double().view(3, 1, 1)
        (transition(x) * weights).square().sum().backward()
        results.append([x.grad, *(p.grad for p in transition.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_transition_may_stand_open_in_a_sequence():
    def sequence():
        torch.manual_seed(0)
        transition = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1, bias=False), nn.AvgPool2d(2)]
        return nn.Sequential(DenseBlock(1, 4, 2, 4, 0.0), *transition, nn.BatchNorm2d(3))

    results = []
    for model in (sequence(), set_memory_efficient(sequence(), "recompute")):
        x = images(requires_grad=False)[:, :1].expand(-1, 4, -1, -1).clone().requires_grad_()
        model(x).square().mean().backward()
        results.append([x.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


@each_mode
def test_without_gradients_nothing_is_kept_and_the_numbers_are_the_same(mode):
    plain, efficient = network(False), network(mode)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(efficient(images()), plain(images()))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), efficient.buffers(), strict=True))


@each_mode
def test_two_forward_passes_before_the_backward_passes(mode):
    results = []
    for model in pair(mode):
        first, second = model(images()), model(images().flip(0))
        first.sum().backward()
        second.square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        assert_exact(b, a)


@each_mode
def test_a_second_backward_pass_raises_the_usual_error(mode):
    model = network(mode)
    loss = model(images()).sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in model.parameters()]
    loss.backward()
    for parameter, gradient in zip(model.parameters(), once):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@each_own_mode
def test_changing_the_feature_maps_in_place_is_an_error_not_a_wrong_gradient(mode):
    block = set_memory_efficient(DenseBlock(3, 8, 4, 4, 0.0), mode)
    output = block(torch.randn(2, 8, 6, 6))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@each_mode
def test_a_batch_without_variance_is_refused_as_ever(mode):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        set_memory_efficient(Transition(8, 4), mode)(torch.randn(1, 8, 1, 1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        set_memory_efficient(DenseLayer(8, 4, 4, 0.0), mode)(torch.randn(1, 8, 1, 1))


@each_mode
def test_a_copy_stands_on_its_own(mode):
    model = network(mode)
    model(images()).sum().backward()
    model.zero_grad()
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = steps(model, images())
    assert_same(steps(copied, images()), expected)
    assert_same(steps(loaded, images()), expected)


def watch(model, pattern):
    """Hook what has `pattern` in its name; returns what the hooks see, and the outputs with copies
    of them.
    """
    seen, held = {}, []

    def hook(name, module):
        def forward(module, inputs, output):
            seen.setdefault(f"forward {name}", output.detach().clone())
            held.append((output, output.clone()))

        def backward(module, grad_inputs, grad_outputs):
            seen[f"backward {name}"] = grad_outputs[0].clone()

        module.register_forward_hook(forward)
        module.register_full_backward_hook(backward)

    for name, module in model.named_modules():
        if pattern in name.split(".")[-1]:
            hook(name, module)
    return seen, held


@each_mode
@pytest.mark.parametrize(
    "pattern", ["denselayer", "denseblock", "transition1", "norm", "conv", "relu", "pool", ""]
)
def test_hooks_see_what_they_see_in_the_plain_model(mode, pattern):
    results = []
    watched = any(pattern in part for part in ("norm", "relu", "conv", "pool"))
    # A transition in which a hook sees a part runs in the usual order.
    for model in (network(False), network(mode)) if watched else pair(mode):
        seen, held = watch(model, pattern)
        seen |= steps(model, images())
        assert all(torch.equal(output, copy) for output, copy in held)
        results.append(seen)
    assert len(results[0]) > 20
    assert_same(results[1], results[0])


@each_mode
def test_a_hook_may_replace_what_a_layer_returns(mode):
    results = []
    for model in pair(mode):
        model.features.denseblock1.denselayer1.register_forward_hook(lambda m, i, o: o * 2)
        model.features.denseblock1.register_forward_hook(lambda m, i, o: o + 1)
        results.append(steps(model, images()))
    assert_same(results[1], results[0])


def changed_in_place(model):
    """Features that change where they are, between the block that made them and what reads them."""
    model.features.transition1.register_forward_pre_hook(
        lambda m, inputs: inputs[0].mul_(2).add_(1)
    )


def a_module_that_changes_in_place(model):
    features = list(model.features.named_children())
    for name, _ in features:
        delattr(model.features, name)
    for name, module in features:
        model.features.add_module(name, module)
        if name.startswith("denseblock"):
            model.features.add_module(f"after {name}", nn.Hardtanh(-0.5, 0.5, inplace=True))


def a_norm_that_changes_its_input(model):
    class Shifting(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.sub_(1))

    norm = model.features.denseblock1.denselayer2.norm1
    norm.__class__ = Shifting


def a_block_that_changes_its_output(model):
    model.features.denseblock1.register_forward_hook(lambda m, inputs, output: output.mul_(3))


@each_mode
@pytest.mark.parametrize(
    "change",
    [
        changed_in_place,
        a_module_that_changes_in_place,
        a_norm_that_changes_its_input,
        a_block_that_changes_its_output,
    ],
)
def test_statistics_are_those_of_the_features_that_are_read(mode, change):
    """Not those that the features had before somebody changed them."""
    results = []
    for model in pair(mode):
        change(model)
        output = model(images(requires_grad=False))
        results.append({"output": output.detach()} | dict(model.named_buffers()))
    assert_same(results[1], results[0])


@each_own_mode
def test_synchronised_norms_run_as_they_are(mode):
    """In evaluation mode, which is all they do on a CPU; in training, see `test_distributed.py`."""
    plain, efficient = (
        nn.SyncBatchNorm.convert_sync_batchnorm(network(m)).eval() for m in (False, mode)
    )
    assert_same(steps(efficient, images()), steps(plain, images()))


@each_mode
def test_torch_compile_gives_the_plain_numbers(mode):
    torch._dynamo.reset()
    options = {"block_config": (2, 2), "stem": "cifar"}
    model = network(mode, **options)
    found = steps(torch.compile(model, backend="aot_eager", fullgraph=True), images())
    expected = steps(network(False, **options), images())
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    assert_same(found, expected, exact=())


STEPPING_ASIDE = """
import sys, warnings
import torch
from torch import nn
from densenet_tutorial import DenseNet

def model():
    return DenseNet(4, (2, 2), 8, num_classes=5, stem="cifar", memory_efficient=sys.argv[1])

x = torch.randn(2, 3, 12, 12)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        nn.SyncBatchNorm.convert_sync_batchnorm(model()).eval()(x)
        model().to("meta")(x.to("meta"))
        torch.compile(model(), backend="aot_eager", fullgraph=True)(x)
for warning in caught:
    if "memory_efficient" in str(warning.message):
        print(warning.message)
"""


@each_mode
def test_each_reason_to_step_aside_is_said_once_in_a_process(mode):
    run = subprocess.run(
        [sys.executable, "-c", STEPPING_ASIDE, mode], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "memory_efficient: SyncBatchNorm cannot be recomputed; such layers run as they are",
        "memory_efficient has no effect on the device 'meta', only on CPUs and CUDA",
        "memory_efficient has no effect in torch.compile, which decides by itself what to keep",
    ]


def distributed_steps(rank, processes, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes
    )
    x = torch.randn(processes, 3, 3, 36, 44, generator=torch.Generator().manual_seed(0))[rank]
    found = {
        mode: [steps(DistributedDataParallel(model), x) for model in pair(mode)] for mode in MODES
    }
    torch.distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
@pytest.mark.parametrize("processes", [1, 2])
def test_distributed_data_parallel_gives_the_plain_numbers(processes, tmp_path):
    if processes == 1:
        distributed_steps(0, 1, tmp_path)
    else:
        torch.multiprocessing.spawn(distributed_steps, (2, tmp_path), nprocs=2)
    gradients = []
    for rank in range(processes):
        found = torch.load(tmp_path / f"{rank}.pt")
        for mode in MODES:
            plain, efficient = found[mode]
            assert_same(efficient, plain)
        gradients.append(efficient["gradient of module.features.conv0.weight"])
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


class Convolutions(TorchDispatchMode):
    """Counts convolutions, forward and backward."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket in (
            torch.ops.aten.convolution,
            torch.ops.aten.convolution_backward,
        ):
            self.counts[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "again"), [(False, 0), ("checkpoint", 0), ("recompute", 0), ("minimal", 5)]
)
def test_no_convolution_runs_twice_but_the_bottlenecks(mode, again):
    # PyTorch's checkpointing stops as soon as it has what the backward pass needs: here, before the
    # convolution.
    model = network(mode)
    with Convolutions() as convolutions:
        model(images()).sum().backward()
    number = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert convolutions.counts == {
        "convolution": number + again,
        "convolution_backward": number,
    }


@pytest.mark.parametrize(("mode", "most"), [("checkpoint", 60), ("recompute", 32), ("minimal", 16)])
def test_densenet121_holds_no_more_than_promised(mode, most):
    model = densenet("densenet121", memory_efficient=mode)
    held = memory.saved_activation_bytes(model, torch.randn(2, 3, 224, 224))
    assert held / 2 / 2**20 <= most


@pytest.mark.parametrize(("mode", "share"), [("recompute", 1 / 4), ("minimal", 1 / 8)])
def test_a_cifar_network_holds_a_fraction(mode, share):
    def held(memory_efficient):
        model = densenet("densenet_bc_100_12", memory_efficient=memory_efficient)
        return memory.saved_activation_bytes(model, torch.randn(2, 3, 32, 32))

    assert held(mode) < share * held(False)


@each_own_mode
def test_memory_is_that_of_the_feature_maps_and_grows_linearly_with_depth(mode):
    def held(num_layers):
        block = set_memory_efficient(DenseBlock(num_layers, 8, 2, 4, 0.0), mode)
        return memory.saved_activation_bytes(block, torch.randn(2, 8, 6, 6)) / 4

    maps, pixels = 8 + 4 * 10, 2 * 6 * 6
    bottlenecks = 0 if mode == "minimal" else 10 * 8 * pixels
    statistics = 3 * maps + 10 * 2 * 8  # of the feature maps; of each bottleneck
    assert held(10) == maps * pixels + bottlenecks + statistics
    assert held(200) - held(110) == held(110) - held(20)


@pytest.mark.parametrize(
    ("before", "maps", "statistics"),
    # Of norm, ReLU and convolution only the input is kept; the input of all is there anyway.
    [([], 0, 2), ([nn.BatchNorm2d(4)], 1, 4), ([nn.ReLU()], 1, 2), ([nn.Sigmoid()], 1, 2)],
)
def test_norm_relu_and_convolution_are_found_wherever_they_stand(before, maps, statistics):
    modules = [*before, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 9, 1, bias=False)]
    held = memory.saved_activation_bytes(RecomputedSequential(*modules), torch.randn(2, 4, 5, 5))
    assert held / 4 == maps * 2 * 4 * 5 * 5 + statistics * 4


def test_memory_of_the_plain_model_grows_faster_than_depth():
    def held(num_layers):
        block = DenseBlock(num_layers, 8, 4, 4, 0.0)
        return memory.saved_activation_bytes(block, torch.randn(2, 8, 32, 32))

    assert held(24) - held(16) > 1.2 * (held(16) - held(8))


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    before = copy.deepcopy(model.state_dict())
    relu, convolved, statistics = 2 * 4 * 8 * 8, 2 * 5 * 8 * 8, 2 * 5
    # ReLU and the convolution behind it keep the same tensor; the input and the weights are there
    # anyway.
    saved = memory.saved_activation_bytes(model, torch.randn(2, 3, 10, 10))
    assert saved == 4 * (relu + convolved + statistics)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


RESIDENT = """
import torch
from densenet_tutorial import densenet, memory
from densenet_tutorial.experiments import benchmarks
for mode in ("minimal", "checkpoint"):
    model = densenet("densenet_bc", block_config=(4, 4, 4), memory_efficient=mode)
    x = torch.randn(64, 3, 32, 32)
    print(benchmarks.resident_bytes(model, x), memory.saved_activation_bytes(model, x))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_saved_bytes_agree_with_resident_memory():
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    for line in run.stdout.splitlines():
        resident, saved = map(int, line.split())
        assert saved == pytest.approx(resident, rel=0.03)


@pytest.mark.filterwarnings("ignore:`?torch.jit:FutureWarning", "ignore::DeprecationWarning")
@each_mode
@pytest.mark.parametrize("part", ["", "features.denseblock1", "features.denseblock1.denselayer1"])
def test_scripting_is_refused_in_words(mode, part):
    model = network(mode)
    with pytest.raises(RuntimeError, match=f"cannot compile memory_efficient=.*{mode!r}"):
        torch.jit.script(model.get_submodule(part))
    torch.jit.script(set_memory_efficient(model, False))
