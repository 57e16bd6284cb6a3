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

OWNER = r"[A-Za-z0-9](?:[A-Za-z0-9]|-(?=[A-Za-z0-9])){0,38}"
NAME = r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}"
ADDRESS = re.compile(f"https://github\\.com/({OWNER})/({NAME})")


def parse(url):
    """Owner and name in `url`; a ValueError says what is wrong with it."""
    cleaned = url.strip().removesuffix("/").removesuffix(".git")
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
    # …/book must not match in …/bookshelf or …/book.js, but in …/book.git and at a sentence's end.
    end = r"(?![A-Za-z0-9_-]|\.(?!git\b)[A-Za-z0-9_-])"
    repository = re.escape(f"{old_owner}/{old_name}") + end
    changed = f"(?!{re.escape(pages(*new))}{end})"  # by a run that was interrupted
    return [
        (re.compile(rf"(github\.com/|/github/){repository}"), rf"\g<1>{owner}/{name}"),
        # As torch.hub takes it.
        (re.compile(f'"{re.escape(f"{old_owner}/{old_name}")}"'), f'"{owner}/{name}"'),
        (re.compile(rf"(?<=//){changed}{re.escape(pages(*old))}{end}"), pages(*new)),
    ]


def pages(owner, name):
    """Where GitHub Pages has the site of a repository; at the top, if it is OWNER.github.io."""
    host = f"{owner.lower()}.github.io"
    return host if name.lower() == host else f"{host}/{name}"


def files(root):
    """Every file of the repository, new ones included, ignored ones not."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except FileNotFoundError:
        raise ValueError("git is needed to list the files, and is not installed") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"git cannot list the files: {error.stderr.strip()}") from None
    paths = (Path(root, name) for name in sorted(set(filter(None, listing.split("\0")))))
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def rewrite(root, url):
    """Change the address to `url` in every file under `root`; return the files that changed."""
    new = parse(url)
    config = yaml.safe_load(Path(root, "_config.yml").read_text(encoding="utf-8"))
    old = parse(config["repository"]["url"])
    if new == old:
        raise ValueError(f"{url!r} is the repository's address already, so nothing was changed")
    pairs = replacements(old, new)
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
    try:
        changed = rewrite(notebooks.ROOT, parser.parse_args(arguments).url)
    except ValueError as error:
        sys.exit(f"repository: {error}")
    for path in changed:
        print(path.relative_to(notebooks.ROOT))


if __name__ == "__main__":
    main()
