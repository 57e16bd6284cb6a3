"""Grade a folder of submissions with an assignment's autograder, and write a CSV.

    python book/_tools/grade.py ASSIGNMENT FOLDER [--output FILE]

Every notebook in FOLDER is one submission; its file name is the first column. Otter grades each in processes of its own.
A submission that cannot be graded gets a row that says why. The CSV is written whole, at the end; beside it, a folder of
the same name holds what each student may read.
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import notebooks

ASSIGNMENTS = notebooks.ROOT / "_build" / "assignments"


def otter_run(submission, autograder):
    """What otter finds in `submission`: the content of its results.json. A ValueError says why there is none."""
    import otter.run

    try:
        notebooks.read(submission)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"not a notebook: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                otter.run.main(
                    str(submission), autograder=str(autograder), output_dir=scratch, no_logo=True
                )
        except Exception as error:
            raise ValueError(f"otter failed: {type(error).__name__}: {error}"[:300]) from error
        return json.loads(Path(scratch, "results.json").read_text(encoding="utf-8"))


def row_of(name, results, seed):
    """A row of the CSV: points for each question, and their sum."""
    questions = {
        test["name"]: test for test in results["tests"] if test.get("max_score") is not None
    }
    points = {name: test.get("score", 0) for name, test in questions.items()}
    total = sum(points.values())
    most = sum(test["max_score"] for test in questions.values())
    row = {
        "submission": name,
        "points": f"{total:g}",
        "out of": f"{most:g}",
        "percent": f"{100 * total / most:.1f}",
        "seed": seed,
        "problem": "",
    }
    return row | {question: f"{value:g}" for question, value in points.items()}


def feedback(name, results, seed):
    """What a student may read: the report of every question."""
    lines = [f"{name} (seed {seed})", ""]
    for test in results["tests"]:
        if test.get("max_score") is not None:
            lines += [f"{test['name']}: {test.get('score', 0):g} of {test['max_score']:g} points"]
            lines += [test.get("output") or "", ""]
    return "\n".join(lines)


def quiet():
    """Keep what kernels say to themselves off the terminal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def graded_one(submission, autograder):
    """The results of `submission`, or why there are none, and the seconds that it took."""
    start = time.perf_counter()
    try:
        results, problem = otter_run(submission, autograder), ""
    except ValueError as error:
        results, problem = None, str(error)
    return results, problem, time.perf_counter() - start


def grade(autograder, folder, output, jobs=None):
    """Grade every notebook in `folder`; write the CSV `output` and a folder of reports; return the rows."""
    submissions = sorted(path.resolve() for path in Path(folder).glob("*.ipynb"))
    if not submissions:
        raise ValueError(f"{folder} holds no .ipynb file")
    try:
        with zipfile.ZipFile(autograder) as archive:
            config = json.loads(archive.read("otter_config.json"))
    except FileNotFoundError:
        raise ValueError(f"{autograder} is not there; type `make assignments` first") from None
    seed = config["plugins"][0]["densenet_tutorial.check.grading.Isolated"]["seed"]
    reports = output.with_suffix("")
    reports.mkdir(parents=True, exist_ok=True)

    rows = []
    # Processes, since otter changes the folder that it works in. Each imports everything once.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), spawn, quiet) as pool:
        graded = pool.map(graded_one, submissions, [Path(autograder).resolve()] * len(submissions))
        for path, (results, problem, seconds) in zip(submissions, graded):
            if problem:
                row = {"submission": path.name, "seed": seed, "problem": problem}
                text = f"{path.name}: not graded: {problem}"
            else:
                row = row_of(path.name, results, seed)
                text = feedback(path.name, results, seed)
            row["seconds"] = f"{seconds:.0f}"
            notebooks.write_text(reports / f"{path.stem}.txt", text + "\n")
            print(f"{path.name}: {problem or row['percent'] + ' %'}", flush=True)
            rows.append(row)
    columns = ["submission", "points", "out of", "percent", "seed", "seconds", "problem"]
    columns += list(dict.fromkeys(name for row in rows for name in row if name not in columns))
    notebooks.write_text(output, table(columns, rows))
    return rows


def fill_gradebook(gradebook, column, rows):
    """Canvas's exported `gradebook` as text, with points in `column` for every student who has handed in.

    Canvas names a downloaded file NAME_ID_SUBMISSION_FILE, with _LATE after the name if it was late; ID is also a
    column of the gradebook.
    """
    points = {}
    for row in rows:
        found = re.match(r"[^_]+(?:_LATE)?_(\d+)_\d+_", row["submission"])
        if found and "points" in row:
            points[found.group(1)] = row["points"]
    with open(gradebook, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns, students = reader.fieldnames or [], list(reader)
    for needed in ("ID", column):
        if needed not in columns:
            raise ValueError(f"{gradebook} has no column {needed!r}")
    for student in students:
        student[column] = points.get((student["ID"] or "").strip(), student[column])
    return table(columns, students)


def table(columns, rows):
    """`rows`, dictionaries, as the text of a CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignment", help="layers, network, memory or pretrained")
    parser.add_argument("folder", type=Path, help="holds the submissions, one .ipynb each")
    parser.add_argument("--output", type=Path, help="default: FOLDER/ASSIGNMENT.csv")
    parser.add_argument(
        "--assignments", type=Path, default=ASSIGNMENTS, help="default: _build/assignments"
    )
    parser.add_argument(
        "--canvas", type=Path, metavar="CSV", help="a gradebook that Canvas exported"
    )
    parser.add_argument("--column", help="the assignment's column in it")
    options = parser.parse_args(arguments)
    output = options.output or options.folder / f"{options.assignment}.csv"
    autograder = options.assignments / options.assignment / "autograder.zip"
    rows = grade(autograder, options.folder, output)
    print(f"{len(rows)} submissions: {output}")
    if options.canvas:
        filled = output.with_name(f"{output.stem}-canvas.csv")
        notebooks.write_text(filled, fill_gradebook(options.canvas, options.column, rows))
        print(f"for Canvas: {filled}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"grade: {error}")
