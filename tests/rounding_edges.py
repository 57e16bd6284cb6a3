"""An IPython extension that finds printed numbers on a rounding edge.

Another processor, BLAS or number of threads changes the last bits of what a cell computes. Nobody
sees that, except where a number lies on the edge of its last printed digit: 4.0625 with three
decimals is 4.062 on one machine and 4.063 on the next. So whatever a cell writes is written again
with every float in it moved by a millionth of itself, up and down, and with the other sign if it is
smaller than a millionth. What then reads differently is reported, and so is every decimal in the
output whose value was never seen here, because a library or another process wrote it.

Integers are never moved. Where no format says how many digits to print, a float that six digits
hold, as 0.1, and whole numbers in a tensor are taken as typed or counted, and are not moved either.
Not seen is what a cell rounds by itself, other than with `round`: `int(x)`, `x > 0.5`.
`nbval_kernel.py` loads this file and takes a report for a failure.
"""

import ast
import numbers
import operator
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Self

REPORT = "application/x-rounding-edges"  # the MIME type under which a cell's report is published
ERROR = 1e-6
MOVES = (
    lambda x: x * (1 + ERROR),
    lambda x: x * (1 - ERROR),
    lambda x: x * (1 - 2 * (abs(x) < ERROR)) + 0.0,  # the sum turns -0.0 into 0.0
)
CHECKS = "__rounding_edges__"  # what a cell calls the object that checks it
# 2.15.0 is a version, no decimal.
DECIMAL = re.compile(r"(?<![\w.])\d*\.\d+(?:e[-+]?\d+)?(?!\.?\d)")


class Moved(float):
    """What `move` makes of a number; without a format, one that six digits hold reads as before."""

    def __new__(cls, number: Any, move: Callable) -> Self:
        self = super().__new__(cls, move(float(number)))
        given = type(number)(f"{number:.6g}") == number
        self.number = number + 0.0 if given else type(number)(self)
        return self

    def __repr__(self) -> str:
        return repr(self.number)

    def __str__(self) -> str:
        return str(self.number)

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


def moved(value: Any, move: Callable) -> Any:
    """`value` with every float in it moved, or `value` itself if it holds none."""
    # Found among what the cells imported: a chapter's imports remain its own.
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if type(value) is float or numpy and isinstance(value, numpy.floating):
        return Moved(value, move)
    if numpy and isinstance(value, numpy.ndarray) and value.dtype.kind == "f":
        given = numpy.vectorize(lambda x: float(f"{x:.6g}") == x, otypes=[bool])(value)
        return numpy.where(given, value + 0.0, move(value)).astype(value.dtype)
    if torch and isinstance(value, torch.Tensor) and value.is_floating_point():
        value = value.detach()
        return torch.where(value == value.round(), value + 0.0, move(value))
    if type(value) in (list, tuple, set, frozenset, dict):
        items = list(value.items() if type(value) is dict else value)
        others = [moved(item, move) for item in items]
        # Only if there is a float in it: a set that is made again may have another order.
        return type(value)(others) if any(map(operator.is_not, others, items)) else value
    return value


def decimals(text: str) -> set[str]:
    """The decimals in `text`, without zeros in front."""
    return {number.lstrip("0") for number in DECIMAL.findall(text)}


class Checks:
    """Writes for a cell what the cell would write itself, and notes what is on an edge."""

    def __init__(self) -> None:
        self.edges: list[str] = []
        self.seen: set[str] = set()  # decimals whose value was here
        self.printed: list[str] = []

    def write(self, write: Callable, value: Any) -> Any:
        """``write(value)``, noted if it would write something else of a `value` that was moved."""
        written = write(value)
        neighbours = [moved(value, move) for move in MOVES]
        if neighbours[0] is not value or isinstance(value, numbers.Number):
            self.seen |= decimals(str(written))
        others = [other for x in neighbours if x is not value and (other := write(x)) != written]
        if others:
            self.edges.append(f"{written} is {others[0]} if {value!r} changes by a millionth")
        return written

    def field(self, value: Any, conversion: int, spec: str) -> str:
        """What stands in an f-string for a field."""
        convert = {97: ascii, 114: repr, 115: str}.get(conversion, lambda x: x)
        return self.write(lambda x: format(convert(x), spec), value)

    def percent(self, left: Any, right: Any) -> Any:
        """``left % right``, which fills a text in or divides."""
        return self.write(lambda x: left % x, right) if isinstance(left, str) else left % right

    def call(self, function: Callable, *values: Any, **options: Any) -> Any:
        """``function(*values, **options)``, for a function with the name of one that writes."""
        if function is print:
            for value in values:
                self.write(str, value)
        elif (
            function in (str, repr, ascii, format)
            or (function is round and isinstance(values[0], float))
            or isinstance(getattr(function, "__self__", None), str)  # str.format
        ):
            return self.write(lambda x: function(*x[0], **x[1]), (values, options))
        return function(*values, **options)


class Rewriter(ast.NodeTransformer):
    """Leads everything in a cell that can write a number through its `Checks`."""

    def through(self, method: str, *values: ast.expr, keywords: Iterable = ()) -> ast.Call:
        checks = ast.Name(CHECKS, ast.Load())
        return ast.Call(ast.Attribute(checks, method, ast.Load()), [*values], [*keywords])

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.FormattedValue:
        self.generic_visit(node)
        conversion, spec = ast.Constant(node.conversion), node.format_spec or ast.Constant("")
        return ast.FormattedValue(self.through("field", node.value, conversion, spec), -1, None)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        is_percent = isinstance(node.op, ast.Mod)
        return self.through("percent", node.left, node.right) if is_percent else node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        match node.func:
            case ast.Name("print" | "str" | "repr" | "ascii" | "format" | "round") | ast.Attribute(
                _, "format"
            ):
                return self.through("call", node.func, *node.args, keywords=node.keywords)
        return node

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        return ast.fix_missing_locations(node)


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython for ``%load_ext rounding_edges`` or a kernel started with ``--ext``."""
    show = shell.display_formatter.format

    def checked_show(value: Any, *arguments: Any, **options: Any) -> Any:
        if not type(value).__module__.startswith("matplotlib"):  # a figure names its size
            checks = shell.user_ns[CHECKS]
            checks.printed.append(checks.write(repr, value))
        return show(value, *arguments, **options)

    def start(info: Any) -> None:
        checks = shell.user_ns[CHECKS] = Checks()
        write = sys.stdout.write

        def listen(text: str) -> int:
            checks.printed.append(text)
            return write(text)

        sys.stdout.write = listen

    def report(result: Any) -> None:
        vars(sys.stdout).pop("write", None)
        checks = shell.user_ns[CHECKS]
        given = checks.seen | decimals(result.info.raw_cell)
        unseen = decimals("".join(checks.printed)) - given
        edges = [*checks.edges, *(f"{number}: its value was not seen" for number in sorted(unseen))]
        if edges:
            shell.display_pub.publish({REPORT: "\n".join(edges)})

    shell.display_formatter.format = checked_show
    shell.ast_transformers.append(Rewriter())
    shell.events.register("pre_run_cell", start)
    shell.events.register("post_run_cell", report)
