"""What is fetched is whole and right and where we put it, or it is not there."""

import hashlib
import io
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_layouts import OPTIONS
from web import serving

from densenet_tutorial import DenseNet, weights
from densenet_tutorial.utils import download
from densenet_tutorial.weights import WeightsError, sources


def saved(value):
    """A file of weights of about 120 kB: more than one chunk."""
    torch.manual_seed(value)
    buffer = io.BytesIO()
    torch.save(DenseNet(**OPTIONS).state_dict(), buffer)
    return buffer.getvalue()


CONTENT, OTHER = saved(0), saved(1)
NAME = f"some-{hashlib.sha256(CONTENT).hexdigest()[:32]}.pth"


@pytest.fixture
def cache(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def web():
    with serving() as web:
        yield web


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir())


def fetched(url, **options):
    """The path of the file that `url` is read from."""
    return Path(weights.read(url, **options).source)


def test_a_file_is_fetched_once_with_progress(cache, web, capsys):
    url = web.put(NAME, CONTENT)
    path = fetched(url)
    assert path.parent == cache and path.read_bytes() == CONTENT
    assert NAME in capsys.readouterr().err
    assert fetched(url) == path
    assert web.asked == [f"/{NAME}"]
    assert left(cache) == [path.name]


def test_progress_is_silent_where_it_is_not_wanted(cache, web, capsys):
    fetched(web.put(NAME, CONTENT), progress=False)
    assert capsys.readouterr().err == ""


def test_torchvision_finds_imagenets_weights_in_the_same_place(cache, web, monkeypatch):
    monkeypatch.setattr(sources, "IMAGENET_ADDRESS", f"{web.address}/")
    path = fetched(web.put(NAME, CONTENT))
    assert path == cache / NAME
    torch.hub.load_state_dict_from_url(f"{web.address}/{NAME}", weights_only=True)
    assert web.asked == [f"/{NAME}"]


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["best.pt", NAME, "densenet-20240131.pth"])
def test_the_same_name_elsewhere_is_another_file(cache, web, name):
    """Also with a hash in it: eight digits can be forged."""
    one = fetched(web.put(f"a/{name}", CONTENT))
    other = fetched(web.put(f"b/{name}", CONTENT) + "?download=1")
    assert one != other and len(left(cache)) == 2
    assert one.name.endswith(f"-{name}") and other.name.endswith(f"-{name}")


@pytest.mark.parametrize(
    "name",
    [
        "%2F..%2F..%2Fsite-packages%2Fdensenet121-{hash}.pth",
        "%2Ftmp%2Fevil-{hash}.pth",
        "..%5C..%5Cevil-{hash}.pth",
        "%252e%252e%252fevil-{hash}.pth",
        "a/../../../evil-{hash}.pth",
        "a/%2e%2e/%2e%2e/evil-{hash}.pth",
        "..",
        "%2e%2e",
        ".%00.%0a.pth",
        ".bashrc",
        "C%3A%5Cevil-{hash}.pth",
        "~root",
        "CON.pth",
        "x" * 3000,
        "ä ö.pth",
        "a;b=%2F..%2Fc.pth",
        "",
        "?x=/../../evil.pth",
        "#/../../evil.pth",
    ],
)
def test_no_address_chooses_where_its_file_is_written(cache, web, tmp_path, name):
    name = name.format(hash=hashlib.sha256(CONTENT).hexdigest()[:8])
    before = left(tmp_path)
    path = sources.cached_path(f"{web.address}/m/{name}")
    assert path.parent == cache and re.fullmatch(r"[0-9a-f]{16}-[A-Za-z0-9._-]{1,100}", path.name)
    web.files = dict.fromkeys([f"/m/{name.partition('?')[0].partition('#')[0]}"], CONTENT)
    try:
        assert fetched(f"{web.address}/m/{name}").parent == cache
    except WeightsError as error:
        assert "HTTP status" in str(error)
    assert [path for path in left(tmp_path) if path not in left(cache)] == before


def test_a_link_out_of_the_cache_is_not_followed(cache, web, tmp_path):
    url = web.put("best.pt", CONTENT)
    cache.mkdir()
    sources.cached_path(url).symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(WeightsError, match="is a link out of this folder"):
        fetched(url)
    assert not (tmp_path / "elsewhere.pt").exists() and web.asked == []


@pytest.mark.parametrize(
    ("name", "has_one"),
    [
        ("densenet121-a639ec97.pth", True),
        ("densenet121-a639ec97.pth.tar", True),
        (f"a-{'0123456789abcdef' * 4}.safetensors", True),
        ("densenet-20240131.pth", False),
        ("densenet-20240131a.pth", False),
        ("densenet-20240131123000.pth", False),
        ("densenet-1706659200.pth", False),
        ("densenet-12345678.pth", False),
        ("densenet-a639ec9.pth", False),
        ("densenet-A639EC97.pth", False),
        ("densenet-a639ec97", False),
        ("a639ec97.pth", False),
        ("densenet-a639ec97-best.pth", False),
    ],
)
def test_what_is_held_to_a_hash_is_what_has_one_in_its_name(cache, web, name, has_one):
    """A date, a time, a number is none: such a file is read, whatever it holds."""
    url = web.put(name, CONTENT)
    if has_one:
        with pytest.raises(
            WeightsError, match="its SHA-256 starts with .*, not with .* as its name"
        ):
            fetched(url)
        assert left(cache) == []
    else:
        assert fetched(url).read_bytes() == CONTENT


# ------------------------------------------------------------------------------ addresses

SECRET = "S3cret"


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{SECRET}@127.0.0.1:1/a.pth",
        f"https://user:{SECRET}@weights.invalid/a.pth",
        f"http://{SECRET}@127.0.0.1/a.pth",
        f"http://user:{SECRET}/with@slash@127.0.0.1/a.pth",
        f"http://user:{SECRET}@[::1/a.pth",
        f"http://user:{SECRET}@host:port/a.pth",
        f"http://user:{SECRET}@host:1:2/a.pth",
        f"HTTP://user:{SECRET}@127.0.0.1:99999/a.pth",
        f"http://127.0.0.1:1/a.pth?token={SECRET}",
        f"http://127.0.0.1:1/a.pth?token={SECRET}#{SECRET}",
        f"ftp://user:{SECRET}@127.0.0.1/a.pth",
        f"s3://key:{SECRET}@bucket/a.pth?x={SECRET}",
        f"http://user:{SECRET}@",
        f"http:/user:{SECRET}@127.0.0.1/a.pth",
        f"https:user:{SECRET}@127.0.0.1/a.pth",
        f"//user:{SECRET}@127.0.0.1/a.pth",
        f"https;//user:{SECRET}@127.0.0.1/a.pth",
        f"http//user:{SECRET}@127.0.0.1/a.pth",
        f"htps:/user:{SECRET}@127.0.0.1/a.pth",
        f"ttp:user:{SECRET}@127.0.0.1/a.pth",
        f"user:{SECRET}@127.0.0.1/a.pth",
        f"user:a%40{SECRET}%40127.0.0.1/a.pth",
        f"http://user:{SECRET}＠127.0.0.1/a.pth",
        f"http://u%3A{SECRET}%40127.0.0.1:1/a.pth",
        f"www.weights.invalid/a.pth?token={SECRET}",
        f"http://\\n@{SECRET}@127.0.0.1:1/a.pth",
    ],
)
def test_no_message_holds_a_password(cache, address, capfd):
    with pytest.raises(WeightsError) as caught:
        fetched(address)
    error = caught.value
    while error:  # what a traceback would print
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "https:///a.pth",
        "http://:80/a.pth",
        "http://host:0/a.pth",
        "http://host:99999/a.pth",
        "http://host:-1/a.pth",
        "http://host:http/a.pth",
        "http://[::1/a.pth",
        "http://[zz]/a.pth",
    ],
)
def test_an_odd_address_is_refused_in_words(cache, address):
    with pytest.raises(WeightsError, match="weights must be an address such as https://host/"):
        fetched(address)
    assert left(cache) == []


@pytest.mark.parametrize(
    "address",
    ["http://a b/c.pth", f"http://{'a' * 70}.invalid/", "http://ä..ö.invalid/", "http://%00/"],
)
def test_an_address_that_no_server_can_have_is_refused_in_words(cache, address):
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetched(address)


def test_an_address_may_hold_spaces_and_letters_of_any_kind(cache, web):
    web.files["/a%20b/%C3%A4.pth"] = CONTENT
    assert fetched(f"{web.address}/a b/ä.pth?x=ö").read_bytes() == CONTENT


# --------------------------------------------------------------------------- servers that misbehave


def respond(handler, *headers, status=200):
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()


def endless(handler):
    respond(handler)
    while True:
        handler.wfile.write(bytes(2**20))


def endless_chunks(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")


def huge(handler):
    respond(handler, ("Content-Length", str(2**50)))
    endless(handler)


def silent(handler):
    handler.server.web.closing.wait(20)


def stalling(handler):
    respond(handler, ("Content-Length", "1000"))
    handler.wfile.write(bytes(100))
    handler.server.web.closing.wait(20)


def dripping(handler):
    respond(handler, ("Content-Length", "1000000"))
    while not handler.server.web.closing.wait(0.05):
        handler.wfile.write(b"x")


def dripping_head(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.web.closing.wait(0.05):
        handler.wfile.write(b"x")


def going_on(handler):
    while not handler.server.web.closing.wait(0.01):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def size_without_end(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
    while not handler.server.web.closing.wait(0.05):
        handler.wfile.write(b"x")


def trailers_without_end(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")
    while not handler.server.web.closing.wait(0.01):
        handler.wfile.write(b"A: b\r\n")


SENT = []


def endless_redirect(handler):
    SENT.clear()
    respond(handler, ("Location", "/other.pt"), status=302)
    for _ in range(1000):
        handler.wfile.write(bytes(2**20))
        SENT.append(2**20)


def raw(content):
    return lambda handler: handler.wfile.write(content)


def cut(length):
    return raw(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello".encode())


def another(handler):
    buffer = io.BytesIO()
    torch.save({"layer1.0.weight": torch.ones(3)}, buffer)
    respond(handler)
    handler.wfile.write(buffer.getvalue())


def redirect(location):
    return lambda handler: respond(handler, ("Location", location), status=302)


MISBEHAVING = {
    "endless": (endless, "has more than 3,000,000 bytes"),
    "endless chunks": (endless_chunks, "has more than 3,000,000 bytes"),
    "huge": (huge, "has more than 3,000,000 bytes"),
    "silent": (silent, "timed out|nothing came in"),
    "stalling": (stalling, "timed out|nothing came in"),
    "dripping": (dripping, "only .* bytes came in"),
    "dripping head": (dripping_head, "nothing came in|timed out"),
    "going on": (going_on, "nothing came in|timed out"),
    "size without end": (size_without_end, "nothing came in|timed out"),
    "trailers without end": (trailers_without_end, "nothing came in|timed out"),
    "redirect without end": (endless_redirect, "HTTP status 404"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH\r\n\x1b[2J"), "HTTP"),
    "nothing": (raw(b""), "(?i)remote end closed|HTTP"),
    "length of no number": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc"),
        "cannot be",
    ),
    "length with spaces": (cut("  100000  "), "broke off after 5 of 100,000 bytes"),
    "length with a sign": (cut("+100000"), "broke off after 5 of 100,000 bytes"),
    "negative length": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc"), "cannot be"),
    "length of many digits": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabc"),
        "cannot be|HTTP",
    ),
    "header without end": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99_999), "HTTP"),
    "many headers": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"), "HTTP"),
    "status of no number": (raw(b"HTTP/1.1 OK\r\n\r\n"), "HTTP"),
    "chunk of no length": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
        "HTTP|broke off",
    ),
    "chunks cut": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nabc"),
        "HTTP|broke off",
    ),
    "empty": (raw(b"HTTP/1.1 200 OK\r\n\r\n"), "it is empty"),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "it is empty"),
    "teapot": (raw(b"HTTP/1.1 418 \x1b[31mpot\r\n\r\n"), "HTTP status 418"),
    "redirect to itself": (redirect("/best.pt"), "HTTP status 302"),
    "redirect to a file": (redirect("file:///etc/passwd"), "leads away|HTTP status 302"),
    "redirect to ftp": (redirect("ftp://127.0.0.1/best.pt"), "it leads away from http"),
    "redirect to data": (redirect("data:,abc"), "leads away|HTTP status 302"),
    "redirect to nowhere": (redirect("http://[::1"), "HTTP"),
    "redirect to a password": (redirect(f"http://u:{SECRET}@127.0.0.1:1/"), "could not be down"),
    "redirect to an odd port": (redirect("http://127.0.0.1:x/"), "could not be downloaded"),
    "a web page": (b"<!doctype html><title>Please log in</title>", "it is a web page.*not kept"),
    "not all of it": (CONTENT[:50_000], "cut short.*it was not kept"),
    "no weights": (b"\x80\x02}.", "it was not kept"),
    "another network": (another, "it holds no DenseNet's weights: .*; it was not kept"),
}


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_of_a_server_that_misbehaves_nothing_is_kept(cache, web, monkeypatch, hurried, kind):
    answer, words = MISBEHAVING[kind]
    monkeypatch.setattr(sources.tensor_files, "MAX_BYTES", 3_000_000)
    url = web.put("best.pt", answer)
    before = time.monotonic()
    with pytest.raises(WeightsError, match=words) as caught:
        fetched(url)
    message = str(caught.value)
    assert len(message) < 600 and message.isprintable() and SECRET not in message
    assert message.count("cannot be used") + message.count("could not be downloaded") == 1
    assert time.monotonic() - before < 10
    assert left(cache) == [] and sum(SENT) < 50_000_000
    web.files["/best.pt"] = CONTENT  # and the next try does not find what was bad
    assert fetched(url).read_bytes() == CONTENT


def test_a_redirect_from_https_to_http_is_not_followed():
    handler = download._Redirecting()
    request = download.urllib.request.Request("https://host/a.pth")
    with pytest.raises(OSError, match="it leads away from https"):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://host/a.pth")
    assert handler.redirect_request(request, io.BytesIO(), 302, "", {}, "https://other/a.pth")


def test_a_redirect_of_the_same_kind_is_followed(cache, web):
    web.put("real.pt", CONTENT)
    url = web.put("best.pt", redirect("/real.pt"))
    assert fetched(url).read_bytes() == CONTENT and web.asked == ["/best.pt", "/real.pt"]


def test_a_connection_that_breaks_off_leaves_nothing(cache, web):
    for name in (NAME, "best.pt"):  # without a hash, too
        url, web.cut = web.put(name, CONTENT), 50_000
        with pytest.raises(
            WeightsError, match=rf"broke off after 50,000 of {len(CONTENT):,} bytes"
        ):
            fetched(url)
        assert left(cache) == []
        web.cut = None
        path = fetched(url)
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_torchs_own_download_keeps_a_cut_file_where_it_has_no_hash(tmp_path, web):
    """One reason for ours. If this fails, PyTorch has mended it: look at the others."""
    url, web.cut = web.put("best.pt", CONTENT), 50_000
    torch.hub.download_url_to_file(url, str(tmp_path / "best.pt"), progress=False)
    assert (tmp_path / "best.pt").stat().st_size == 50_000


FETCH = (
    "import sys, torch; from densenet_tutorial import weights; torch.hub.set_dir(sys.argv[1]);"
    "print(len(open(weights.read(sys.argv[2]).source, 'rb').read()))"
)


def test_a_killed_download_leaves_nothing_that_is_found_again(cache, web):
    url = web.put("best.pt", stalling)
    command = [sys.executable, "-c", FETCH, str(cache.parent), url]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not web.asked and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    web.files["/best.pt"] = CONTENT
    path = fetched(url)
    assert path.read_bytes() == CONTENT and left(cache) == [path.name]


def test_a_wrong_hash_is_refused(cache, web):
    with pytest.raises(WeightsError, match="is not the file: its SHA-256 starts with"):
        fetched(web.put(NAME, OTHER))
    assert left(cache) == []


def test_a_web_page_in_its_place_is_called_one(cache, web):
    with pytest.raises(WeightsError, match="it is a web page"):
        fetched(web.put(NAME, b"<!doctype html><title>Please log in</title>"))
    assert left(cache) == []


def test_a_damaged_file_in_the_cache_is_named(cache, web):
    path = fetched(web.put(NAME, CONTENT))
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match=f"{NAME} is damaged .wrong SHA-256.; remove it"):
        fetched(web.put(NAME, CONTENT))
    path.unlink()  # the way out is one
    assert fetched(web.put(NAME, CONTENT)) == path


def test_a_damaged_file_without_a_hash_is_fetched_again(cache, web):
    url = web.put("best.pt", CONTENT)
    path = fetched(url)
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match="it was not kept"):
        fetched(url)
    assert fetched(url).read_bytes() == CONTENT and web.asked == ["/best.pt"] * 2


def nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("why", ["404", "no server", "no such host"])
def test_without_the_file_one_sentence_says_the_way_out(cache, web, why):
    address = {
        "404": web.address,
        "no server": nobody_listens(),
        "no such host": "http://weights.invalid",
    }[why]
    url = f"{address}/{NAME}?token={SECRET}"
    with pytest.raises(WeightsError) as caught:
        fetched(url)
    message = str(caught.value)
    assert message.startswith(
        f"{address}/{NAME} is not on this machine and could not be downloaded"
    )
    place = message.rpartition(" and save it as ")[2]
    assert "). Fetch it where there is a network and save it as " in message
    assert left(cache) == []

    Path(place).write_bytes(CONTENT)  # and the way out is one
    assert fetched(url) == Path(place)


def test_several_processes_may_fetch_the_same_file(cache, web):
    command = [sys.executable, "-c", FETCH, str(cache.parent), web.put(NAME, CONTENT)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [int(process.communicate()[0]) for process in processes] == [len(CONTENT)] * 2
    assert len(left(cache)) == 1
