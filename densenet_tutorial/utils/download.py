"""One file from the web, within limits of time and size.

Why not ``torch.hub.download_url_to_file``: it waits for ever, has no limit of size, and takes a
connection that breaks off for the file's end. Why not pooch or huggingface_hub: they notice that,
and have neither a limit of size nor one for a server that sends a byte now and then.
"""

import hashlib
import http.client
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from tqdm import tqdm

#: A download is given up after these seconds without an answer, or with fewer bytes in each of
#: them.
TIMEOUT, SLOWEST = 30, 100

_KEPT = "/%:@!$&'()*+,;=~?"  # what an address means by itself; other signs are written as %XX


def checked_address(url: str) -> tuple[str, str]:
    """`url` as it is asked for, and as it may be shown: its query, too, may be a secret.

    Raises:
        ValueError: it is none of http or https, or it holds a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or an unfinished [::1
        usable = False
    if not usable or parts.username is not None:
        raise ValueError(
            "must be an address such as https://host/file.pth, without a user's name and password, "
            f"got {without_secrets(url)!r}"
        )
    shown = f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe=_KEPT)}"
    return shown + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""), shown


def without_secrets(text: str) -> str:
    """`text`, if it is an address, without a user's name and password and without its query."""
    if "://" in text:
        text = re.sub(r"(?<=//).*@", "…@", text, flags=re.DOTALL).partition("?")[0]
    return text[:200]


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(address: str, file: BinaryIO, largest: int, progress: bool) -> tuple[str, bytes]:
    """Write what `address` answers to `file`; return its SHA-256 and its first bytes.

    Raises:
        OSError: it cannot be had, its connection breaks off, it does not get on, or it has more
            than `largest` bytes.
    """
    digest, start, size = hashlib.sha256(), b"", 0
    try:
        with _answer(address) as answer:
            said = answer.headers.get("Content-Length", "")
            total = int(said) if re.fullmatch(r"[0-9]{1,15}", said) else None
            name = urlsplit(address).path.rpartition("/")[2]
            with tqdm(
                desc=name, total=total, unit="B", unit_scale=True, disable=not progress
            ) as bar:
                since, before = time.monotonic(), 0
                while chunk := answer.read1(2**16):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                    start, size = start or chunk, size + len(chunk)
                    if max(size, total or 0) > largest:
                        raise OSError(f"it has more than {largest:,} bytes")
                    if time.monotonic() - since > TIMEOUT:
                        if size - before < SLOWEST * TIMEOUT:
                            raise OSError(f"only {size - before} bytes came in {TIMEOUT} seconds")
                        since, before = time.monotonic(), size
    except (http.client.HTTPException, ValueError) as error:  # whose texts may be the server's
        raise OSError("the server broke off, or does not keep to HTTP") from error
    if total is not None and size != total:  # to the connection, this is an end like any other
        raise OSError(f"the connection broke off after {size:,} of {total:,} bytes")
    return digest.hexdigest(), start


class _Redirecting(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the same scheme, or to https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in (req.type, "https"):
            raise OSError(f"it leads away from {req.type}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answer(address: str) -> http.client.HTTPResponse:
    """The answer to a request for `address`, if its head comes in time, however slowly it drips."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(address, headers={"User-Agent": "densenet-tutorial"})
        try:
            opener = urllib.request.build_opener(_Redirecting)
            answers.put(opener.open(request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            answers.put(OSError(f"HTTP status {error.code}"))
        except urllib.error.URLError as error:
            answers.put(error.reason if isinstance(error.reason, OSError) else OSError("no answer"))
        except Exception as error:  # noqa: BLE001, for the thread that waits
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * TIMEOUT)
    except queue.Empty:
        raise OSError(f"no answer in {2 * TIMEOUT} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
