"""The built site, for tests of its pages and for tests in a browser."""

from pathlib import Path

import contents
import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


def toc_files():
    """Every page that _toc.yml names, the root first."""
    return contents.pages(ROOT)


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", [f"{name}.html" for name in toc_files()])


@pytest.fixture(scope="session")
def site():
    """The folder of the built site."""
    if not (SITE / "index.html").is_file():
        pytest.fail("there is no site in _build/html: type `make book` first", pytrace=False)
    return SITE
