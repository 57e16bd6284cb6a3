"""Grade a folder of submissions with an assignment's autograder, and write a CSV.

    python book/_tools/grade.py ASSIGNMENT FOLDER [--output FILE]

Every notebook in FOLDER, and in folders inside it, is one submission; its name is the first column.
Otter grades each in processes of its own. A submission that cannot be graded gets a row that says
why. The CSV grows by a row at a time, and is whole at any time; beside it, a folder of the same
name holds what each student may read. Where FOLDER is a CSV that this command has written, nothing
is
graded: its points go into a gradebook.
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import assignments
import nbformat
import notebooks

ASSIGNMENTS = assignments.OUTPUT
COLUMNS = ["submission", "points", "out of", "percent", "seed", "seconds", "problem"]
_CANVAS = re.compile(r".+?(?:_LATE)?_(\d+)_(\d+)_")


def submissions_in(folder, besides):
    """What students have handed in: every file in `folder` and below that is no table.

    Hidden files are none of it, nor is what lies in one of `besides`.
    """
    folder, found = Path(folder), []
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
        of_ours = any(path == other or other in path.parents for other in besides)
        if path.is_file() and not hidden and not of_ours and path.suffix != ".csv":
            found.append(path)
    if not any(path.suffix.lower() == ".ipynb" for path in found):
        raise ValueError(f"{folder} holds no .ipynb file")
    return found


def code_of(path):
    """The submission at `path`, as a notebook of its code cells alone: nothing else counts."""
    if path.suffix.lower() != ".ipynb":
        raise ValueError("not a notebook: its name does not end in .ipynb")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if raw.get("nbformat", 4) < 4:
            raw = nbformat.reads(json.dumps(raw), as_version=4)
        cells = [cell for cell in raw["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]).strip() for cell in cells]
    except Exception as error:  # whatever such a file may hold
        raise ValueError(f"not a notebook: {type(error).__name__}: {error}"[:300]) from error
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])


def otter_run(submission, autograder):
    """What otter finds in `submission`: its results.json. A ValueError says why there is none."""
    import otter.run

    with tempfile.TemporaryDirectory() as scratch:
        notebook, said = Path(scratch, "submission.ipynb"), io.StringIO()
        nbformat.write(code_of(submission), notebook)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                otter.run.main(
                    str(notebook), autograder=str(autograder), output_dir=scratch, no_logo=True
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
    """Keep what kernels say to themselves off the terminal, and end at once on Ctrl-C."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def graded_one(submission, autograder):
    """The results of `submission`, or why there are none, and the seconds that it took."""
    start = time.perf_counter()
    try:
        results, problem = otter_run(submission, autograder), ""
    except Exception as error:  # noqa: BLE001 - one submission is not to cost the others
        results, problem = None, str(error) or type(error).__name__
    return results, problem, time.perf_counter() - start


def graded(submissions, autograder, jobs):
    """Each of `submissions` with what :func:`graded_one` says, as they come.

    One that ends the process that grades it is tried again in a process of its own.
    """
    # Processes, since otter changes the folder that it works in. Each imports everything once.
    spawn, alone = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(jobs, spawn, quiet) as pool:
        futures = [(path, pool.submit(graded_one, path, autograder)) for path in submissions]
        for path, future in futures:
            try:
                yield path, *future.result()
            except BrokenProcessPool:
                alone.append(path)
    for path in alone:
        with ProcessPoolExecutor(1, spawn, quiet) as pool:
            try:
                yield path, *pool.submit(graded_one, path, autograder).result()
            except BrokenProcessPool:
                yield path, None, "it ended the process that grades", float("nan")


def grade(autograder, folder, output, jobs=None):
    """Grade what is in `folder`; write the CSV `output` and a folder of reports; return rows."""
    folder, output = Path(folder).absolute(), Path(output).absolute()
    reports = output.with_suffix("")
    submissions = submissions_in(folder, [output, reports])
    try:
        with zipfile.ZipFile(autograder) as archive:
            config = json.loads(archive.read("otter_config.json"))
            tests = [Path(name) for name in archive.namelist() if name.startswith("tests/")]
        seed = config["plugins"][0]["densenet_tutorial.check.grading.Isolated"]["seed"]
    except FileNotFoundError:
        raise ValueError(f"{autograder} is not there; type `make assignments` first") from None
    except (zipfile.BadZipFile, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{autograder} is none of our autograders: {error!r}") from error

    output.parent.mkdir(parents=True, exist_ok=True)
    # The same in every table of an assignment: tables of one submission each can be joined.
    columns = COLUMNS + sorted(path.stem for path in tests if path.suffix == ".py")
    rows = []
    for path, results, problem, seconds in graded(
        submissions, Path(autograder).resolve(), jobs or os.cpu_count()
    ):
        inside = path.relative_to(folder)
        name = plain(inside.as_posix())
        if problem:
            row = {"submission": name, "seed": seed, "problem": plain(problem)}
            text = f"{name}: not graded: {problem}"
        else:
            row = row_of(name, results, seed)
            text = feedback(name, results, seed)
        row["seconds"] = f"{seconds:.0f}"
        print(f"{name}: {row['problem'] or row['percent'] + ' %'}", flush=True)
        rows.append(row)
        notebooks.write_text(output, table(columns, rows))
        report = (reports / inside).with_suffix(".txt")
        report.parent.mkdir(parents=True, exist_ok=True)
        notebooks.write_text(report, plain(text) + "\n")
    return rows


def plain(text):
    """`text` with signs that UTF-8 lacks (as in file names from old archives) written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_gradebook(path, column):
    """The columns and rows of a gradebook that Canvas exported; `column` has to be one of them."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns, students = list(reader.fieldnames or []), list(reader)
    for needed in ("ID", column):
        if needed not in columns:
            raise ValueError(f"{path} has no column {needed!r}; its columns: {', '.join(columns)}")
    return columns, students


def fill_gradebook(gradebook, column, rows):
    """Canvas's exported `gradebook` as text, with points in `column` for every student who has
    handed in.

    Canvas names a downloaded file NAME_ID_SUBMISSION_FILE, with _LATE after the name if it was
    late; ID is also a column of the gradebook. Of several submissions the one with the highest
    number counts.
    """
    columns, students = read_gradebook(gradebook, column)
    latest = {}
    for row in rows:
        found = _CANVAS.match(_name(row))
        if found and row.get("points"):
            student, number = found.group(1), int(found.group(2))
            if student in latest:
                print(f"student {student} has several submissions: the latest counts")
            latest[student] = max(latest.get(student, (0, "")), (number, row["points"]))
    known = {(student["ID"] or "").strip(): student for student in students}
    for identity, (_, points) in latest.items():
        if identity not in known:
            print(f"student {identity} is not in the gradebook")
        elif known[identity][column] == "EX":
            print(f"student {identity} is excused, and stays so")
        else:
            known[identity][column] = points
    if unmatched := [row["submission"] for row in rows if not _CANVAS.match(_name(row))]:
        print(f"no name of Canvas's: {', '.join(unmatched)}")
    return table(columns, students)


def _name(row):
    return row["submission"].rsplit("/", 1)[-1]


def table(columns, rows):
    """`rows`, dictionaries, as the text of a CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # A spreadsheet would take a text that begins so for a formula.
        writer.writerow(
            {
                key: f"'{value}"
                if isinstance(value, str) and value.startswith(("=", "@"))
                else value
                for key, value in row.items()
            }
        )
    return text.getvalue()


def main(arguments=None):
    known = ", ".join(assignments.masters())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignment", help=f"one of {known}")
    parser.add_argument("folder", type=Path, help="holds the submissions; or a CSV of their points")
    parser.add_argument("--output", type=Path, help="default: FOLDER/ASSIGNMENT.csv")
    parser.add_argument(
        "--assignments", type=Path, default=ASSIGNMENTS, help="default: _build/assignments"
    )
    parser.add_argument(
        "--canvas", type=Path, metavar="CSV", help="a gradebook that Canvas exported"
    )
    parser.add_argument("--column", help="the assignment's column in it")
    options = parser.parse_args(arguments)
    if options.assignment not in assignments.masters():
        raise ValueError(f"ASSIGNMENT must be one of {known}, got {options.assignment!r}")
    if options.canvas:
        read_gradebook(options.canvas, options.column)
    if options.folder.is_file():
        output = options.output or options.folder
        with options.folder.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        output = options.output or options.folder / options.assignment
        if output.suffix != ".csv":
            output = output.with_name(f"{output.name}.csv")
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
    except KeyboardInterrupt:
        sys.exit("\ngrade: stopped; the CSV holds what was graded until then")
    except (ValueError, OSError) as error:
        sys.exit(f"grade: {plain(str(error))}")
