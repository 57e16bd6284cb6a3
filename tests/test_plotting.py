"""Figures are drawn from real modules: what they show must be what the modules are."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch

from densenet_tutorial import DenseBlock, DenseNet, insight, plotting


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [
        figure.get_suptitle()
    ]


@pytest.mark.parametrize("bn_size", [4, None])
def test_connectivity_draws_one_arc_per_connection(bn_size):
    figure = plotting.connectivity(DenseBlock(5, 8, bn_size, 3, 0.0))
    arcs = [p for p in figure.axes[0].patches if isinstance(p, matplotlib.patches.FancyArrowPatch)]
    assert len(arcs) == 15
    assert "5 layers, 15 direct connections" in texts(figure)


def test_channels_shows_what_each_layer_reads():
    figure = plotting.channels(DenseBlock(4, 8, 4, 4, 0.0))
    assert {"8", "12", "16", "20", "24"} <= set(texts(figure))


def test_shapes_costs_and_receptive_fields_name_every_part():
    model = DenseNet(4, (2, 2), 8, num_classes=5, stem="cifar").eval()
    features = model.intermediate_features(torch.randn(1, 3, 16, 16))
    shapes = plotting.shapes(features)
    assert "8 × 16 × 16" in texts(shapes)
    for figure, last in [
        (shapes, "final"),
        (plotting.costs(insight.part_costs(model, 16)), "classifier"),
        (plotting.receptive_fields(insight.receptive_fields(model), 16), "final"),
    ]:
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels[0] == "stem"
        assert labels[-1] == last


def test_confusion_names_the_commonest_mistake():
    matrix = torch.diag(torch.tensor([5, 5, 5]))
    matrix[2, 0] = 3
    assert "Most often: c taken for a" in texts(plotting.confusion(matrix, "abc"))


def test_history_draws_both_sets_and_says_the_accuracy():
    row = {"train_loss": 1.0, "test_loss": 1.1, "train_accuracy": 0.5, "test_accuracy": 0.625}
    figure = plotting.history([row | {"epoch": 1}, row | {"epoch": 2}])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert "62.5%" in figure.get_suptitle()


def test_images_marks_the_wrong_ones():
    figure = plotting.images(
        torch.zeros(3, 1, 4, 4), ["a", "b", "c"], title="t", wrong=[False, True, False]
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "✗ b", "c"]


def test_feature_maps_and_curves_draw_everything():
    assert (
        sum(bool(a.images) for a in plotting.feature_maps(torch.randn(5, 4, 4), title="t").axes)
        == 5
    )
    figure = plotting.curves(
        {"a": [1, 2], "b": [2, 1]}, title="t", xlabel="x", ylabel="y", log_y=True
    )
    assert len(figure.axes[0].lines) == 2


def test_bars_have_their_names_and_numbers():
    figure = plotting.bars({"one": 300.2, "two": 512.8}, title="A title", xlabel="images")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert [bar.get_width() for bar in axes.patches] == [300.2, 512.8]
    assert [text.get_text().strip() for text in axes.texts] == ["300", "513"]


def test_spread_draws_means_and_the_band_around_them():
    figure = plotting.spread(
        {"a": [[0.1, 0.3], [0.3, 0.7]], "b": [[0, 0.2], [0, 0.4]]},
        title="t",
        xlabel="x",
        ylabel="y",
    )
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.2, 0.5], [0, pytest.approx(0.3)]]
    assert len({line.get_marker() for line in axes.lines}) == 2
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.1, 0.7)
