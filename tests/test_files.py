"""What is written is whole or not there, and nothing but a regular file is ever replaced."""

import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from densenet_tutorial.utils import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_made_and_replaced(tmp_path):
    for content in (b"one", memoryview(b"two"), b""):
        files.write(tmp_path / "a.txt", content)
        assert (tmp_path / "a.txt").read_bytes() == bytes(content)
        assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, ".hidden", "a [1] *.txt", "-n"])
def test_any_name_that_the_file_system_takes_is_taken(tmp_path, name):
    for content in (b"one", b"two"):
        files.write(tmp_path / name, content)
    assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"two"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ZeroDivisionError])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a.txt").write_bytes(b"old")
    with pytest.raises(error), files.atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half of someth")
        raise error
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"old"


@pytest.mark.parametrize(("room", "size"), [(10_000, 100_000), (0, 100), (8192, 8300)])
def test_a_disk_that_fills_up_leaves_the_old_file_and_is_reported(tmp_path, room, size):
    (tmp_path / "a.txt").write_bytes(b"old")
    # No file may grow past `room` bytes: to the program, this is a full disk. Of a small file the
    # last part is in Python's own buffer, which is written once more when the file is closed.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        with pytest.raises(OSError, match="not written: .*a.txt"):
            files.write(tmp_path / "a.txt", bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_bytes() == b"old"


WRITER = """
import sys, time
from densenet_tutorial.utils import files
with files.atomic_write(sys.argv[1]) as file:
    file.write(b"half of someth")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def writing(path):
    """A process that has begun to write `path`."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    return process


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.part").write_bytes(b"somebody's own")
    with writing(path) as killed, writing(path) as living:
        killed.kill()
        killed.wait()
        assert len(names(tmp_path)) == 3 and not path.exists()
        files.write(path, b"whole")
        assert path.read_bytes() == b"whole"
        assert len(names(tmp_path)) == 3, "the living one's is there, and somebody's own"
        living.kill()
    files.write(path, b"whole again")
    assert names(tmp_path) == ["a.txt", "a.txt.part"]


def test_writers_at_the_same_time_each_write_a_whole_file(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    failed = []

    def often(content):
        try:
            for _ in range(20):
                files.write(tmp_path / "a", content)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=often, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
        if (tmp_path / "a").exists():
            assert (tmp_path / "a").read_bytes() in contents
    assert not failed and names(tmp_path) == ["a"]


# -------------------------------------------------------------------------- what is no regular file


def make_fifo(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_socket(path):
    import socket

    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


@pytest.mark.parametrize("through_a_link", [False, True])
@pytest.mark.parametrize("make", [make_fifo, make_folder, make_socket, make_device])
def test_what_is_no_regular_file_is_neither_replaced_nor_opened(
    tmp_path, monkeypatch, make, through_a_link
):
    monkeypatch.chdir(tmp_path)
    thing = path = tmp_path / "thing"
    make(thing)
    if through_a_link:
        path = tmp_path / "link"
        path.symlink_to(thing)
    before = os.lstat(thing)
    with pytest.raises(OSError, match="it is no regular file; not written: "):
        files.write(path, b"content")
    after = os.lstat(thing)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == sorted({thing.name, path.name})


def test_the_standard_devices_stay_what_they_are():
    for device in ("/dev/null", "/dev/stdout", "/dev/fd/0"):
        if os.path.exists(device) and not stat.S_ISREG(os.stat(device).st_mode):
            before = os.stat(device).st_mode
            with pytest.raises(OSError, match="not written"):
                files.write(device, b"content")
            assert os.stat(device).st_mode == before


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_bytes(b"old")
    (tmp_path / "one").symlink_to("two")  # relative, and a link to a link
    (tmp_path / "two").symlink_to(tmp_path / "far" / "a.txt")
    files.write(tmp_path / "one", b"new")
    assert (tmp_path / "one").is_symlink() and (tmp_path / "two").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_bytes() == b"new"
    assert not (tmp_path / "far" / "a.txt").is_symlink()
    assert names(tmp_path) == ["far", "one", "two"] and names(tmp_path / "far") == ["a.txt"]


def test_a_link_to_nothing_makes_the_file_and_one_in_a_circle_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("new.txt")
    files.write(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new.txt").read_bytes() == b"content"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="not written"):
        files.write(tmp_path / "circle", b"content")
    assert names(tmp_path) == ["circle", "link", "new.txt"]


# ------------------------------------------------------------------------------ permissions


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [0o600, 0o640, 0o644, 0o666, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, before):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    path.chmod(before)
    with files.atomic_write(path) as file:
        file.write(b"new")
        assert stat.S_IMODE(os.stat(file.name).st_mode) & ~before == 0, "never wider, not even now"
    assert mode(path) == before and path.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_what_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write(tmp_path / "a.txt", b"new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.txt") == 0o666 & ~umask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes as somebody else")
def test_owner_and_group_are_kept_or_the_group_loses_its_permissions(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 12345, 23456)
    files.write(path, b"by root")
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (12345, 23456, 0o640)

    with tempfile.TemporaryDirectory() as folder:  # which another may enter, as no tmp_path
        shared = Path(folder, "a.txt")
        shared.write_bytes(b"old")
        os.chmod(folder, 0o777)
        os.chown(shared, 12345, 23456)
        shared.chmod(0o666)
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setgid(777)
                os.setuid(777)
                files.write(shared, b"new")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert shared.read_bytes() == b"new"
        assert (shared.stat().st_gid, mode(shared)) == (777, 0o606)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is write-protected for root")
def test_a_write_protected_file_is_not_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="not written"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
