"""What is fetched is whole and right, or it is not there."""

import hashlib
import socket
import subprocess
import sys

import pytest
import torch
from web import serving

from densenet_tutorial.weights import download

CONTENT = bytes(range(256)) * 4096  # a megabyte: more than one chunk
NAME = f"some-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


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


def left(cache):
    return [path.name for path in cache.iterdir()] if cache.exists() else []


def test_a_file_is_fetched_once_with_progress(cache, web, capsys):
    url = web.put(NAME, CONTENT)
    path = download.download(url)
    assert path.parent == cache and path.read_bytes() == CONTENT
    assert NAME in capsys.readouterr().err
    assert download.download(url) == path
    assert web.asked == [f"/{NAME}"]
    assert left(cache) == [NAME]


def test_torch_hub_finds_it_in_the_same_place(cache, web):
    path = download.download(web.put(NAME, CONTENT))
    assert path == torch.hub.get_dir() / cache.relative_to(cache.parent) / NAME


def test_files_without_a_hash_in_their_name_are_kept_apart_by_address(cache, web):
    one = download.download(web.put("a/best.pt", CONTENT))
    other = download.download(web.put("b/best.pt", CONTENT[::-1]) + "?download=1")
    assert one.read_bytes() == CONTENT and other.read_bytes() == CONTENT[::-1]
    assert one.name.endswith("-best.pt") and other.name.endswith("-best.pt")


def test_a_connection_that_breaks_off_leaves_nothing(cache, web):
    for name in (NAME, "best.pt"):  # without a hash, too
        url, web.cut = web.put(name, CONTENT), 100_000
        with pytest.raises(ConnectionError, match="broke off after 100,000 of 1,048,576 bytes"):
            download.download(url)
        assert left(cache) == []
        web.cut = None
        assert download.download(url).read_bytes() == CONTENT
        download.cached_path(url).unlink()


def test_torchs_own_download_keeps_a_cut_file_where_it_has_no_hash(tmp_path, web):
    """The reason for ours. If this fails, PyTorch has mended it, and ours can go."""
    url, web.cut = web.put("best.pt", CONTENT), 100_000
    torch.hub.download_url_to_file(url, str(tmp_path / "best.pt"), progress=False)
    assert (tmp_path / "best.pt").stat().st_size == 100_000


def test_an_interrupted_download_leaves_nothing(cache, web, monkeypatch):
    class Interrupting(download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "tqdm", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        download.download(web.put(NAME, CONTENT))
    assert left(cache) == []


def test_a_wrong_hash_is_refused(cache, web):
    with pytest.raises(ValueError, match="is not the file: its SHA-256 starts with"):
        download.download(web.put(NAME, CONTENT + b"!"))
    assert left(cache) == []


def test_a_web_page_in_its_place_is_called_one(cache, web):
    with pytest.raises(ValueError, match="it is a web page"):
        download.download(web.put(NAME, b"<!doctype html><title>Please log in</title>"))
    assert left(cache) == []


def test_a_damaged_file_in_the_cache_is_named(cache, web):
    path = download.download(web.put(NAME, CONTENT))
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError, match=f"{NAME} is damaged .wrong SHA-256.; remove it"):
        download.download(web.put(NAME, CONTENT))


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
    with pytest.raises(ConnectionError) as caught:
        download.download(f"{address}/{NAME}")
    message = str(caught.value)
    assert message.startswith(f"{NAME} is not on this machine and could not be downloaded (")
    assert message.endswith(
        f"Fetch {address}/{NAME} where there is a network and put it into {cache}"
    )
    assert left(cache) == []

    cache.mkdir(exist_ok=True)  # and the way out is one
    (cache / NAME).write_bytes(CONTENT)
    assert download.download(f"{address}/{NAME}") == cache / NAME


def test_several_processes_may_fetch_the_same_file(cache, web):
    program = (
        "import sys, torch; from densenet_tutorial.weights import download; torch.hub.set_dir(sys.argv[1]);"
        "print(len(download.download(sys.argv[2]).read_bytes()))"
    )
    command = [sys.executable, "-c", program, str(cache.parent), web.put(NAME, CONTENT)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [int(process.communicate()[0]) for process in processes] == [len(CONTENT)] * 2
    assert left(cache) == [NAME]
