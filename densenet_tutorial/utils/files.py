"""Atomic writes: an interruption, at whatever moment, leaves the old file."""

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
except ImportError:  # Windows has no such locks, and does not remove open files
    fcntl = None  # type: ignore[assignment]


def write(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically (see :func:`atomic_write`).

    Raises:
        OSError: the disk is full, or `path` is not a regular file; the message names `path`.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; not written", os.fspath(path)) from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a temporary file that is renamed to `path` when the block ends without an error.

    Until then it is called ``NAME.….part`` and lies beside `path`. After an error it is removed,
    and the old file is unchanged. The next write to `path` removes what killed processes left.

    Only regular files are replaced. If `path` is a symbolic link, the link stays, and its target is
    replaced or created. The new file gets the old one's permissions, owner and group; if the group
    cannot be kept, the group loses its permissions.

    Raises:
        OSError: `path` is a folder, a device or otherwise not a regular file, or is
            write-protected.
    """
    old = _existing_file(path)
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
            with contextlib.suppress(OSError):  # it writes what is left, on a disk that may be full
                file.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
            raise


def _existing_file(path: str | os.PathLike[str]) -> os.stat_result | None:
    """The status of the regular file at `path`, if there is one."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    if not os.access(path, os.W_OK):  # which a rename does not check
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return old


def _part(target: Path, private: bool) -> BinaryIO:
    """Create and lock a file beside `target`; the lock says that its process is alive.

    The name is unpredictable, and an existing file or link is never opened. With `private`, only
    its owner may read it.
    """
    mode = 0o600 if private else 0o666  # minus the umask
    while True:
        part = target.with_name(f"{_beginning(target)}.{secrets.token_hex(8)}.part")
        file = open(part, "xb", opener=lambda p, flags: os.open(p, flags, mode))  # noqa: SIM115
        if fcntl:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(part):  # another process may have removed it before the lock
            return file
        file.close()


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of `target` without a lock: their processes are gone."""
    pattern = f"{glob.escape(_beginning(target))}.{'[0-9a-f]' * 16}.part"
    for part in target.parent.glob(pattern) if fcntl else ():
        with contextlib.suppress(OSError), open(part, "rb", opener=_not_following) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(part)


def _beginning(target: Path) -> str:
    """The start of the name, short enough for a suffix in any file system."""
    return target.name[:50]


def _not_following(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _keep_permissions(descriptor: int, old: os.stat_result) -> None:
    mode = old.st_mode & 0o777
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, owner, group)
    if os.fstat(descriptor).st_gid != old.st_gid:
        mode &= 0o707  # another group must not get the old group's permissions
    os.fchmod(descriptor, mode)
