"""Writing files so that an interruption, at whatever moment, leaves the old one."""

import contextlib
import errno
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind, and lets nobody remove a file that is open
    fcntl = None  # type: ignore[assignment]


def write(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write `content` to `path`, whole or not at all, as :func:`replacing` does.

    Raises:
        OSError: the disk is full, say, or `path` is something else than a regular file; the message
            names `path`.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; not written", os.fspath(path)) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the name `path` when the block ends without an error.

    Until then it is called ``NAME.….part`` and lies beside `path`; after an error it is removed,
    and the old file is as it was. What a killed process left is removed when the same name is next
    written.

    Only a regular file is ever replaced. Where `path` is a link, the link stays, and the file that
    it leads to is replaced, or made if there is none. The new file has the old one's permissions,
    owner and group; where the group cannot be kept, the group's permissions are taken away.

    Raises:
        OSError: `path` is a folder, a device or another thing that is no regular file, or is
            write-protected.
    """
    old = _replaced(path)
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    with _part(target, private=old is not None) as file:
        try:
            yield file
            file.flush()
            if old and fcntl:
                _keep_permissions(file.fileno(), old)
            os.fsync(file.fileno())
            if not fcntl:
                file.close()  # Windows renames no open file
            os.replace(file.name, target)
        except BaseException:
            file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
            raise


def _replaced(path: str | os.PathLike[str]) -> os.stat_result | None:
    """The regular file that `path` leads to, if there is one."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    if not os.access(path, os.W_OK):  # a rename would not ask
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return old


def _part(target: Path, private: bool) -> BinaryIO:
    """A new file beside `target`, locked: nobody takes it for one that a killed process left.

    Its name is one that nobody can foresee, and it is made or not opened: it follows no link. With
    `private`, only its owner may read it.
    """
    mode = 0o600 if private else 0o666  # less what the umask takes away
    while True:
        part = target.with_name(f"{_beginning(target)}.{secrets.token_hex(8)}.part")
        file = open(part, "xb", opener=lambda p, flags: os.open(p, flags, mode))  # noqa: SIM115
        if fcntl:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(part):  # another process may have removed it before it was locked
            return file
        file.close()


def _remove_abandoned(target: Path) -> None:
    """Remove parts of `target` that nobody has locked: their processes are gone."""
    pattern = f"{glob.escape(_beginning(target))}.{'[0-9a-f]' * 16}.part"
    for part in target.parent.glob(pattern) if fcntl else ():
        with contextlib.suppress(OSError), open(part, "rb", opener=_not_following) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(part)


def _beginning(target: Path) -> str:
    """As much of the name as leaves room for an ending in any file system."""
    return target.name[:50]


def _not_following(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _keep_permissions(descriptor: int, old: os.stat_result) -> None:
    mode = old.st_mode & 0o777
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, owner, group)
    if os.fstat(descriptor).st_gid != old.st_gid:
        mode &= 0o707  # what one group might read is not for another
    os.fchmod(descriptor, mode)
