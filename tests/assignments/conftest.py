"""All assignments, made once for all tests here."""

import os

import assignments
import pytest
from masters import SECRET


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder that `make assignments SECRET=…` fills."""
    if not os.environ.get("CI"):
        pytest.importorskip("otter", reason="type `make test-assignments`, which installs otter")
    output = tmp_path_factory.mktemp("assignments")
    assignments.main(["--secret", SECRET, "--output", str(output)])
    return output
