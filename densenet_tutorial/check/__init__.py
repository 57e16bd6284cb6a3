"""Self-checks for the assignments: functions that report what is right, and what is wrong and why.

    from densenet_tutorial import check

    check.dense_layer(DenseLayer)

Each takes the student's functions or classes and returns a report, which is shown as text and is
true if the answer gets every point. ``seed=…`` uses other inputs: those of the hidden tests, if the
seed is that of a grade.
"""

from densenet_tutorial.check.questions.building_layers import (
    channels,
    dense_block,
    dense_layer,
    transition,
)
from densenet_tutorial.check.questions.building_networks import (
    count_parameters,
    dense_net,
    match_summary,
    summary_of,
    train,
)
from densenet_tutorial.check.questions.loading_weights import (
    adapt_head,
    convert_keys,
    fine_tune,
    load_safely,
)
from densenet_tutorial.check.questions.saving_memory import (
    checkpointed,
    checkpointed_once,
    count_updates,
    saved_bytes,
)

#: The questions of each assignment, in order.
ASSIGNMENTS = {
    "layers": (channels, dense_layer, dense_block, transition),
    "network": (dense_net, count_parameters, match_summary, train),
    "memory": (saved_bytes, checkpointed, count_updates, checkpointed_once),
    "pretrained": (convert_keys, adapt_head, load_safely, fine_tune),
}

__all__ = [
    "ASSIGNMENTS",
    "adapt_head",
    "channels",
    "checkpointed",
    "checkpointed_once",
    "convert_keys",
    "count_parameters",
    "count_updates",
    "dense_block",
    "dense_layer",
    "dense_net",
    "fine_tune",
    "load_safely",
    "match_summary",
    "saved_bytes",
    "summary_of",
    "train",
    "transition",
]
