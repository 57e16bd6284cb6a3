"""Damage inputs at random, have them read, and count what becomes of them.

    python tests/fuzz/run.py --minutes 10                  all kinds of input in turns
    python tests/fuzz/run.py --minutes 2 --seed 7 address  one kind, other cases
    python tests/fuzz/run.py --case address:7-123          one case again, with its traceback

Held: it was read, and what was read is right. Refused: one sentence of ours says why. Wrong: all
else, such as other numbers without a word, another error, a crash, more than a few seconds, or much
memory. The exit status is 1 if anything was wrong. Every case follows from its name, so it can be
had again.

A file of this folder adds kinds: it has a list KINDS of subclasses of kinds.Kind.
"""

import argparse
import importlib
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from kinds import Kind

SECONDS, MEGABYTES = 10, 500  # that one case may take
BATCH = 100  # cases of one kind before it is another's turn


def all_kinds() -> dict[str, type[Kind]]:
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("*.py"))]
    return {kind.name: kind for module in modules for kind in getattr(module, "KINDS", [])}


def outcome(kind: Kind, case: str) -> tuple[str, str]:
    """Whether the case was held, refused or wrong; and the message, or what was wrong."""
    began, held = time.monotonic(), peak()
    try:
        kind.case(random.Random(f"{kind.name}:{case}"))
        result = "held", ""
    except (ValueError, OSError) as error:
        message = str(error)
        result = "refused", message
        ours = type(error).__module__.startswith("densenet_tutorial")
        if not (ours or type(error) is ValueError or isinstance(error, OSError)):
            result = "wrong", f"{type(error).__name__}: {message}"
        elif not message.isprintable() or not 10 < len(message) < 1000:
            result = "wrong", f"no sentence: {message[:500]!r}"
    except BaseException as error:  # noqa: BLE001, whatever it is, it is wrong
        result = "wrong", f"{type(error).__name__}: {error}"
    if time.monotonic() - began > SECONDS:
        result = "wrong", f"{time.monotonic() - began:.0f} s; {result}"
    if peak() - held > MEGABYTES:
        result = "wrong", f"{peak() - held} MiB; {result}"
    return result


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def batch(kind: type[Kind], cases: list[str], until: float) -> dict[str, tuple[str, str]]:
    """The outcomes of `cases`, in a process of their own, which may crash or hang."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            with tempfile.TemporaryDirectory() as folder, os.fdopen(write, "w") as report:
                made = kind(Path(folder))
                for case in cases:
                    if time.monotonic() > until and case != cases[0]:  # each kind has its turn
                        break
                    print(case, *map(repr, outcome(made, case)), sep="\t", file=report, flush=True)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    outcomes, text = {}, ""
    with os.fdopen(read) as report:
        while select.select([report], [], [], 6 * SECONDS)[0] and (text := report.readline()):
            case, word, detail = text.rstrip("\n").split("\t")
            outcomes[case] = eval(word), eval(detail)  # reprs of strings
        if text:
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if text or status:
        what = "no end" if text else f"its process ended with status {status}"
        outcomes[next(case for case in cases if case not in outcomes)] = "wrong", what
    return outcomes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(all_kinds()))
    parser.add_argument("--minutes", type=float, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--case", metavar="KIND:CASE", help="one case again")
    options = parser.parse_args(argv)
    kinds = all_kinds()
    if strange := set(options.kinds) - set(kinds):
        parser.error(f"KIND must be one of {', '.join(kinds)}, got {', '.join(strange)}")
    if options.case:
        name = options.case.partition(":")[0]
        with tempfile.TemporaryDirectory() as folder:
            try:
                kinds[name](Path(folder)).case(random.Random(options.case))
                print("held")
            except Exception:  # noqa: BLE001
                traceback.print_exc()
        return 0

    counts = {name: Counter() for name in options.kinds or kinds}
    faults = []
    until = time.monotonic() + 60 * options.minutes
    while time.monotonic() < until:
        for name, count in counts.items():
            begin = count.total()
            cases = [f"{options.seed}-{number}" for number in range(begin, begin + BATCH)]
            for case, (word, what) in batch(kinds[name], cases, until).items():
                count[word] += 1
                if word == "wrong":
                    faults.append(f"{name}:{case}  {what}")
    columns = ("held", "refused", "wrong")
    print(f"{'':24}", *(f"{column:>9}" for column in columns))
    for name, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        print(f"{name:24}", *(f"{count[column]:9,}" for column in columns))
    for fault in faults[:50]:
        print(f"wrong: {fault[:300]}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
