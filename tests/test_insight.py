"""Costs against torchvision's published figure, receptive fields against gradients."""

import pytest
import torch
from torch import nn

from densenet_tutorial import DenseNet, densenet, insight


def test_multiply_adds_of_densenet121_are_the_published_ones():
    costs = insight.part_costs(densenet("densenet121"), image_size=224)
    # torchvision's table, https://docs.pytorch.org/vision/stable/models.html
    assert round(sum(part.multiply_adds for part in costs) / 1e9, 2) == 2.83
    assert sum(part.parameters for part in costs) == 7_978_856
    assert costs[-1].shape == (1000,)


def test_costs_leave_the_model_as_it_was():
    model = DenseNet(4, (1, 1), 8, num_classes=5).train()
    insight.part_costs(model, image_size=32)
    assert model.training
    assert model.features.norm5.num_batches_tracked == 0


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 160), ("cifar", 48)])
def test_receptive_fields_equal_where_gradients_arrive(stem, size):
    model = DenseNet(3, (2, 1), 4, num_classes=2, stem=stem).eval()
    for (
        module
    ) in model.modules():  # every path open: positive weights, no maximum, no ReLU that blocks
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    if stem == "imagenet":
        model.features.pool0 = nn.AvgPool2d(3, 2, 1)
    x = torch.rand(1, 3, size, size, requires_grad=True)
    for field in insight.receptive_fields(model):
        features = model.intermediate_features(x)[field.name]
        middle = features.shape[-1] // 2
        widths = []
        for channel in features[0, :, middle, middle]:
            (gradient,) = torch.autograd.grad(channel, x, retain_graph=True)
            rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
            widths.append(int(rows[-1] - rows[0]) + 1)
        assert (min(widths), max(widths)) == (field.shortest, field.longest), field.name
