"""One file from the web, into the cache that PyTorch keeps for weights.

``torch.hub.download_url_to_file`` notices a connection that was cut only where a hash is given, and a process that is
killed leaves its ``.partial`` file. Here a download stays in memory until it is whole and checked.
"""

import hashlib
import os
import re
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from tqdm import tqdm

from densenet_tutorial.utils import files

#: Seconds without an answer, or without another byte, after which a download is given up.
TIMEOUT = 30


def is_url(text: object) -> bool:
    """Whether `text` is an address of the web, with http or https."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))


def cached_path(url: str) -> Path:
    """Where the file of `url` is, or belongs: in ``checkpoints`` in ``torch.hub.get_dir()``, by its own name.

    A name without a hash may mean different files at different addresses, so it gets one of the address.
    """
    name = unquote(Path(urlsplit(url).path).name) or "weights"
    if not hash_in(name):
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    return Path(torch.hub.get_dir(), "checkpoints", name)


def hash_in(name: str) -> str | None:
    """The first digits of the SHA-256 that a file's name gives, as in ``densenet121-a639ec97.pth``."""
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else None


def download(url: str) -> Path:
    """The path of the file at `url`, fetched if it is not in the cache yet.

    Where the file's name gives a hash, the content is held to it, in the cache as well. An interrupted or refused
    download leaves nothing behind.

    Raises:
        ConnectionError: it cannot be fetched; the message names the file and where to put it by hand.
        ValueError: the content is not what the name promises.
    """
    path = cached_path(url)
    expected = hash_in(path.name)
    if path.exists():
        if expected and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(expected):
            raise ValueError(f"{path} is damaged (wrong SHA-256); remove it and try again")
        return path
    try:
        content = _fetch(url, path.name)
    except OSError as error:  # every failure of the network is one, HTTP's included
        raise ConnectionError(
            f"{path.name} is not on this machine and could not be downloaded ({error}). "
            f"Fetch {url} where there is a network and put it into {path.parent}"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if expected and not actual.startswith(expected):
        page = " (it is a web page)" if content.lstrip()[:1] == b"<" else ""
        raise ValueError(
            f"what {url} sent is not the file{page}: its SHA-256 starts with {actual[: len(expected)]}, "
            f"not with {expected}; it was not kept"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}")  # several processes may fetch at once
    files.write(own, content)
    os.replace(own, path)
    return path


def _fetch(url: str, name: str) -> bytes:
    """The whole content of `url`, with a progress bar; an OSError if it breaks off."""
    request = urllib.request.Request(url, headers={"User-Agent": "densenet-tutorial"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        content = bytearray()
        with tqdm(desc=name, total=total, unit="B", unit_scale=True) as bar:
            while chunk := answer.read(2**16):
                content += chunk
                bar.update(len(chunk))
    if total is not None and len(content) != total:  # a cut connection is an end like any other
        raise OSError(f"the connection broke off after {len(content):,} of {total:,} bytes")
    return bytes(content)
