"""Addresses that somebody types or is given, and servers behind them that misbehave. All of it
stays on this machine.
"""

import hashlib
import io
from pathlib import Path
from random import Random

import torch
import torchvision
from kinds import Kind, damaged
from web import serving

from densenet_tutorial import weights
from densenet_tutorial.utils import download
from densenet_tutorial.weights import sources

SECRET = "S3cret"
PIECES = [
    *("a", "best", "..", ".", "%2F", "%2f..%2f", "%5C", "%00", "%252F", "%", "%zz", " ", "ä", "+"),
    *("-a639ec97", "-20240131", ".pth", ".pt", ".tar", "~", "C:", "\\", ";x=1", "CON", "\t", "\n"),
    *(
        "site-packages",
        "*",
        "$HOME",
        "`id`",
        "'",
        '"',
        "<",
        "&",
        "=",
        "@",
        ":",
        "x" * 300,
        "\x1b[2J",
    ),
]


class Addresses(Kind):
    name = "address"

    def __init__(self, folder):
        super().__init__(folder)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = torchvision.models.DenseNet(4, (1, 1), 8, num_classes=5)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        self.content, self.state = buffer.getvalue(), model.state_dict()
        self.digits = hashlib.sha256(self.content).hexdigest()[:10]
        self.outside, self.hub = folder / "outside", folder / "outside" / "deep" / "hub"
        self.hub.mkdir(parents=True)
        torch.hub.set_dir(str(self.hub))
        download.TIMEOUT = 0.3
        sources.tensor_files.MAX_BYTES = 2**20
        self.serving = serving()
        self.web = self.serving.__enter__()

    def case(self, random: Random) -> None:
        self.web.files = Anything(answer(self.content, random))
        address = self.address(random)
        try:
            found = weights.read(address, progress=False)
        except (ValueError, OSError) as error:
            while error:
                assert SECRET not in str(error), "a password in a message"
                error = error.__cause__
            assert self.files() == [], "something was kept"
            raise
        path = Path(found.source)
        assert path.parent == self.hub / "checkpoints" and self.files() == [path]
        assert all(torch.equal(found.model[key], value) for key, value in self.state.items())
        path.unlink()

    def files(self) -> list[Path]:
        """Every file that was written, wherever an address may have led."""
        return [path for path in self.outside.rglob("*") if not path.is_dir()]

    def address(self, random: Random) -> str:
        scheme = random.choice(["http", "http", "http", "http", "HTTP", "https", "ftp", "file", ""])
        user = random.choice(["", "", "", "", f"user:{SECRET}@", f"{SECRET}@", f"u:{SECRET}/x@"])
        port = self.web.address.rpartition(":")[2]
        host = random.choice([f"127.0.0.1:{port}"] * 9 + ["127.0.0.1:1", "127.0.0.1:x", "[::1", ""])
        path = "".join(random.choices(PIECES, k=random.randrange(6)))
        if random.randrange(3) == 0:
            path += f"-{self.digits}.pth"
        query = random.choice(["", "", f"?token={SECRET}", "?x=/../y", "#/../z", "?"])
        return f"{scheme}://{user}{host}/{path}{query}"


class Anything(dict):
    """The same answer to every path."""

    def __init__(self, content):
        super().__init__()
        self.content, self.left = content, 12

    def get(self, path, default=None):
        self.left -= 1  # a redirect may come back
        return self.content if self.left else default


def answer(content: bytes, random: Random):
    """What a server sends: mostly the file, and now and then something else."""
    kind = random.randrange(12)
    if kind < 4:
        return content
    if kind == 4:
        return damaged(content, random)
    if kind == 5:
        return random.choice([b"", b"<html>", b"{}", bytes(1000), random.randbytes(1000)])
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content)
    if kind == 6:
        return raw(head + content[: random.randrange(len(content))])
    if kind == 7:
        return raw(damaged(head, random) + content)
    if kind == 8:
        chunks = b"".join(
            b"%x\r\n%s\r\n" % (len(part), part) for part in (content[:999], content[999:])
        )
        body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        return raw(damaged(body, random) if random.randrange(2) else body)
    if kind == 9:
        elsewhere = ["//127.0.0.1:1/", "ftp://127.0.0.1/", f"http://u:{SECRET}@127.0.0.1:1/"]
        where = random.choice(
            ["/a", *elsewhere, "file:///etc/passwd", "..", "http://[", "?", "\x1b"]
        )
        status = random.choice([301, 302, 303, 307, 308, 300, 399])
        return raw(
            f"HTTP/1.1 {status} x\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
        )
    if kind == 10:
        return raw(
            b"HTTP/1.1 %d x\r\n\r\n" % random.choice([200, 204, 206, 304, 401, 404, 500, 999])
        )
    return random.choice([endless, stalling, raw(b""), raw(random.randbytes(200))])


def raw(content: bytes):
    return lambda handler: handler.wfile.write(content)


def endless(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(bytes(2**16))


def stalling(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
    handler.server.web.closing.wait(2)


KINDS = [Addresses]
