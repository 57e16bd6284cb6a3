"""The claims: their units run, runs resume after a kill, and the rules say what they promise."""

import copy
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from densenet_tutorial import DenseNet
from densenet_tutorial.__main__ import main
from densenet_tutorial.experiments import baselines, claims
from densenet_tutorial.experiments.claims import plans, runner, verdicts
from densenet_tutorial.training import evaluation_mode

NAMES = list(claims.list_claims())
SEEDS = range(5)
#: So that sums are added up in the same order, in however many processes.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """All tiny experiments, run once."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, claims.run(output=folder, progress=False)


# ------------------------------------------------------------------------------------ running


def test_the_nine_claims_of_the_issue():
    assert NAMES == [
        "gradients", "reuse", "parameters", "scales", "small-samples", "memory", "time",
        "overfitting", "choices",
    ]  # fmt: skip
    assert plans.CLAIMS.keys() == verdicts.RULES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_each_tiny_claim_gives_rows_a_file_and_a_verdict(tiny, name):
    folder, found = tiny
    content = json.loads((folder / f"claims-{name}.json").read_text(encoding="utf-8"))
    assert [f["unit"] | f["result"] for f in content["figures"]] == found[name]
    assert content["setting"]["missing"] == 0 and content["setting"]["seeds"] == 2
    assert f"claims {name}" in content["command"] and content["machine"]["torch"]
    said = claims.verdict(name, found[name])
    assert str(said).startswith("not decided: with 2 of 5 seeds, ")
    for row in found[name]:
        for value in ("train_accuracy", "test_accuracy"):
            assert 0 <= row.get(value, 0) <= 1


def test_every_comparison_is_within_three_per_cent(tiny):
    rows = tiny[1]["parameters"]
    dense = {row["growth_rate"]: row for row in rows if row["family"] == "dense"}
    others = [row for row in rows if row["family"] != "dense"]
    assert {row["budget"] for row in others} == {"parameters", "multiply_adds"}
    for row in others:
        budget = row["budget"]
        assert row[budget] / dense[row["growth_rate"]][budget] == pytest.approx(1, abs=0.03)


def test_learning_rates_are_chosen_by_held_out_images_and_an_own_seed():
    def tuning(rows):
        return [u for u in plans.parameters(plans.TINY, rows) if u.get("held_out")]

    first = plans.parameters(plans.TINY, [])
    assert first == tuning([]) and {u["seed"] for u in first} == {plans.TUNING_SEED}
    # What the runs on test images say changes nothing.
    best = {"plain": 0.05, "residual": 0.1, "residual-v1": 0.2, "dense": 0.1}
    rows = [u | {"test_accuracy": 0.5 + (u["lr"] == best[u["family"]]) / 10} for u in first]
    rows += [
        {k: v for k, v in u.items() if k != "held_out"} | {"seed": 0, "test_accuracy": 1.0}
        for u in first
    ]
    chosen = [u for u in plans.parameters(plans.TINY, rows) if not u.get("held_out")]
    assert chosen and all(u["lr"] == best[u["family"]] for u in chosen)
    # As long as one of the runs is missing, its family waits.
    assert {u["family"] for u in plans.parameters(plans.TINY, rows[1:]) if u["seed"] == 0} == {
        "residual", "residual-v1", "dense",
    }  # fmt: skip


def test_the_full_experiments_have_five_seeds_and_the_issues_sizes():
    assert plans.FULL.seeds >= 5 and len(plans.FULL.sizes) >= 4 and len(plans.FULL.rates) == 3
    assert {50, 150, 500, 1500, 5000} <= {labels for labels, _ in plans.FULL.few}
    depths = [2 * sum(blocks) + len(blocks) + 1 for blocks in plans.FULL.depths]
    assert min(depths) <= 22 and max(depths) >= 200


def test_no_unit_sees_the_held_out_images():
    unit = {"data": "digits", "labels": 300, "seed": 3}
    from densenet_tutorial.experiments.claims.trained import dataset_of

    held_out = dataset_of(unit | {"held_out": True}, "cpu").test_images
    assert len(held_out) == int(797 / 6)
    for seed in range(3):
        taught = dataset_of(unit | {"seed": seed}, "cpu")
        assert taught.train_labels.bincount().tolist() == [30] * 10
        same = (taught.train_images.flatten(1)[:, None] == held_out.flatten(1)).all(2)
        assert not same.any()
    with pytest.raises(ValueError, match="labels must be at least 10"):
        dataset_of(unit | {"labels": 3000}, "cpu")


def test_a_unit_gives_the_same_result_again():
    unit = plans.choices(plans.TINY, [])[0]
    assert runner.measure(unit, "cpu") == runner.measure(unit, "cpu")


def test_shared_units_are_measured_once_and_a_second_run_measures_nothing(tiny):
    folder, found = tiny
    lines = (folder / "units.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({plans.key(json.loads(line)["unit"]) for line in lines})
    again = claims.run(output=folder, progress=False)
    assert again == found
    assert (folder / "units.jsonl").read_text(encoding="utf-8").splitlines() == lines


def command(folder, *more):
    words = ["-m", "densenet_tutorial", "claims", "choices", "--output", folder, *more]
    return [sys.executable, *map(str, words)]


def wait_for_lines(path, number, process):
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= number:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    pytest.fail("nothing was finished")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results file of a run that nobody stopped, in one thread."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder, "--quiet"), env=ONE_THREAD, check=True, capture_output=True)
    return json.loads((folder / "claims-choices.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_gives_the_same_file(whole, tmp_path, workers):
    units = tmp_path / "units.jsonl"
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options["env"] = ONE_THREAD
    process = subprocess.Popen(command(tmp_path, "--workers", workers), **options)
    wait_for_lines(units, 2, process)
    process.kill()
    process.communicate()
    before = units.read_text(encoding="utf-8").splitlines()
    with units.open("a", encoding="utf-8") as file:
        file.write('{"unit": {"torn')  # as if it was killed while it wrote a line
    ended = subprocess.run(command(tmp_path, "--quiet"), **options, check=True)
    assert ended.stdout.startswith("choices: ") and not ended.stderr
    after = units.read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before and len(after) == 14
    found = json.loads((tmp_path / "claims-choices.json").read_text(encoding="utf-8"))
    assert found | {"date": ""} == whole | {"date": ""}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_all_processes_without_a_traceback(tmp_path, workers):
    process = subprocess.Popen(
        command(tmp_path, "--workers", workers, "--quiet"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_lines(tmp_path / "units.jsonl", 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.endswith(f"stopped; the same command goes on with what is in {tmp_path}\n")
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_failing_unit_is_reported_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    units = plans.choices(plans.TINY, [])[:3]
    broken = units[1] | {"labels": 10**6}
    monkeypatch.setitem(plans.CLAIMS, "choices", ("", lambda *_: [units[0], broken, units[2]]))
    found = claims.run(["choices"], output=tmp_path, progress=False)["choices"]
    assert [row["variant"] for row in found] == [units[0]["variant"], units[2]["variant"]]
    assert "failed: ValueError: labels must be" in capsys.readouterr().err
    content = json.loads((tmp_path / "claims-choices.json").read_text(encoding="utf-8"))
    assert content["setting"]["missing"] == 1


def test_a_unit_that_fails_is_reported_and_the_others_go_on():
    units = plans.choices(plans.TINY, [])[:3]
    deadly = {**units[1], "kind": "train", "data": "digits", "batch_size": 0}
    store = runner.Store(None, torch.device("cpu"))
    failed = runner.run_units(
        lambda rows: [units[0], deadly, units[2]],
        store,
        torch.device("cpu"),
        workers=2,
        progress=False,
    )
    assert list(failed) == [plans.key(deadly)] and len(store.rows) == 2


def test_a_worker_that_is_killed_is_reported_and_the_others_go_on():
    units = plans.choices(plans.TINY, [])[:6]
    store = runner.Store(None, torch.device("cpu"))
    add = store.add

    def add_and_kill(unit, result):
        add(unit, result)
        if len(store.rows) == 1:
            for process in multiprocessing.active_children():
                process.kill()

    store.add = add_and_kill
    failed = runner.run_units(
        lambda rows: units, store, torch.device("cpu"), workers=2, progress=False
    )
    assert len(failed) + len(store.rows) == 6 and len(store.rows) >= 3
    assert failed and set(failed.values()) == {"its process ended with status -9"}


def test_when_time_is_up_nothing_new_starts_and_whole_seeds_are_there(tmp_path):
    assert claims.run(["choices"], seconds=1e-9, progress=False) == {"choices": []}
    order = []
    store = runner.Store(tmp_path, torch.device("cpu"))
    add = store.add
    store.add = lambda unit, result: (order.append(unit["seed"]), add(unit, result))
    runner.run_units(
        lambda rows: plans.choices(plans.TINY, rows), store, torch.device("cpu"), progress=False
    )
    assert order == sorted(order) and len(order) == 14


def test_a_run_goes_on_on_another_device_but_for_times(tmp_path):
    rows = claims.run(["reuse", "time"], output=tmp_path, device="cpu", progress=False)
    path = tmp_path / "units.jsonl"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    kept = claims.run(["time"], output=tmp_path, device="cpu", seconds=1e-9, progress=False)
    assert [row["device"] for row in kept["time"] if row["kind"] == "timed"] == ["cuda", "cuda"]
    again = claims.run(["reuse", "time"], output=tmp_path, device="cpu", progress=False)
    assert {row["device"] for row in again["reuse"]} == {"cuda"}
    assert [row["device"] for row in again["time"] if row["kind"] == "timed"] == ["cpu", "cpu"]
    assert [row | {"device": "cpu"} for row in again["reuse"]] == rows["reuse"]
    setting = json.loads((tmp_path / "claims-time.json").read_text())["setting"]
    assert setting["devices"]["cpu"] == 2 and setting["devices"]["cuda"] > 2


def test_bad_arguments_and_folders_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="names must be .* each element one of 'gradients'"):
        claims.run(["speed"])
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1, got 0"):
        claims.run(["reuse"], workers=0)
    (tmp_path / "units.jsonl").write_text('{"unit": {}, "result": {}, "device": "cpu"}\n')
    with pytest.raises(ValueError, match="damaged in line 1"):
        claims.run(["reuse"], output=tmp_path, device="cpu")
    unit = plans.reuse(plans.TINY, [])[0]
    result = {"test_accuracy": 0.5}
    for line in (
        "nonsense",
        json.dumps({"unit": unit, "result": "oops", "device": "cpu", "machine": "x"}),
        json.dumps({"unit": unit, "result": {"seed": 99}, "device": "cpu", "machine": "x"}),
        json.dumps({"unit": unit, "result": result, "device": "cpu", "machine": "x"}),
        json.dumps({"unit": unit, "result": {"test_accuracy": math.nan}, "device": "cpu"}),
        json.dumps({"unit": [], "result": result, "device": "cpu", "machine": "x"}),
    ):
        (tmp_path / "units.jsonl").write_text(f"{line}\n")
        with pytest.raises(ValueError, match="damaged in line 1"):
            claims.run(["reuse"], output=tmp_path, device="cpu")


def committed():
    folder = Path(claims.__file__).parent.parent / "results"
    return sorted(path.stem.removeprefix("claims-") for path in folder.glob("claims-*.json"))


@pytest.mark.parametrize("name", committed())
def test_committed_results_say_what_is_missing_and_are_decided_if_nothing_is(name):
    rows = claims.results(name)
    path = Path(claims.__file__).parent.parent / "results" / f"claims-{name}.json"
    setting = json.loads(path.read_text(encoding="utf-8"))["setting"]
    said = claims.verdict(name, rows)
    assert (said.outcome == verdicts.NOT_DECIDED) == (verdicts.seeds(rows) < 5)
    assert setting["missing"] > 0 or said.outcome != verdicts.NOT_DECIDED


@pytest.mark.parametrize("name", NAMES)
def test_with_a_unit_missing_no_claim_is_decided(name):
    rows = claims.results(name)
    decided = claims.verdict(name, rows)
    assert decided.outcome != verdicts.NOT_DECIDED
    order = random.Random(0).sample(rows, len(rows))
    assert claims.verdict(name, order) == decided
    for missing in order[:30]:
        said = claims.verdict(name, [row for row in rows if row is not missing])
        assert said.outcome == verdicts.NOT_DECIDED and " units are missing, such as {" in str(said)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_part_of_its_experiment_no_claim_is_decided(name):
    rows = claims.results(name)
    held_out = any(row.get("held_out") for row in rows)
    for field in sorted(set().union(*rows)):
        values = {str(row.get(field)) for row in rows}
        for value in values if 1 < len(values) < 20 else ():
            some = [row for row in rows if str(row.get(field)) != value]
            if held_out and not any(row.get("held_out") for row in some):
                continue  # no learning rate was chosen
            assert claims.verdict(name, some).outcome == verdicts.NOT_DECIDED, (field, value)


def test_rows_of_other_experiments_decide_nothing_and_change_nothing(tiny):
    for name in ("parameters", "overfitting", "small-samples"):
        rows = claims.results(name)
        others = [row for row in claims.results("choices") if row["variant"] != "as in the paper"]
        worse = [row | {"seed": row["seed"] + 100, "test_accuracy": 0.0} for row in rows]
        said = claims.verdict(name, [*others, *worse, *rows])
        assert said == claims.verdict(name, rows)
        digits = [row | {"data": "fashion-mnist"} for row in tiny[1][name]]
        assert claims.verdict(name, [*digits, *rows]) == said


def first_of(rows, kind):
    """A copy of the rows, and the first of a kind that is compared."""
    rows = copy.deepcopy(rows)
    return rows, next(row for row in rows if row["kind"] == kind and not row.get("held_out"))


@pytest.mark.parametrize("value", [math.nan, 81.0, -0.1, "good", True, None, [1.0], {}, 10**400])
@pytest.mark.parametrize(
    ("name", "kind", "place"),
    [
        ("parameters", "train", ["test_accuracy"]),
        ("choices", "train", ["train_accuracy"]),
        ("reuse", "cuts", ["cuts", 2, "old"]),
        ("reuse", "cuts", ["cuts", 0, "random", 4]),
        ("scales", "probes", ["stages", 1, "test_accuracy"]),
    ],
)
def test_accuracies_that_cannot_be_are_refused_in_words(name, kind, place, value):
    rows, row = first_of(claims.results(name), kind)
    *way, last = place
    for step in way:
        row = row[step]
    row[last] = value
    named = last if isinstance(last, str) else "random"
    with pytest.raises(ValueError, match=f"rows must have '{named}' a number from 0 to 1, got "):
        claims.verdict(name, rows)


@pytest.mark.parametrize(
    ("name", "kind", "change", "words"),
    [
        ("choices", "train", lambda r: r.update(parameters=0), "'parameters' a number above 0"),
        ("memory", "held", lambda r: r.update(bytes_per_image=-5), "'bytes_per_image' a number ab"),
        ("time", "timed", lambda r: r["times"].pop(), "22 dicts in 'times'"),
        ("time", "timed", lambda r: r["times"].reverse(), "rows must have {.*} in 'times'"),
        ("time", "timed", lambda r: r["times"][3].pop("train"), "'train' in each of kind 'timed'"),
        ("time", "timed", lambda r: r["times"][3]["train"].pop(), "20 numbers in 'train'"),
        ("time", "timed", lambda r: r["times"][3].update(predict=[0.0] * 20), "'predict' a number"),
        ("reuse", "cuts", lambda r: r["cuts"].pop(), "6 dicts in 'cuts'"),
        ("reuse", "cuts", lambda r: r["cuts"].insert(0, r["cuts"].pop()), "{'age': 2} in 'cuts'"),
        ("reuse", "cuts", lambda r: r["cuts"][1]["random"].pop(), "5 numbers in 'random'"),
        ("reuse", "cuts", lambda r: r.update(cuts=2), "6 dicts in 'cuts', got 2"),
        ("scales", "probes", lambda r: r["stages"].pop(1), "4 dicts in 'stages'"),
        ("gradients", "gradients", lambda r: r.update(log10_norms=[]), "1 lists in 'log10_norms'"),
        ("gradients", "gradients", lambda r: r["log10_norms"][0].pop(), "10 numbers in 'log10_no"),
        (
            "gradients",
            "gradients",
            lambda r: r["log10_norms"][0].__setitem__(3, math.inf),
            "'log10_norms' a number that is finite, got inf",
        ),
    ],
)
def test_results_that_are_not_whole_are_refused_in_words(name, kind, change, words):
    rows, row = first_of(claims.results(name), kind)
    change(row)
    with pytest.raises(ValueError, match=words):
        claims.verdict(name, rows)


def test_the_classifier_of_a_densenet_is_whole():
    for change in (list.pop, lambda weights: weights.__setitem__(0, -1.0)):
        rows = copy.deepcopy(claims.results("scales"))
        change(next(row for row in rows if row.get("classifier"))["classifier"])
        with pytest.raises(ValueError, match="rows must have .*'classifier'"):
            claims.verdict("scales", rows)


@pytest.mark.parametrize("value", [math.nan, None, "0.5", [], 1.5])
def test_runs_that_choose_learning_rates_are_checked_as_well(value):
    rows = copy.deepcopy(claims.results("parameters"))
    tuning = next(row for row in rows if row.get("held_out"))
    for change in (lambda: tuning.update(test_accuracy=value), lambda: tuning.pop("test_accuracy")):
        change()
        for function in (claims.verdict, claims.missing):
            with pytest.raises(ValueError, match="rows must have 'test_accuracy'"):
                function(
                    "parameters", rows, **({"full": True} if function != claims.verdict else {})
                )


def test_tuples_are_lists_and_other_values_are_refused_in_words():
    for name in ("overfitting", "memory"):
        rows = claims.results(name)
        tuples = [
            {k: tuple(v) if k in ("augment", "blocks") and v else v for k, v in row.items()}
            for row in rows
        ]
        assert claims.verdict(name, tuples) == claims.verdict(name, rows)
    rows[0]["growth_rate"] = torch.tensor(6)
    with pytest.raises(ValueError, match="rows must have plain values, as in JSON: .*Tensor"):
        claims.verdict("memory", rows)


def test_rows_without_a_value_twice_or_of_two_data_sets_are_refused_in_words():
    rows = claims.results("choices")
    for name in ("test_accuracy", "parameters"):
        lacking = {key: value for key, value in rows[3].items() if key != name}
        with pytest.raises(ValueError, match=f"rows must have '{name}' in each of kind 'train'"):
            claims.verdict("choices", [*rows[:3], lacking, *rows[4:]])
    with pytest.raises(ValueError, match="rows must have each unit once, got 2 of {"):
        claims.verdict("choices", [*rows, rows[3] | {"test_accuracy": 0.1}])
    with pytest.raises(ValueError, match="the same data set, got digits, fashion-mnist"):
        claims.verdict("choices", [rows[0] | {"data": "digits"}, *rows])
    with pytest.raises(ValueError, match="the data set of rows must be one of .*, got 'nonsense'"):
        claims.verdict("choices", [row | {"data": "nonsense"} for row in rows])


def test_regimes_are_told_apart_where_units_are_missing():
    rows = claims.results("overfitting")
    plain = [r for r in rows if not {"augment", "shuffled", "drop_rate", "held_out"} & r.keys()]
    some = [row for row in rows if row not in plain]
    assert claims.missing("overfitting", some, full=True) == len(plain) == 20


def test_units_whose_learning_rate_is_not_chosen_are_missing():
    rows = claims.results("parameters")
    assert claims.missing("parameters", rows, full=True) == 0
    tuning = [row for row in rows if row.get("held_out")]
    assert claims.missing("parameters", tuning, full=True) == len(rows) - len(tuning)
    assert claims.missing("parameters", tuning[1:], full=True) == len(rows) - len(tuning) + 1
    assert claims.missing("parameters", [], full=True) == len(rows)


def test_units_that_fail_are_told_to_the_shell_though_time_was_limited(monkeypatch, tmp_path):
    units = [plans.choices(plans.TINY, [])[0] | {"labels": 10**6}]
    monkeypatch.setitem(plans.CLAIMS, "choices", ("", lambda *_: units))
    with pytest.raises(SystemExit) as ended:
        main(f"claims choices --quiet --seconds 60 --output {tmp_path}".split())
    assert ended.value.code == 1
    with pytest.raises(ValueError, match="data must be one of"):
        claims.missing("choices", [], data="nonsense")


def test_a_run_that_has_no_time_says_how_much_is_missing(tmp_path, capsys):
    main(f"claims parameters memory --quiet --seconds 1e-9 --output {tmp_path}".split())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "parameters: not decided: 34 units are missing"
    assert printed[1].startswith("memory: not decided: ")


# ------------------------------------------------------------------------------------ the rules


def noisy(mean, seed):
    """A value near `mean` that differs between seeds."""
    return mean + 0.001 * (seed % 3 - 1)


def train(family, accuracy, seed, **more):
    row = {"kind": "train", "family": family, "growth_rate": 8, "blocks": [3], "seed": seed}
    row |= {"test_accuracy": noisy(accuracy, seed), "train_accuracy": 1.0, "lr": 0.1}
    row |= {"parameters": 100, "multiply_adds": 100, "labels": 50}
    return row | ({} if family == "dense" else {"budget": "parameters"}) | more


def runs(**accuracies):
    return [
        train(family.replace("_", "-"), accuracy, seed)
        for family, accuracy in accuracies.items()
        for seed in SEEDS
    ]


def test_a_difference_is_clear_if_zero_is_outside_of_its_interval():
    assert verdicts.clear([1.0, 1.1, 0.9, 1.0, 1.2]) == 1
    assert verdicts.clear([-1.0, -1.1, -0.9]) == -1
    assert verdicts.clear([1.0, -1.0, 2.0, 0.5, -0.5]) == 0
    assert verdicts.clear([5.0]) == 0 and verdicts.clear([]) == 0
    # Mean 1, standard error 0.36 or 0.37: with four degrees of freedom, t is 2.776.
    for spread, found in ((0.80, 1), (0.83, 0)):
        assert verdicts.clear([1 + spread * s for s in (-1, -1, 0, 1, 1)]) == found


def outcome(name, rows):
    return verdicts.RULES[name](rows).outcome


def test_the_rule_for_parameters():
    def rows(parameters, multiply_adds):
        found = [train("dense", 0.9, seed) for seed in SEEDS]
        for budget, accuracies in (("parameters", parameters), ("multiply_adds", multiply_adds)):
            for family, accuracy in zip(("plain", "residual"), accuracies, strict=True):
                found += [
                    train(family, accuracy, s, budget=budget)
                    | {"test_accuracy": accuracy + 0.002 * (s % 2)}
                    for s in SEEDS
                ]
        return found

    assert outcome("parameters", rows((0.8, 0.8), (0.8, 0.9))) == verdicts.HOLDS
    assert outcome("parameters", rows((0.8, 0.8), (0.95, 0.9))) == verdicts.CONDITION
    assert outcome("parameters", rows((0.8, 0.95), (0.8, 0.95))) == verdicts.CONDITION
    assert outcome("parameters", rows((0.9, 0.95), (0.95, 0.9))) == verdicts.NOT_HERE
    # Runs that chose a learning rate do not count.
    held_out = [row | {"held_out": True, "test_accuracy": 1.0} for row in rows((0, 0), (0, 0))]
    assert outcome("parameters", rows((0.9, 0.95), (0.95, 0.9)) + held_out) == verdicts.NOT_HERE


def test_the_rule_for_small_samples():
    def rows(few, many):
        found = []
        for labels, other in ((50, few[0]), (500, few[1]), (5000, many)):
            found += [train("dense", 0.9, s, labels=labels) for s in SEEDS]
            found += [
                train("residual", other, s, labels=labels)
                | {"test_accuracy": other + 0.002 * (s % 2)}
                for s in SEEDS
            ]
        return found

    assert outcome("small-samples", rows((0.8, 0.9), 0.95)) == verdicts.HOLDS
    assert outcome("small-samples", rows((0.8, 0.95), 0.8)) == verdicts.CONDITION
    assert outcome("small-samples", rows((0.9, 0.95), 0.8)) == verdicts.NOT_HERE


def test_the_rule_for_overfitting():
    def rows(other):
        found = [train("dense", 0.8, s) for s in SEEDS]
        found += [
            train("residual", other, s) | {"test_accuracy": other + 0.002 * (s % 2)} for s in SEEDS
        ]
        return found

    assert outcome("overfitting", rows(0.9)) == verdicts.HOLDS
    assert outcome("overfitting", rows(0.8)) == verdicts.NOT_HERE
    assert outcome("overfitting", rows(0.7)) == verdicts.NOT_HERE
    mixed = rows(0.9) + [train("plain", 0.7, s) | {"train_accuracy": 1.0} for s in SEEDS]
    mixed = [r | {"train_accuracy": 1 + 0.001 * (r["seed"] % 2) * len(r["family"])} for r in mixed]
    assert outcome("overfitting", mixed) == verdicts.CONDITION


def test_the_rule_for_reuse():
    def rows(old, random):
        cut = [{"age": age, "connections": 3, "old": 0.9 - old, "random": [0.9 - random] * 2}
               for age in (2, 3, 4)]  # fmt: skip
        return [
            {"kind": "cuts", "seed": s, "test_accuracy": noisy(0.9, s), "cuts": cut,
             "connections": 9}
            for s in SEEDS
        ]  # fmt: skip

    assert outcome("reuse", rows(0.2, 0.3)) == verdicts.HOLDS
    assert outcome("reuse", rows(0.1, 0.3)) == verdicts.CONDITION
    assert outcome("reuse", rows(0.0, 0.3)) == verdicts.NOT_HERE


def test_the_rule_for_scales():
    def rows(plain, residual, early):
        found = []
        for family, accuracy in (("dense", 0.8), ("plain", plain), ("residual", residual)):
            for s in SEEDS:
                probe = accuracy + 0.002 * ((s + len(family)) % 3)
                found.append(
                    {"kind": "probes", "family": family, "seed": s, "classifier": [early, 1.0],
                     "stages": [{"name": "block1", "test_accuracy": probe}]}
                )  # fmt: skip
        return found

    assert outcome("scales", rows(0.7, 0.7, 0.6)) == verdicts.HOLDS
    assert outcome("scales", rows(0.7, 0.9, 0.6)) == verdicts.CONDITION
    assert outcome("scales", rows(0.9, 0.9, 0.6)) == verdicts.CONDITION
    assert outcome("scales", rows(0.7, 0.7, 0.4)) == verdicts.CONDITION
    assert outcome("scales", rows(0.8, 0.9, 0.4)) == verdicts.NOT_HERE


def test_the_rule_for_gradients():
    def rows(slopes):
        found = []
        for norm, plain in zip((True, False), slopes, strict=True):
            for family, slope in (("dense", 0.1), ("residual", 0.1), ("plain", plain)):
                for blocks, factor in (([2], 9), ([4], 1)):  # the deepest ones count
                    found += [
                        {"kind": "gradients", "family": family, "blocks": blocks, "seed": s,
                         "init": "kaiming", "norm": norm, "steps": None,
                         "log10_norms": [[factor * slope * i * noisy(1, s) for i in range(10)]]}
                        for s in SEEDS
                    ]  # fmt: skip
        return found

    assert outcome("gradients", rows((0.5, -0.5))) == verdicts.HOLDS
    assert outcome("gradients", rows((0.5, 0.05))) == verdicts.CONDITION
    assert outcome("gradients", rows((0.05, 0.1))) == verdicts.NOT_HERE


def held(family, mode, size, **more):
    row = {"kind": "held", "family": family, "mode": mode, "bytes_per_image": size, "seed": 0}
    return row | {"growth_rate": 8, "blocks": [3]} | more


def test_the_rule_for_memory():
    accuracies = runs(dense=0.9, residual=0.9)

    def rows(plain, minimal):
        return [
            *accuracies,
            held("dense", False, plain),
            held("dense", "minimal", minimal),
            held("residual", False, 100, budget="parameters"),
        ]

    assert outcome("memory", rows(300, 150)) == verdicts.HOLDS
    assert outcome("memory", rows(300, 90)) == verdicts.CONDITION
    assert outcome("memory", rows(100, 50)) == verdicts.NOT_HERE
    worse = [r for r in rows(300, 150) if r["kind"] == "held"] + runs(dense=0.9, residual=0.8)
    for row in worse:
        if row["family"] == "residual" and row["kind"] == "train":
            row["test_accuracy"] = 0.8 + row["seed"] / 1000
    with pytest.raises(ValueError, match="as accurate as a DenseNet"):
        outcome("memory", worse)


def test_the_rule_for_time():
    def rows(*ratios):
        found = runs(dense=0.9, residual=0.9)
        for batch, ratio in zip((1, 256), ratios, strict=True):
            times = [
                {"family": "residual", "growth_rate": 8, "budget": budget, "multiply_adds": 5,
                 "predict": [0.9, 1, 5], "train": [1]}
                for budget in ("parameters", "multiply_adds")
            ]  # fmt: skip
            times.append({"family": "dense", "growth_rate": 8, "multiply_adds": 5})
            times[-1] |= {"predict": [ratio], "train": [ratio]}
            found.append({"kind": "timed", "batch_size": batch, "times": times, "seed": 0})
        return found

    assert outcome("time", rows(2, 1.2)) == verdicts.HOLDS
    assert outcome("time", rows(1, 1.2)) == verdicts.CONDITION
    assert outcome("time", rows(1, 1.05)) == verdicts.NOT_HERE


def test_the_rule_for_choices():
    def rows(pays):
        found = []
        for name in plans.VARIANTS:
            cheap = 50 if name == "half the growth rate" else 200
            cost = 100 if name == "as in the paper" else cheap
            accuracy = 0.9
            if name not in ("as in the paper", "twice the growth rate"):
                accuracy = 0.8 if pays else 0.95
            for s in SEEDS:
                row = train("dense", accuracy, s, variant=name, parameters=cost, multiply_adds=cost)
                found.append(row | {"test_accuracy": accuracy + 0.002 * ((s + len(name)) % 3)})
        return found

    assert outcome("choices", rows(True)) == verdicts.HOLDS
    assert outcome("choices", rows(False)) == verdicts.NOT_HERE
    half = [a if a["variant"] != "max pooling" else b for a, b in zip(rows(True), rows(False))]
    assert outcome("choices", half) == verdicts.CONDITION


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_enough_are_refused_in_words(name):
    with pytest.raises(ValueError, match=f"rows must have units of '{name}', got none in 1 rows"):
        claims.verdict(name, [{"kind": "other", "data": "digits"}])


# ------------------------------------------------------------------------------------ baselines


@pytest.mark.parametrize("budget", baselines.BUDGETS)
@pytest.mark.parametrize("wiring", baselines.WIRINGS)
@pytest.mark.parametrize(
    ("k", "blocks"), [(6, (3, 3, 3)), (9, (2, 5)), (12, (4,)), (24, (1, 2, 3))]
)
def test_budgets_are_equal_within_three_per_cent(budget, wiring, k, blocks):
    dense = DenseNet(k, blocks, None, drop_rate=0.1, num_classes=7, in_channels=2, stem="cifar")
    model = baselines.of_equal_budget(dense, wiring, budget, image_size=16)

    def size(network):
        if budget == "parameters":
            return baselines.count(network)
        return baselines.multiply_adds(network, 16)

    assert size(model) / size(dense) == pytest.approx(1, abs=0.03)
    assert model(torch.randn(3, 2, 16, 16)).shape == (3, 7)


def test_a_network_that_is_too_small_for_three_per_cent_is_refused():
    with pytest.raises(ValueError, match="within 3 %, got one with 189"):
        baselines.of_equal_budget(DenseNet(2, (1, 1), 2, 1, num_classes=3, stem="cifar"), "plain")


def test_multiply_adds_are_those_of_the_formula():
    model = baselines.StackedNet("residual-v1", 3, (1, 1), 5)
    first, second = 8 * 8, 4 * 4
    convolutions = 3 * 9 * first + (9 + 81) * first + 18 * first + (36 + 324) * second
    assert baselines.multiply_adds(model, 8) == convolutions + 6 * 5


def test_the_parts_of_a_stacked_network_lead_to_its_output():
    for wiring in baselines.WIRINGS:
        model = baselines.StackedNet(wiring, 4, (2, 1), 5)
        x = torch.randn(2, 1, 8, 8)
        with evaluation_mode(model):
            parts = model.intermediate_features(x)
            assert list(parts) == ["stem", "block1", "transition1", "block2", "final"]
            assert torch.equal(model.classifier(parts["final"].mean((2, 3))), model(x))
            if wiring == "residual-v1":
                block = model.features.block2_layer1
                expected = torch.relu(parts["transition1"] + block(parts["transition1"]))
                assert torch.equal(parts["block2"], expected)


def test_the_variants_of_a_densenet_keep_its_convolutions():
    dense = DenseNet(4, (2, 2), 8, in_channels=1, num_classes=5, stem="cifar")
    post = baselines.post_activated(dense)
    assert baselines.multiply_adds(post, 8) == baselines.multiply_adds(dense, 8)
    layer = post.features.denseblock1.denselayer2
    x = torch.randn(2, 12, 8, 8)
    with evaluation_mode(layer):
        assert torch.equal(
            layer([x[:, :8], x[:, 8:]]),
            torch.relu(layer.norm2(layer.conv2(torch.relu(layer.norm1(layer.conv1(x)))))),
        )
    assert post(torch.randn(2, 1, 8, 8)).shape == (2, 5)
    before = dense(torch.randn(2, 1, 8, 8)).shape
    assert isinstance(baselines.max_pooled(dense).features.transition1.pool, torch.nn.MaxPool2d)
    assert dense(torch.randn(2, 1, 8, 8)).shape == before
