"""Training and evaluation mode: each module comes back in the one that it was in, also after an
error.
"""

import pytest
import torch
from torch import nn

from densenet_tutorial import DenseNet, training
from densenet_tutorial.training import evaluation_mode


class Folding(nn.Linear):
    """A module that does something in its own `train`, as adapters that fold their weights do."""

    folded = False

    def train(self, mode=True):
        self.folded = not mode
        return super().train(mode)


@pytest.fixture
def model():
    """In training, but for two of its parts."""
    made = DenseNet(2, (1, 1), 2, num_classes=10, in_channels=1, stem="cifar").train()
    made.features.denseblock1.denselayer1.norm1.eval()
    training.freeze(made.features.transition1)
    made.classifier = Folding(made.classifier.in_features, 10)
    return made


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("in_training", [True, False])
def test_every_module_comes_back(model, failing, in_training):
    if not in_training:
        model.eval()
        model.features.denseblock2.train()
    before = modes(model)
    try:
        with evaluation_mode(model) as inside:
            assert inside is model and not any(modes(model)) and model.classifier.folded
            with evaluation_mode(model.features):
                pass
            assert not any(modes(model))
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert failing
    assert modes(model) == before
    assert model.classifier.folded is not in_training


def test_prediction_and_evaluation_leave_every_mode(model, dataset):
    before = modes(model)
    statistics = model.features.norm5.num_batches_tracked.item()
    training.predict(model, dataset, dataset.test_images)
    training.evaluate(model, dataset)
    assert modes(model) == before
    assert model.features.norm5.num_batches_tracked == statistics


def test_a_prediction_that_fails_leaves_every_mode(model, dataset):
    before = modes(model)
    wide = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)  # colour, for a network of grey pictures
    with pytest.raises(ValueError):
        training.predict(model, dataset, wide)
    model.features.norm5.forward = None
    with pytest.raises(TypeError):
        training.evaluate(model, dataset)
    assert modes(model) == before
