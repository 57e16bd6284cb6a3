"""Give the repository another public address, everywhere it stands.

    python book/_tools/repository.py https://github.com/OWNER/NAME

The address stands in `_config.yml` and is repeated where a reader needs it: the first cell of every
notebook, Colab links, README.md, CITATION.cff, pyproject.toml. This changes all of them, and the
address of the site on GitHub Pages.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import notebooks
import yaml

ADDRESS = re.compile(r"https://github\.com/([A-Za-z0-9][A-Za-z0-9-]*)/([A-Za-z0-9._-]+)")


def parse(url):
    """Owner and name in `url`; a ValueError says what is wrong with it."""
    cleaned = url.strip().rstrip("/").removesuffix(".git")
    found = ADDRESS.fullmatch(cleaned)
    if not found:
        raise ValueError(
            f"{url!r} is not a repository's address like https://github.com/OWNER/NAME "
            "(Colab and the links in the book need one on GitHub)"
        )
    return found.groups()


def replacements(old, new):
    """Pairs of a pattern and its replacement: for the repository, for Colab and for Pages."""
    (old_owner, old_name), (owner, name) = old, new
    end = r"(?![A-Za-z0-9_-])"  # …/book must not match in …/bookshelf
    repository = re.escape(f"{old_owner}/{old_name}") + end
    pages = re.escape(f"{old_owner.lower()}.github.io/{old_name}") + end
    return [
        (re.compile(rf"(github\.com/|/github/){repository}"), rf"\g<1>{owner}/{name}"),
        (re.compile(pages), f"{owner.lower()}.github.io/{name}"),
        # As torch.hub takes it.
        (re.compile(f'"{re.escape(f"{old_owner}/{old_name}")}"'), f'"{owner}/{name}"'),
    ]


def files(root):
    """Every file of the repository, new ones included, ignored ones not."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (Path(root, name) for name in sorted(set(filter(None, listing.split("\0")))))
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def rewrite(root, url):
    """Change the address to `url` in every file under `root`; return the files that changed."""
    new = parse(url)
    config = yaml.safe_load(Path(root, "_config.yml").read_text(encoding="utf-8"))
    pairs = replacements(parse(config["repository"]["url"]), new)
    changed = []
    # The old address is read from _config.yml: last, so that an interrupted run can be repeated.
    for path in sorted(files(root), key=lambda path: path.name == "_config.yml"):
        try:
            text = before = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        for pattern, replacement in pairs:
            text = pattern.sub(replacement, text)
        if text != before:
            notebooks.write_text(path, text)
            changed.append(path)
    return changed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="https://github.com/OWNER/NAME")
    for path in rewrite(notebooks.ROOT, parser.parse_args(arguments).url):
        print(path.relative_to(notebooks.ROOT))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"repository: {error}")
