"""`optimize_for_inference`: the outputs of the plain model; a refusal where they would differ."""

import copy
import functools
import gc
import itertools
import pickle
import random
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

import densenet_tutorial
from densenet_tutorial import DenseNet, densenet, optimize_for_inference, training
from densenet_tutorial.inference import BottleneckLayer, clamp_bounds, scale_and_shift
from densenet_tutorial.memory import MODES

OPTIONS = {
    "stem": ["imagenet", "cifar"],
    "bn_size": [None, 1, 4],
    "compression": [0.5, 0.8, 1.0],
    "in_channels": [1, 3],
    "block_config": [(1,), (2, 3), (3, 1, 2), (1, 1, 1, 1, 1)],
    "growth_rate": [1, 4, 12],
    "num_init_features": [1, 8, None],
    "num_classes": [1, 10],
    "drop_rate": [0.0, 0.2],
}


def trained(model, seed=0):
    """`model` in evaluation mode, as if trained: odd weights of norms, and statistics to match.

    Variances are at least 0.1: where a feature map never changes, batch norm would make 300 times
    as much of its rounding, in each layer, and no two orders of computation would agree.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            with torch.no_grad():
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
                # Off, hardly on, and as it is most often in networks that are trained.
                choice = torch.rand(len(module.weight), generator=generator)
                module.weight[choice < 0.15] = 0
                module.weight[(choice > 0.15) & (choice < 0.2)] = 1e-38
                module.weight[(choice > 0.2) & (choice < 0.25)] = -1e-41  # subnormal
                module.bias[choice > 0.9] = 0
    x = torch.randn(4, model.in_channels, 64, 64, generator=generator)
    model.train()(x * 3 + 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.clamp_(min=0.1)
    return model.eval()


def distance(found, expected):
    """Largest difference, as a fraction of the largest number that is expected."""
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def images(model, n=2, height=32, width=32):
    return torch.randn(n, model.in_channels, height, width, generator=torch.manual_seed(3))


@functools.cache
def small():
    model = DenseNet(4, (2, 2), 8, num_classes=5, in_channels=1, stem="imagenet")
    return trained(model)


@pytest.mark.parametrize("seed", range(40))
def test_random_models(seed):
    choose = random.Random(seed)
    torch.manual_seed(seed)
    model = trained(DenseNet(**{name: choose.choice(v) for name, v in OPTIONS.items()}), seed)
    optimized = optimize_for_inference(model)
    sizes = [model.min_size, model.min_size + 1, max(33, model.min_size), 96]
    for height, width in itertools.product(choose.sample(sizes, 2), choose.sample(sizes, 2)):
        x = images(model, choose.choice([1, 3]), height, width)
        assert distance(optimized(x), model(x).detach()) < 1e-5


@pytest.mark.parametrize("name", densenet_tutorial.list_models())
def test_named_models(name):
    big = name in ("densenet_bc_250_24", "densenet_bc_190_40")
    model = trained(densenet(name, **({"block_config": (3, 3, 3)} if big else {})))
    x = images(model, 1)
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


def test_bundled_weights():
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    data = densenet_tutorial.data.load_dataset("fashion-mini")
    x = data.normalize(data.test_images[:200])
    expected = model(x).detach()
    assert distance(optimize_for_inference(model)(x), expected) < 1e-5
    moved = optimize_for_inference(model, dtype=torch.bfloat16)(x)
    assert moved.dtype == torch.float32
    assert distance(moved, expected) < 0.03
    assert (moved.argmax(1) == expected.argmax(1)).float().mean() > 0.97


@pytest.mark.parametrize("scale", [-3.0, -1e-30, -1e-41, 0.0, 1e-45, 1e-30, 0.5, 40.0])
@pytest.mark.parametrize("shift", [-100.0, -1e-20, 0.0, 1e-20, 0.3, 100.0])
def test_clamp_is_relu_of_the_norm(scale, shift):
    x = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    s, t = torch.tensor([scale]).double(), torch.tensor([shift]).double()
    low, high, factor, summand = (v.item() for v in clamp_bounds(s, t))
    found = factor * x.clamp(low, high) + summand
    assert torch.allclose(found, (s * x + t).relu(), rtol=1e-12, atol=1e-13 * abs(shift) + 1e-30)


def test_scale_and_shift_are_the_norm():
    norm = small().features.norm5
    scale, shift = scale_and_shift(norm)
    x = images(small(), 2).double().expand(-1, len(scale), -1, -1)
    found = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    assert torch.allclose(found, copy.deepcopy(norm).double()(x))


def test_nearly_flat_images_keep_their_digits():
    """Their feature maps vary little around large means, so scale and shift nearly cancel."""
    errors = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = DenseNet(8, (3, 3), 16, num_classes=10, stem="cifar")
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        x = 30 + 0.001 * torch.randn(4, 3, 64, 64)
        model.train()(x)
        model.eval()
        exact = copy.deepcopy(model).double()(x.double()).detach()
        optimized = optimize_for_inference(model)
        errors.append([distance(found.double(), exact) for found in (model(x), optimized(x))])
    plain, ours = torch.tensor(errors).median(0).values
    assert ours < 3 * plain  # 5 times without the condition in `_norm_relu_conv`


@pytest.mark.parametrize("bias", [-10.0, -30.0, -1000.0, 1000.0])
def test_feature_maps_that_are_off_cost_no_digits(bias):
    """There, scaled bound and shift cancel, and would leave the rounding of a large number."""
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    x = images(model, 4, 28, 28)
    for name, module in model.named_modules():
        if name.endswith("norm1"):
            module.bias.data[::8] = bias
    exact = copy.deepcopy(model).double()(x.double()).detach()
    plain, ours = (distance(m(x).double(), exact) for m in (model, optimize_for_inference(model)))
    assert ours < 3 * plain + 1e-6


def test_trained_networks_are_folded():
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    kinds = [type(module).__name__ for module in optimize_for_inference(model).modules()]
    assert kinds.count("BatchNorm2d") == 1  # the last
    assert kinds.count("Clamp") == sum(
        n.endswith(("norm1", ".norm")) for n, _ in model.named_modules()
    )


@pytest.mark.parametrize("size", [1e10, 1e17])
def test_huge_images(size):
    torch.manual_seed(0)
    model = DenseNet(8, (3, 3), 16, num_classes=10, stem="cifar")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.constant_(module.bias, 20)
    x = size * torch.randn(4, 3, 32, 32)
    model.train()(x)
    model.eval()
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_memory_efficient_models(mode):
    model = densenet_tutorial.set_memory_efficient(copy.deepcopy(small()), mode)
    classes = [type(module) for module in model.modules()]
    x = images(model)
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5
    assert [type(module) for module in model.modules()] == classes


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    model = copy.deepcopy(small())
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    optimized = optimize_for_inference(model)
    optimized(images(model))
    assert torch.equal(torch.randn(3, generator=torch.manual_seed(0)), expected)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not model.training
    shared = {p.data_ptr() for p in model.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in optimized.parameters())


def test_random_numbers_are_not_used():
    torch.manual_seed(0)
    optimize_for_inference(small())
    found = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(found, torch.randn(3))


def test_frozen_models():
    model = copy.deepcopy(small()).train()
    training.freeze(model.features)
    model.eval()
    x = images(model)
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


@pytest.mark.parametrize(
    "classifier", [nn.Identity(), nn.Sequential(nn.Linear(1, 2), nn.Sigmoid())]
)
def test_other_classifiers(classifier):
    model = copy.deepcopy(small())
    if isinstance(classifier, nn.Sequential):
        classifier[0] = nn.Linear(model.num_features, 2)
    model.classifier = classifier.eval()
    x = images(model)
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


def test_float64():
    model = copy.deepcopy(small()).double()
    x = images(model).double()
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-13
    single = optimize_for_inference(model, dtype=torch.float32)(x)
    assert single.dtype == torch.float64 and 1e-9 < distance(single, model(x).detach()) < 1e-5


def test_no_gradients():
    x = images(small()).requires_grad_()
    assert not optimize_for_inference(small())(x).requires_grad


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last, "transposed", "expanded"]
)
def test_inputs_in_any_layout(memory_format):
    x = images(small(), 2, 32, 40)
    if memory_format == "transposed":
        x = x.mT
    elif memory_format == "expanded":
        x = x[:1].expand(3, -1, -1, -1)
    else:
        x = x.to(memory_format=memory_format)
    kept = x.clone()
    assert distance(optimize_for_inference(small())(x), small()(x).detach()) < 1e-5
    assert torch.equal(x, kept)


def test_empty_batch():
    x = images(small(), 0)
    assert optimize_for_inference(small())(x).shape == small()(x).shape == (0, 5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_invalid_pixels_show(value):
    x = images(small(), 2)
    x[0, 0, 3, 3] = value
    found, expected = optimize_for_inference(small())(x), small()(x).detach()
    assert torch.equal(found.isnan(), expected.isnan())
    assert distance(found[1], expected[1]) < 1e-5


def test_autocast():
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    x = images(model, 4, 28, 28)
    optimized = optimize_for_inference(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = optimized(x)
    assert 1e-4 < distance(found.float(), model(x).detach()) < 0.05
    assert distance(optimized(x), model(x).detach()) < 1e-5  # nothing is left of it


def test_copies_files_and_moves():
    model = small()
    x = images(model)
    optimized = optimize_for_inference(model)
    expected = optimized(x)  # from now on with rearranged weights
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert torch.equal(other(x), expected)
    doubled = copy.deepcopy(optimized).double()
    assert distance(doubled(x.double()).float(), expected) < 1e-5


def test_in_inference_mode_and_after_it():
    x = images(small())
    optimized = optimize_for_inference(small())
    with torch.inference_mode():
        first = optimized(x)
    assert torch.equal(optimized(x), first)
    assert torch.equal(optimized(x.requires_grad_()), first)


def test_images_of_changing_sizes():
    optimized = optimize_for_inference(small())
    for n, side in ((1, 32), (2, 32), (1, 32), (1, 40), (1, 32)):
        x = images(small(), n, side)
        assert distance(optimized(x), small()(x).detach()) < 1e-5


def test_one_activation_for_all():
    model = copy.deepcopy(small())
    relu = model.features.relu0
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], relu)
    x = images(model)
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


def test_float16_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be .*got torch\.float16"):
        optimize_for_inference(copy.deepcopy(small()).half())
    model = copy.deepcopy(small()).half()
    found = optimize_for_inference(model, dtype=torch.float32)(images(model).half())
    assert found.dtype == torch.float16 and distance(found, small()(images(model))) < 0.02


@pytest.mark.parametrize("first", [True, False])
def test_weights_of_another_model_for_one_call(first):
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    x = images(model, 2, 28, 28)
    optimized, expected = optimize_for_inference(model), optimize_for_inference(model)(x)
    state = {name: 1.01 * value for name, value in optimized.state_dict().items()}
    if not first:
        optimized(x)
    found = torch.func.functional_call(optimized, state, (x,))
    assert distance(found, expected) > 1e-3
    assert torch.equal(optimized(x), expected)
    optimized.load_state_dict(state)
    assert torch.equal(optimized(x), found)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_change_are_used(assign):
    optimized = optimize_for_inference(small())
    x = images(small())
    for factor in (1.0, 1.1, 1.2):
        state = {name: factor * value for name, value in optimized.state_dict().items()}
        other = optimize_for_inference(small())
        optimized(x)
        for found in (optimized, other):
            found.load_state_dict(state, assign=assign)
        assert torch.equal(optimized(x), other(x))
    for parameter in optimized.parameters():
        parameter.data = 2 * parameter.data
    assert distance(optimized(x), other(x)) > 1e-3


def test_it_stays_in_evaluation_mode():
    optimized = optimize_for_inference(small())
    x = images(small())
    expected, state = optimized(x), copy.deepcopy(optimized.state_dict())
    nn.Sequential(optimized).train()
    assert torch.equal(optimized(x), expected)
    assert all(torch.equal(state[name], value) for name, value in optimized.state_dict().items())


def test_shared_parts():
    torch.manual_seed(0)
    model = DenseNet(8, (2, 2, 2), 16, num_classes=5, stem="cifar", bn_size=2)
    model.features.denseblock2 = model.features.denseblock1
    model.features.transition2 = model.features.transition1
    model = trained(model)
    x = images(model)
    parts = model.intermediate_features(x)
    assert torch.equal(model.forward_features(x), parts["final"])
    assert distance(optimize_for_inference(model)(x), model(x).detach()) < 1e-5


def test_several_threads():
    model = small()
    optimized = optimize_for_inference(model)
    batches = [images(model, n) + n for n in range(1, 9)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(optimized, batches * 4))
    for x, logits in zip(batches * 4, found, strict=True):
        assert distance(logits, model(x).detach()) < 1e-5


def test_export():
    model = small()
    x = images(model, 2)
    dynamic = ({0: torch.export.Dim("n", min=1, max=64)},)
    program = torch.export.export(optimize_for_inference(model), (x,), dynamic_shapes=dynamic)
    more = images(model, 5)
    assert distance(program.module()(more).detach(), model(more).detach()) < 1e-5


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = densenet("densenet_bc", weights="fashion-mnist-small").eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own
        program = torch.onnx.export(
            optimize_for_inference(model),
            (images(model, 2, 28, 28),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    program.save(path)
    onnx.checker.check_model(path)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not any("Scatter" in kind for kind in kinds)  # nothing is copied piece by piece
    session = onnxruntime.InferenceSession(path)
    x = images(model, 5, 28, 28)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert distance(torch.tensor(found), model(x).detach()) < 1e-5


def test_compile():
    """Compiled in one piece, and with no more code for another batch than the plain model."""
    model = small()
    compiled = torch.compile(optimize_for_inference(model), backend="aot_eager", fullgraph=True)
    for n in (2, 5):
        x = images(model, n)
        assert distance(compiled(x), model(x).detach()) < 1e-5


# -------------------------------------------------------------------------------- what is refused


class Other(DenseNet):
    pass


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_invalid_pixels_show_even_if_layers_lose_them(monkeypatch, value):
    """As in layers where cuDNN makes 0 of NaN: what a block was given goes on beside them."""
    forward = BottleneckLayer.forward
    lossy = lambda layer, x: forward(layer, x).nan_to_num(0, 0, 0)
    monkeypatch.setattr(BottleneckLayer, "forward", lossy)
    model = small()
    x = images(model)
    x[0, 0, 10, 10] = value
    logits = optimize_for_inference(model)(x)
    assert not logits[0].isfinite().any() and logits[1].isfinite().all()


def test_nothing_is_left_of_an_optimized_model_that_is_deleted():
    optimized = optimize_for_inference(small(), cuda_graphs=True)
    weight = weakref.ref(optimized.classifier)
    gc.disable()
    try:
        del optimized
        assert weight() is None
    finally:
        gc.enable()


def test_cuda_graphs_elsewhere_have_no_effect():
    model, x = small(), torch.randn(2, 1, 32, 32)
    optimized = optimize_for_inference(model, cuda_graphs=True)
    assert torch.equal(optimized(x), optimize_for_inference(model)(x))
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert other.cuda_graphs and torch.equal(other(x), optimized(x))


@pytest.fixture
def on_gpu():
    """A model on a GPU, what it predicts, and the optimized one that has CUDA graphs."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: CUDA graphs")
    model = small().cuda()
    # The same kernels, in the same order.
    return optimize_for_inference(model), optimize_for_inference(model, cuda_graphs=True)


def gpu_images(n=2, size=32):
    return torch.randn(n, 1, size, size, device="cuda")


def test_cuda_graphs_of_any_shape(on_gpu):
    plain, graphs = on_gpu
    for n, size in [(1, 32), (2, 32), (1, 32), (3, 47), *((i, 40) for i in range(1, 12)), (1, 32)]:
        x = gpu_images(n, size)
        found = graphs(x)
        assert distance(found, plain(x)) < 1e-6
        graphs(gpu_images(n, size))
        assert distance(found, plain(x)) < 1e-6  # not written over
    last = gpu_images().contiguous(memory_format=torch.channels_last)
    for x in (last, last[:, :, ::2], last.mT, gpu_images(0)):
        assert torch.allclose(graphs(x), plain(x), atol=1e-5)


def test_cuda_graphs_read_the_weights_of_now(on_gpu):
    plain, graphs = on_gpu
    x = gpu_images()
    before = graphs(x)
    for optimized in on_gpu:
        with torch.no_grad():
            optimized.classifier.weight.mul_(2)
    assert distance(graphs(x), plain(x)) < 1e-6
    for optimized in on_gpu:
        optimized.classifier.weight = nn.Parameter(optimized.classifier.weight * 2)
    assert distance(graphs(x), plain(x)) < 1e-6
    assert distance(graphs(x), before) > 0.1
    weights = {name: value * 1.5 for name, value in graphs.state_dict().items()}
    called = [torch.func.functional_call(model, weights, (x,)) for model in on_gpu]
    assert distance(*called) < 1e-6
    for optimized in on_gpu:
        optimized.load_state_dict(weights, assign=True)
    assert distance(graphs(x), plain(x)) < 1e-6
    assert distance(graphs.cpu()(x.cpu()), plain.cpu()(x.cpu())) < 1e-6
    assert distance(graphs.cuda()(x), plain.cuda()(x)) < 1e-6


def test_cuda_graphs_follow_settings(on_gpu):
    plain, graphs = on_gpu
    x = gpu_images(8, 64)
    for tf32 in (True, False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32, deterministic=True):
            assert distance(graphs(x), plain(x)) < 1e-6
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(graphs(x), plain(x))
    with torch.inference_mode():
        assert distance(graphs(x), plain(x)) < 1e-6
    assert distance(graphs(x), plain(x)) < 1e-6
    with pytest.raises(ValueError, match=r"x must be torch\.float32"):
        graphs(x.double())


def test_cuda_graphs_in_threads_and_streams(on_gpu):
    plain, graphs = on_gpu
    batches = [gpu_images() for _ in range(40)]
    expected = [plain(x) for x in batches]
    torch.cuda.synchronize()

    def predict(x):
        found = graphs(x)
        torch.cuda.current_stream().synchronize()
        return found

    graphs(batches[0])
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(predict, batches), expected, strict=True):
            assert distance(found, right) < 1e-6
    for x, right in zip(batches[:5], expected, strict=False):
        beside = torch.cuda.Stream()
        with torch.cuda.stream(beside):
            found = graphs(x)
        beside.synchronize()
        assert distance(found, right) < 1e-6
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # of the user's own
        found = graphs(batches[0])
    graph.replay()
    assert distance(found, expected[0]) < 1e-6


def in_training(model):
    model.features.denseblock1.denselayer1.norm1.train()


def hooked(model):
    model.features.transition1.conv.register_forward_hook(lambda *_: None)


def hooked_classifier(model):
    model.classifier.register_forward_pre_hook(lambda *_: None)


def patched(model):
    model.features.denseblock1.denselayer2.forward = lambda x: x


def patched_head(model):
    model.forward_head = lambda x: x


def other_activation(model):
    model.features.denseblock1.denselayer1.relu1 = nn.SiLU()


def extra_module(model):
    model.features.denseblock1.denselayer1.probe = nn.Sigmoid().eval()


def max_pooling(model):
    model.features.transition1.pool = nn.MaxPool2d(2, 2).eval()


def padded_pooling(model):
    model.features.transition1.pool = nn.AvgPool2d(3, 2, padding=1).eval()


def group_norm(model):
    norm = model.features.norm5
    model.features.norm5 = nn.GroupNorm(1, norm.num_features).eval()


def batch_statistics(model):
    norm = model.features.norm5
    model.features.norm5 = nn.BatchNorm2d(norm.num_features, track_running_stats=False).eval()


def biased(model):
    conv = model.features.transition1.conv
    model.features.transition1.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 1).eval()


def strided(model):
    model.features.denseblock1.denselayer1.conv1.stride = (2, 2)


def other_sequence(model):
    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x / 2)

    features = Scaled()
    features._modules = model.features._modules
    model.features = features.eval()


def other_kernel(model):
    conv = model.features.transition1.conv
    conv.weight = nn.Parameter(torch.randn(*conv.weight.shape[:2], 3, 3))


def other_channels(model):
    model.features.conv0 = nn.Conv2d(1, 5, 7, 2, padding=3, bias=False).eval()


def mixed_precision(model):
    model.features.conv0.bfloat16()


def without_a_block(model):
    del model.features.denseblock2


def another_order(model):
    names = list(model.features._modules)
    names[1], names[2] = names[2], names[1]
    model.features._modules = {name: model.features._modules[name] for name in names}


def appended(model):
    model.features.append(nn.Tanh().eval())


def pruned(model):
    prune.l1_unstructured(model.features.conv0, "weight", 0.5)


def normalized(model):
    parametrizations.weight_norm(model.features.conv0)


def not_finite(model):
    model.features.norm5.weight.data[0] = torch.nan


def negative_variance(model):
    model.features.norm5.running_var[0] = -1


@pytest.mark.parametrize(
    "change, words",
    [
        (in_training, r"evaluation mode.*denselayer1\.norm1"),
        (hooked, r"hooks.*transition1\.conv"),
        (hooked_classifier, "hooks.*classifier"),
        (patched, r"methods.*denselayer2"),
        (patched_head, "methods.*the whole"),
        (other_activation, r"denselayer1\.relu1"),
        (extra_module, r"denselayer1\.probe"),
        (max_pooling, r"transition1\.pool"),
        (padded_pooling, r"transition1\.pool"),
        (group_norm, "norm5"),
        (batch_statistics, "norm5"),
        (biased, r"transition1\.conv"),
        (strided, r"denselayer1\.conv1"),
        (other_sequence, "features"),
        (other_kernel, r"transition1\.conv"),
        (other_channels, "predict"),
        (mixed_precision, "one dtype"),
        (without_a_block, "features"),
        (another_order, "order"),
        (appended, r"features\.\d"),
        (pruned, "conv0"),
        (normalized, "conv0"),
        (not_finite, "finite.*norm5"),
        (negative_variance, "negative.*norm5"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused(change, words):
    model = copy.deepcopy(small())
    change(model)
    with pytest.raises(ValueError, match=f"model must .*{words}"):
        optimize_for_inference(model)


def test_a_class_with_other_methods_is_refused(monkeypatch):
    monkeypatch.setattr(DenseNet, "forward_head", lambda self, x: x.mean((2, 3)))
    with pytest.raises(ValueError, match="replaced methods"):
        optimize_for_inference(small())


def test_other_models_are_refused():
    for other in (
        torchvision.models.densenet121(),
        Other(2, (1,), 2).eval(),
        small().features,
        optimize_for_inference(small()),
    ):
        with pytest.raises(ValueError, match=f"model must be a DenseNet.*{type(other).__name__}"):
            optimize_for_inference(other)
    with torch.device("meta"), pytest.raises(ValueError, match="finite numbers"):
        optimize_for_inference(DenseNet(2, (1,), 2).eval())
    with pytest.raises(ValueError, match="evaluation mode"):
        optimize_for_inference(DenseNet(2, (1,), 2))


def test_wrong_inputs_are_refused_as_by_the_model():
    optimized = optimize_for_inference(small())
    for x in (torch.randn(1, 32, 32), torch.randn(1, 3, 32, 32), torch.randn(1, 1, 2, 2), 3):
        with pytest.raises(ValueError) as ours:
            optimized(x)
        with pytest.raises(ValueError) as plain:
            small()(x)
        assert str(ours.value) == str(plain.value)
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.float64"):
        optimized(images(small()).double())
