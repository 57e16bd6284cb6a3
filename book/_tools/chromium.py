"""The browser that draws, prints and measures pages."""

import shutil


def find():
    """Where Chromium, or Chrome, is; an OSError says that it is not here."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    if path := next(filter(None, found), None):
        return path
    raise OSError("this needs Chromium, which is not here: apt-get install chromium")


def launch(playwright):
    """Start it; an OSError says that it is not here."""
    return playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
