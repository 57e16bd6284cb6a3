"""Every figure of the book, drawn from modules, tensors or measurements.

Each function returns its figure.
"""

from densenet_tutorial.figures.building import costs, receptive_fields
from densenet_tutorial.figures.diagrams.building import (
    adding_and_concatenating,
    channel_order,
    dense_layer,
    growing_strip,
    layer_at_work,
    transition,
    transition_orders,
    wirings,
)
from densenet_tutorial.figures.diagrams.network import network, receptive_squares
from densenet_tutorial.figures.diagrams.training import (
    all_reduce,
    batch_norm_trap,
    checkpoint,
    saved_tensors,
    training_loop,
)
from densenet_tutorial.figures.diagrams.using import keys, preprocessing, weighted_maps
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
    dots_with_spread,
    feature_maps,
    history,
    images,
    lines_with_spread,
    mean_and_range,
)
from densenet_tutorial.figures.style import png

__all__ = [
    "adding_and_concatenating",
    "all_reduce",
    "bars",
    "batch_norm_trap",
    "channel_order",
    "checkpoint",
    "confusion",
    "connection_costs",
    "costs",
    "curves",
    "dense_layer",
    "dots_with_spread",
    "effective_receptive_fields",
    "feature_maps",
    "feature_reuse_maps",
    "grad_cam_maps",
    "gradient_norms",
    "growing_strip",
    "history",
    "images",
    "keys",
    "layer_at_work",
    "lines_with_spread",
    "mean_and_range",
    "memory_passes",
    "network",
    "png",
    "preprocessing",
    "ratios",
    "receptive_fields",
    "receptive_squares",
    "roofline",
    "saved_tensors",
    "time_and_memory",
    "training_loop",
    "transition",
    "transition_orders",
    "weighted_maps",
    "wirings",
]
