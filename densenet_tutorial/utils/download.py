"""Download one file, with limits on time and size.

``torch.hub.download_url_to_file`` has no timeout and no size limit, and takes a broken connection
for the end of the file. pooch and huggingface_hub notice that, but have no size limit either, and
none for a server that sends a byte now and then.
"""

import contextlib
import hashlib
import http.client
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from tqdm import tqdm

#: A download is given up after this many seconds without an answer, or with fewer bytes per second
#: than that.
TIMEOUT, MIN_BYTES_PER_SECOND = 30, 100

_SAFE = "/%:@!$&'()*+,;=~?"  # characters with a meaning in a URL; others are percent-encoded


def checked_url(url: str) -> tuple[str, str]:
    """`url` as it is requested, and as messages show it: without its query, which may be secret.

    Raises:
        ValueError: the scheme is neither http nor https, or the URL holds a password.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        url.encode()
        # Written as %40, an @ would make the password a part of the host's name.
        usable = usable and "%40" not in parts.netloc
    except ValueError:  # a port that is no number, an unclosed [::1, or half a character
        usable = False
    if not usable or parts.username is not None:
        raise ValueError(
            "must be an address such as https://host/file.pth, without a user's name and password, "
            f"got {without_secrets(url)!r}"
        )
    shown = f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe=_SAFE)}"
    return shown + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""), shown


def without_secrets(text: str) -> str:
    """`text`, without user name, password and query if it is a URL."""
    # The beginning may be mistyped, so anything goes that is hardly a path.
    start = re.match(r".*?://|https?:/*|//", text, flags=re.DOTALL | re.IGNORECASE)
    beginning, rest = (start[0], text[start.end() :]) if start else ("", text)
    login = re.match(r"(.*)(?:@|＠|%40)", rest, flags=re.DOTALL)
    if login and (start or re.search(":|%3a", login[1], flags=re.IGNORECASE)):
        rest = "…@" + rest[login.end() :]
    if start or "=" in rest.partition("?")[2]:
        rest = rest.partition("?")[0]
    return (beginning + rest)[:200]


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the file at `path`, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, file: BinaryIO, max_bytes: int, progress: bool) -> tuple[str, bytes]:
    """Download `url` into `file`; return its SHA-256 and its first bytes.

    Raises:
        OSError: there is no answer, the connection breaks off or is too slow, or the file has more
            than `max_bytes`.
    """
    digest, start, size = hashlib.sha256(), b"", 0
    try:
        with contextlib.closing(_received(url)) as received:
            total = next(received)
            name = urlsplit(url).path.rpartition("/")[2]
            with tqdm(
                desc=name, total=total, unit="B", unit_scale=True, disable=not progress
            ) as bar:
                since, before = time.monotonic(), 0
                for chunk in received:
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
                    start, size = start or chunk, size + len(chunk)
                    if max(size, total or 0) > max_bytes:
                        raise OSError(f"it has more than {max_bytes:,} bytes")
                    if time.monotonic() - since > TIMEOUT:
                        if size - before < MIN_BYTES_PER_SECOND * TIMEOUT:
                            raise OSError(f"only {size - before} bytes came in {TIMEOUT} seconds")
                        since, before = time.monotonic(), size
    except (http.client.HTTPException, ValueError) as error:  # whose text may come from the server
        raise OSError("the server broke off, or does not keep to HTTP") from error
    if total is not None and size != total:  # http.client does not tell this from a normal end
        raise OSError(f"the connection broke off after {size:,} of {total:,} bytes")
    return digest.hexdigest(), start


class _Redirecting(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, or to https."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in (req.type, "https"):
            raise OSError(f"it leads away from {req.type}")
        fp.close()  # urllib would read its body to the end, which may not come
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _received(url: str) -> Generator[Any, None, None]:
    """The length of the response to a request for `url`, if it says it; then its body, in parts.

    A thread receives them: between two parts, a server can keep http.client busy, by headers,
    sizes of chunks or trailers without end. When the time is up, the thread is left alone.
    """
    parts: queue.Queue[Any] = queue.Queue(maxsize=16)
    given_up = threading.Event()

    def receive() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "densenet-tutorial"})
        opener = urllib.request.build_opener(_Redirecting)
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                parts.put((response.length,))
                while not given_up.is_set() and (chunk := response.read1(2**16)):
                    parts.put(chunk)
            parts.put(None)
        except urllib.error.HTTPError as error:
            parts.put(OSError(f"HTTP status {error.code}"))
        except urllib.error.URLError as error:
            parts.put(error.reason if isinstance(error.reason, OSError) else OSError("no answer"))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            parts.put(error)

    threading.Thread(target=receive, daemon=True).start()
    seconds = 2 * TIMEOUT  # for all redirects and headers
    try:
        while (part := parts.get(timeout=seconds)) is not None:
            if isinstance(part, Exception):
                raise part
            yield part[0] if isinstance(part, tuple) else part
            seconds = TIMEOUT
    except queue.Empty:
        raise OSError(f"nothing came in {seconds} seconds") from None
    finally:
        given_up.set()
        with contextlib.suppress(queue.Empty):  # so that the thread does not wait for room
            while True:
                parts.get_nowait()
