"""Layers, blocks and transitions: shapes, what depends on what, and torchvision's numbers."""

import pytest
import torch
from torchvision.models import densenet as theirs

from densenet_tutorial import DenseBlock, DenseLayer, Transition


def test_a_layer_takes_a_tensor_or_a_list_of_tensors():
    layer = DenseLayer(12, 4, bn_size=4, drop_rate=0.0).eval()
    pieces = [torch.randn(2, 8, 5, 7), torch.randn(2, 4, 5, 7)]
    from_list = layer(pieces)
    assert from_list.shape == (2, 4, 5, 7)
    assert torch.equal(from_list, layer(torch.cat(pieces, 1)))


@pytest.mark.parametrize("training", [True, False])
def test_each_piece_agrees_with_torchvisions(training):
    x = torch.randn(2, 8, 6, 6)
    for ours, other in [
        (DenseLayer(8, 4, 4, 0.0), theirs._DenseLayer(8, 4, 4, 0.0)),
        (DenseBlock(3, 8, 4, 4, 0.0), theirs._DenseBlock(3, 8, 4, 4, 0.0)),
        (Transition(8, 5), theirs._Transition(8, 5)),
    ]:
        other.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours.train(training)(x), other.train(training)(x.clone()))


def test_a_block_keeps_its_input_first_and_appends_each_layers_output():
    block = DenseBlock(3, 8, 4, 4, 0.0).eval()
    x = torch.randn(2, 8, 6, 6)
    output = block(x)
    assert output.shape == (2, 8 + 3 * 4, 6, 6)
    assert torch.equal(output[:, :8], x)
    for i, layer in enumerate(block.values()):
        first = 8 + 4 * i
        torch.testing.assert_close(output[:, first : first + 4], layer(output[:, :first]))


def test_each_layer_reads_every_earlier_output():
    block = DenseBlock(3, 8, 4, 4, 0.0).eval()
    outputs = {}
    for name, layer in block.items():
        layer.register_forward_hook(lambda m, i, output, name=name: outputs.update({name: output}))
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    block(x)
    names = list(outputs)
    for i, name in enumerate(names):
        sources = [x, *(outputs[earlier] for earlier in names[:i])]
        gradients = torch.autograd.grad(outputs[name].sum(), sources, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_dropout_acts_on_the_new_features_in_training_alone():
    torch.manual_seed(0)
    layer = DenseLayer(8, 4, bn_size=4, drop_rate=0.5)
    x = torch.randn(8, 8, 16, 16)
    dropped = (layer(x) == 0).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.05)
    assert (layer.eval()(x) != 0).all()


def test_a_transition_halves_and_rounds_down():
    assert Transition(8, 4)(torch.randn(2, 8, 6, 7)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (DenseLayer, (0, 4, 4, 0.0), "num_input_features"),
        (DenseLayer, (8, 4, 4, 2.0), "drop_rate"),
        (DenseLayer, (8, 4, 0, 0.0), "bn_size"),
        (DenseBlock, (0, 8, 4, 4, 0.0), "num_layers"),
        (DenseBlock, (2, 8, 4, "4", 0.0), "growth_rate"),
        (DenseBlock, (2, None, 4, 4, 0.0), "num_input_features"),
        (Transition, (8, 0), "num_output_features"),
        (Transition, (-1, 4), "num_input_features"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        kind(*arguments)
