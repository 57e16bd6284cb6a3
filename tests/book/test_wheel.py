"""The wheel holds the package, all of it and nothing else, and works without the repository."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = """
import densenet_tutorial as d, torch
assert "repository" not in d.__file__
model = d.densenet("densenet_bc", weights="fashion-mnist-small")
images = d.data.load_dataset("digits").test_images[:2]
print(model(torch.zeros(1, 1, 28, 28)).shape)
print(d.check.ASSIGNMENTS.keys(), d.experiments.transfer.__doc__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "repository"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("book/", "tests/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder, copy], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = (path for path in ROOT.glob("densenet_tutorial/**/*") if path.is_file())
    files = {path.relative_to(ROOT).as_posix() for path in package if path.suffix != ".pyc"}
    assert names == files
    assert "densenet_tutorial/py.typed" in names


def test_the_wheel_says_whose_its_parts_are(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
    licences = {Path(name).name for name in said.get_all("License-File")}
    bundled = (ROOT / "densenet_tutorial" / "data" / "bundled").glob("*.LICENSE")
    assert licences == {"LICENSE", *(path.name for path in bundled)}
    assert {"Documentation", "Changelog"} <= {
        url.partition(",")[0] for url in said.get_all("Project-URL")
    }


def test_the_wheel_works_alone(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path]
    subprocess.run([*install, wheel], check=True)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    for code in (
        USE,
        "from densenet_tutorial.__main__ import main; main(['benchmark', '--help'])",
    ):
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300
        )
