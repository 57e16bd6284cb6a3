"""Plain and residual networks: wired as they say, and as large as the DenseNet that they are
compared with.
"""

import pytest
import torch
from torch import nn

from densenet_tutorial import DenseNet
from densenet_tutorial.experiments import baselines
from densenet_tutorial.layers import DenseLayer


def layers_with_weights(model):
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())


@pytest.mark.parametrize("wiring", baselines.WIRINGS)
@pytest.mark.parametrize("blocks", [(4,), (1, 3, 3), (6, 6, 6)])
def test_equal_depth_and_nearest_number_of_parameters(wiring, blocks):
    dense = DenseNet(12, blocks, 24, num_classes=7, in_channels=2, stem="cifar")
    before = torch.random.get_rng_state()
    model = baselines.of_equal_budget(dense, wiring)
    assert layers_with_weights(model) == layers_with_weights(dense)
    budget = baselines.count(dense)
    gap = abs(baselines.count(model) - budget)
    width = model.width
    for other in (width - 1, width + 1):
        neighbour = baselines.StackedNet(wiring, other, blocks, 7, in_channels=2)
        assert gap <= abs(baselines.count(neighbour) - budget)
    # The search drew no random numbers: the seed alone decides the weights.
    torch.random.set_rng_state(before)
    again = baselines.StackedNet(wiring, width, blocks, 7, in_channels=2)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert model(torch.randn(2, 2, 16, 16)).shape == (2, 7)


def test_without_its_layers_a_residual_network_is_the_identity_and_a_plain_one_is_zero():
    for wiring in baselines.WIRINGS:
        model = baselines.StackedNet(wiring, 3, (5,), in_channels=1).eval()
        for module in model.modules():
            if isinstance(module, (DenseLayer, baselines.PostActivationLayer)):
                nn.init.zeros_(module.conv2.weight)
        seen = []
        model.features.norm5.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        x = torch.randn(2, 1, 8, 8)
        model(x)
        expected = {
            "plain": torch.zeros(2, 3, 8, 8),
            "residual": model.features.conv0(x),
            "residual-v1": model.features[:3](x),
        }[wiring]
        assert torch.equal(seen[0], expected)


def test_other_kinds_of_network_are_refused():
    for reference in (
        DenseNet(4, (1, 1), 8, stem="imagenet"),
        DenseNet(4, (1, 1), 8, None, stem="cifar"),
    ):
        with pytest.raises(ValueError, match="reference must be a DenseNet"):
            baselines.of_equal_budget(reference, "plain")
    with pytest.raises(ValueError, match="wiring must be one of 'plain', 'residual'"):
        baselines.StackedNet("dense", 3, (1,))
