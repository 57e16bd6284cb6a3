"""Mutation testing: change the package, one small thing at a time, and list what no test notices.

    make test-mutants                          memory/
    make test-mutants PART=training EVERY=4    the training loop, each fourth change

Cosmic Ray makes the changes, in a copy of the repository below _build/mutants. A change that
survives is one of three things: the same program in other words, a sentence in other words, or a
test that is missing. Its diff is printed for a person to judge. Endless loops end by a time limit.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parents[1]

#: What is changed, and the quick tests that concern it; what starts processes is left out.
PARTS = {
    "memory": (
        ["densenet_tutorial/memory"],
        (
            "tests/test_memory.py tests/test_memory_situations.py "
            "-k 'not distributed and not resident and not once_in_a_process "
            "and not random and not wrong_shapes and not gradgradcheck'"
        ),
    ),
    "training": (
        ["densenet_tutorial/training/loop.py", "densenet_tutorial/training/run_folder.py"],
        (
            "tests/test_training.py tests/test_run_folder.py "
            "-k 'not killed and not another_process and not at_once_one "
            "and not drawing_that and not without_a_folder'"
        ),
    ),
}

#: One change of each kind is enough: `+` becomes `-`, and not eleven other operators in turn.
KINDS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Add|Pow_Mul)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|Lt_(LtE|Gt)|LtE_(Lt|Gt)"
    r"|Gt_(GtE|Lt)|GtE_(Gt|Lt))|ReplaceUnaryOperator_(Delete_Not|USub_UAdd)|AddNot|RemoveDecorator"
    r"|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue|NumberReplacer"
    r"|ZeroIterationForLoop|ReplaceContinueWithBreak|ReplaceBreakWithContinue|ExceptionReplacer)$"
)


def main(part, every):
    modules, tests = PARTS[part]
    copy = ROOT / "_build" / "mutants" / part
    shutil.rmtree(copy, ignore_errors=True)
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in names.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    python = ROOT / ".venv" / "bin" / "python"
    (copy / "config.toml").write_text(
        f"[cosmic-ray]\nmodule-path = {modules}\ntimeout = 300\nexcluded-modules = []\n"
        f'test-command = """{python} -m pytest -x -q -p no:cacheprovider {tests}"""\n'
        '[cosmic-ray.distributor]\nname = "local"\n'
    )

    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    bin = Path(sys.executable).parent

    def run(command, *arguments):
        subprocess.run([bin / command, *arguments], cwd=copy, env=environment, check=True)

    run("cosmic-ray", "init", "config.toml", "session.sqlite")
    with use_db(copy / "session.sqlite", WorkDB.Mode.open) as db:
        items = sorted(db.pending_work_items, key=lambda item: str(item.mutations))
        kept = [item for item in items if KINDS.match(item.mutations[0].operator_name)][::every]
        for item in items:
            if item not in kept:
                db.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED))
    print(f"{len(kept)} changes; first, all tests have to pass without any.", flush=True)
    run("cosmic-ray", "baseline", "config.toml")
    run("cosmic-ray", "exec", "config.toml", "session.sqlite")
    with use_db(copy / "session.sqlite", WorkDB.Mode.open) as db:
        results = [
            result for _, result in db.results if result.worker_outcome == WorkerOutcome.NORMAL
        ]
    survivors = [result for result in results if result.test_outcome == TestOutcome.SURVIVED]
    for result in survivors:
        print(result.diff, end="\n\n")
    print(f"{len(results) - len(survivors)} changes were noticed, {len(survivors)} were not.")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
