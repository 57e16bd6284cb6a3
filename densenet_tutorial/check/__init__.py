"""Self-checks for the assignments: plain functions that say what is right, and where not, why.

    from densenet_tutorial import check

    check.dense_layer(DenseLayer)

Each takes what the student has written and returns a report, which shows itself as text and is true if everything
passed. ``seed=…`` tries other inputs: those of the hidden tests, if the seed is that of a grade. Nothing but the package
is needed.
"""

from densenet_tutorial.check.layers import channels, dense_block, dense_layer, transition

ASSIGNMENTS = {
    "layers": (channels, dense_layer, dense_block, transition),
}

__all__ = ["ASSIGNMENTS", "channels", "dense_block", "dense_layer", "transition"]
