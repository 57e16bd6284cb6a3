"""A pytest plugin for nbval: cells run as in Jupyter, and print no number on a rounding edge.

nbval runs cells without a history. IPython looks there to see whether a cell ends in `;`, so under
nbval alone `figures.curves(…);` shows its result although the reader's Jupyter does not. What
`rounding_edges.py` reports fails a cell whose outputs are compared, unless it has a tag that begins
with `no-edge-`. The rest of the tag is the reason.
"""

import functools

import rounding_edges
from nbval import kernel, plugin


def execute_cell_input(self, cell_input, allow_stdin=None):
    return self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)


def compare_outputs(self, test, ref, skip_compare=None, compare=plugin.IPyNbCell.compare_outputs):
    reports = [output.data for output in test if rounding_edges.REPORT in output.get("data", ())]
    test = [output for output in test if output.get("data") not in reports]
    same = compare(self, test, ref, skip_compare)
    exempt = any(tag.startswith("no-edge-") for tag in self.cell.metadata.get("tags", ()))
    if not reports or exempt:
        return same
    self.comparison_traceback += [
        "On a rounding edge:",
        *(r[rounding_edges.REPORT] for r in reports),
    ]
    return False


kernel.RunningKernel.execute_cell_input = execute_cell_input
kernel.start_new_kernel = functools.partial(
    kernel.start_new_kernel, extra_arguments=["--ext=rounding_edges"]
)
plugin.IPyNbCell.compare_outputs = compare_outputs
