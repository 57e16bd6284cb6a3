"""Every figure of the book, drawn from modules, tensors or measurements.

Each function returns its figure.
"""

from densenet_tutorial.figures.building import (
    channels,
    connectivity,
    costs,
    receptive_fields,
    shapes,
)
from densenet_tutorial.figures.insight import (
    connection_costs,
    effective_receptive_fields,
    feature_reuse_maps,
    grad_cam_maps,
    gradient_norms,
)
from densenet_tutorial.figures.performance import (
    memory_passes,
    ratios,
    roofline,
    time_and_memory,
)
from densenet_tutorial.figures.plots import (
    bars,
    confusion,
    curves,
    feature_maps,
    history,
    images,
    mean_and_range,
    stacked_bars,
)
from densenet_tutorial.figures.style import png

__all__ = [
    "bars",
    "channels",
    "confusion",
    "connection_costs",
    "connectivity",
    "costs",
    "curves",
    "effective_receptive_fields",
    "feature_maps",
    "feature_reuse_maps",
    "grad_cam_maps",
    "gradient_norms",
    "history",
    "images",
    "mean_and_range",
    "memory_passes",
    "png",
    "ratios",
    "receptive_fields",
    "roofline",
    "shapes",
    "stacked_bars",
    "time_and_memory",
]
