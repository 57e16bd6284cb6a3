"""Figures are drawn from real modules: what they show must be what the modules are."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import public_functions
import pytest
import torch
from matplotlib.figure import Figure

from densenet_tutorial import DenseNet, figures, insight
from densenet_tutorial.experiments import benchmarks


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [
        figure.get_suptitle()
    ]


def test_costs_and_receptive_fields_name_every_part():
    model = DenseNet(4, (2, 2), 8, num_classes=5, stem="cifar").eval()
    for figure, last in [
        (figures.costs(insight.part_costs(model, 16)), "classifier"),
        (figures.receptive_fields(insight.receptive_fields(model), 16), "final"),
    ]:
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels[0] == "stem"
        assert labels[-1] == last


def test_confusion_names_the_commonest_mistake():
    matrix = torch.diag(torch.tensor([5, 5, 5]))
    matrix[2, 0] = 3
    assert "Most often: c taken for a" in texts(figures.confusion(matrix, list("abc")))


def test_history_draws_both_sets_and_says_the_accuracy():
    row = {"train_loss": 1.0, "test_loss": 1.1, "train_accuracy": 0.5, "test_accuracy": 0.625}
    figure = figures.history([row | {"epoch": 1}, row | {"epoch": 2}])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert "62.5%" in figure.get_suptitle()


def test_images_marks_the_wrong_ones():
    figure = figures.images(
        torch.zeros(3, 1, 4, 4), ["a", "b", "c"], title="t", wrong=[False, True, False]
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "✗ b", "c"]


def test_feature_maps_and_curves_draw_everything():
    assert (
        sum(bool(a.images) for a in figures.feature_maps(torch.randn(5, 4, 4), title="t").axes) == 5
    )
    figure = figures.curves(
        {"a": [1, 2], "b": [2, 1]}, title="t", xlabel="x", ylabel="y", log_y=True
    )
    assert len(figure.axes[0].lines) == 2


def test_bars_have_their_names_and_numbers():
    figure = figures.bars({"one": 300.2, "two": 512.8}, title="A title", xlabel="images")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert [bar.get_width() for bar in axes.patches] == [300.2, 512.8]
    assert [text.get_text().strip() for text in axes.texts] == ["300", "513"]


def test_time_and_memory_places_each_model_at_its_median():
    def measured(name, mib, seconds):
        return benchmarks.MemoryMeasurement(name, mib * 2**20, None, None, None, seconds, 1.0)

    figure = figures.time_and_memory(
        [measured("theirs", 80, [2.0, 3.0, 2.0]), measured("ours", 10, [1.0, 1.5, 4.0])]
    )
    points = [container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers]
    assert points == [[[80, 1]], [[10, 0.75]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["theirs", "ours"]


def test_memory_passes_are_as_long_as_their_bytes():
    ways = {"a": [("norm1", 2e6, 1e6), ("conv1", 1e6, 4e6)], "b": [("conv1", 1e6, 4e6)]}
    figure = figures.memory_passes(ways, title="t")
    bars = [[(bar.get_x(), bar.get_width()) for bar in axes.patches] for axes in figure.axes]
    assert bars == [[(0, 2), (2, 1), (0, 1), (1, 4)], [(0, 1), (1, 4)]]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a: 8 MB", "b: 5 MB"]
    colors = [bar.get_facecolor()[:3] for axes in figure.axes for bar in axes.patches[::2]]
    assert colors[0] != colors[1] == colors[2]


def test_roofline_bends_where_memory_and_arithmetic_meet():
    series = {"a": {"B1": (4.0, 90.0), "B2": (50.0, 120.0)}, "b": {"B1": (8.0, 150.0)}}
    axes = figures.roofline(series, bandwidth=20, compute=200, title="t").axes[0]
    roof, *points = axes.lines
    assert list(zip(*roof.get_data())) == [(2, 40), (10, 200), (150, 200)]
    assert [list(zip(*line.get_data())) for line in points] == [
        list(parts.values()) for parts in series.values()
    ]
    assert {"B1", "B2", "memory: 20 GB/s", "arithmetic: 200 GFLOP/s"} <= {
        text.get_text() for text in axes.texts
    }


def test_ratios_are_to_the_fastest_of_the_first():
    axes = figures.ratios({"a": [4, 2, 3], "b": [1, 3, 1]}, title="t", xlabel="x").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1, 0.5]
    assert [text.get_text().strip() for text in axes.texts] == ["1.00", "0.50"]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[1, 1.5], [0.5, 0.5]]


def test_lines_with_spread_draw_means_bands_and_ours_filled():
    points = [(20.0, [3.0, 5.0]), (10.0, [1.0, 2.0])]
    figure = figures.lines_with_spread(
        {"x": {"ours": points, "theirs": points}, "z": {"theirs": points}},
        title="t",
        ylabel="y",
        log_x=True,
    )
    first, second = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["x", "z"]
    assert first.lines[0].get_xydata().tolist() == [[10, 1.5], [20, 4]]
    band = first.collections[0].get_paths()[0].vertices.tolist()
    assert {(10, 1), (10, 2), (20, 3), (20, 5)} <= {tuple(corner) for corner in band}
    filled = [line.get_markerfacecolor() != "white" for line in first.lines]
    assert filled == [True, False]
    # A name has one colour in all panels.
    assert second.lines[0].get_color() == first.lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "theirs"]
    assert {"10", "20"} <= {label.get_text() for label in first.get_xticklabels()}


def test_lines_keep_their_color_and_marker_where_another_is_missing():
    points = [(1.0, [1.0]), (2.0, [2.0])]

    def last_line(names):
        lines = {name: points for name in names}
        (axes,) = figures.lines_with_spread(
            {"x": lines}, title="t", ylabel="y", order=["ours", "other", "theirs"]
        ).axes
        return axes.lines[-1].get_color(), axes.lines[-1].get_marker()

    assert last_line(["ours", "other", "theirs"]) == last_line(["ours", "theirs"])
    assert last_line(["ours", "other"]) != last_line(["ours", "theirs"])


def test_dots_with_spread_mark_every_value_and_the_mean():
    figure = figures.dots_with_spread(
        {"first": {"ours": [1.0, 2.0, 6.0]}, "second": {"ours": [4.0], "theirs": [5.0, 7.0]}},
        title="t",
        xlabel="x",
        reference=0,
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    drawn = [line.get_xdata() for line in axes.lines]
    assert [list(map(float, x)) for x in drawn[:3]] == [[1, 6], [1, 2, 6], [3]]
    assert [float(x[0]) for x in drawn[2:9:3]] == [3, 4, 6]
    assert list(axes.lines[-1].get_xdata()) == [0, 0]
    heights = [line.get_ydata()[0] for line in axes.lines[2:9:3]]
    assert heights == sorted(heights) and len(set(heights)) == 3


@pytest.fixture(scope="module")
def two_blocks():
    return DenseNet(4, (2, 3), 8, num_classes=5, in_channels=1, stem="cifar").eval()


def test_feature_reuse_draws_a_panel_per_block_and_marks_the_extremes(two_blocks):
    blocks = ("denseblock1", "denseblock2")
    maps = {block: insight.feature_reuse(two_blocks, block) for block in blocks}
    maps["denseblock1"] = torch.tensor(
        [[3.0, 1.0, 2.0], [torch.nan, 2.0, 4.0], [torch.nan, torch.nan, 8.0]]
    )
    figure = figures.feature_reuse_maps({"a": maps, "b": maps}, title="t")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["block 1", "block 2"] * 2
    labels = [label.get_text() for label in panels[0].get_xticklabels()]
    assert labels == ["1", "2", "tr."]
    assert panels[1].get_xticklabels()[-1].get_text() == "end"
    marks = {(line.get_marker(), *line.get_xydata()[0].tolist()) for line in panels[0].lines}
    assert marks == {("o", 0, 0), ("o", 1, 1), ("x", 1, 0), ("o", 2, 2), ("x", 2, 0)}


def test_gradient_norms_draws_the_median_and_the_range():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 4.0]])
    axes = figures.gradient_norms({"a": values, "b": values}, title="t").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [3.0, 4.0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 100.0)
    assert "3 seeds" in axes.get_legend().get_title().get_text()


def test_connection_costs_fills_and_names_what_is_not_noise():
    costs = [
        insight.ConnectionCost(0, 1, lost=50, gained=0, images=100, loss=1.0),
        insight.ConnectionCost(0, 2, lost=2, gained=1, images=100, loss=0.1),
    ]
    reuse = torch.tensor([[0.1, 0.2, 0.3]] * 3)
    figure = figures.connection_costs({"denseblock2": (costs, reuse)}, title="t")
    axes = figure.axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in drawn] == [False, True]
    assert [line.get_xdata()[0] for line in drawn] == pytest.approx([0.1, 0.2])
    assert [text.get_text() for text in axes.texts] == ["in→1"]


def test_grad_cam_shows_the_same_numbers_twice():
    maps = torch.rand(2, 3, 3)
    pictures = torch.randint(0, 256, (2, 1, 12, 12), dtype=torch.uint8)
    figure = figures.grad_cam_maps(pictures, maps, ["a", "b"], title="t")
    shown = [axes.images[0] for axes in figure.axes]
    assert torch.equal(torch.tensor(shown[2].get_array()), maps[0])
    assert torch.equal(torch.tensor(shown[4].get_array()), maps[0])
    assert [image.get_interpolation() for image in shown[2::2]] == ["nearest", "bicubic"]
    assert figure.axes[2].get_ylabel() == "3 × 3 numbers"


def test_effective_receptive_fields_draws_both_squares():
    field = torch.zeros(9, 9)
    field[2:7, 2:7] = 0.01
    field[3:6, 3:6] = 1.0
    figure = figures.effective_receptive_fields({"a": field}, {"a": 5}, title="t")
    panel = figure.axes[0]
    assert [patch.get_bbox().bounds for patch in panel.patches] == [
        (1.5, 1.5, 5, 5),
        (2.5, 2.5, 3, 3),
    ]
    assert panel.get_title() == "a\n5 in theory, 3 in effect"


def test_spread_draws_means_and_the_band_around_them():
    figure = figures.mean_and_range(
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


# ---------------------------------------------------------------------------- the caller's settings

# Those that matplotlib draws: diagrams know nothing of it.
DRAWINGS = [
    f"figures.{name}"
    for name in figures.__all__
    if ".diagrams." not in getattr(figures, name).__module__
]


@pytest.fixture
def own_settings():
    """A caller's settings, other than matplotlib's defaults and the book's; what tells whether they
    are still so.
    """

    def settings():
        return dict(matplotlib.rcParams), matplotlib.get_backend(), matplotlib.is_interactive()

    with matplotlib.rc_context():
        matplotlib.rcParams |= {"figure.dpi": 77, "font.size": 5, "axes.spines.top": True}
        plt.ion()
        yield settings
        plt.ioff()


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_changes_no_setting(own_settings, name):
    before = own_settings()
    figure = public_functions.public_functions()[name](**public_functions.VALID[name]())
    assert own_settings() == before
    if isinstance(figure, Figure):
        assert figure.dpi == 130  # and was drawn with the book's
        figure.canvas.draw()
    assert own_settings() == before


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_changes_no_setting_when_it_fails(own_settings, name, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("in the middle of drawing")

    for method in ("draw_without_rendering", "savefig"):
        monkeypatch.setattr(Figure, method, fail)
    before = own_settings()
    with pytest.raises(RuntimeError, match="in the middle of drawing"):
        public_functions.public_functions()[name](**public_functions.VALID[name]())
    with pytest.raises(ValueError):
        public_functions.public_functions()[name](
            **dict.fromkeys(public_functions.VALID[name](), object())
        )
    assert own_settings() == before


def test_more_series_than_there_are_colours_are_refused():
    """They were drawn in part, without a word: eight of nine bars."""
    values = {name: 1.0 for name in "abcdefghi"}
    with pytest.raises(ValueError, match="values must be a non-empty dict of at most 8, "):
        figures.bars(values, title="t", xlabel="x")
    series = {name: [1.0, 2.0] for name in values}
    with pytest.raises(ValueError, match="series must be a non-empty dict of at most 8, "):
        figures.curves(series, title="t", xlabel="x", ylabel="y")
