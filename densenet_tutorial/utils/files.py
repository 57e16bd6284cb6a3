"""Writing files so that an interruption, at whatever moment, leaves the old one."""

import os
from pathlib import Path


def write(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, whole or not at all.

    It goes to ``NAME.part`` beside it, then to the disk, and only then takes the name. If that fails, the old
    file is still there and the part is removed; a part that a killed process left is written over next time.

    Raises:
        OSError: the disk is full, say; the message names `path`.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; not written", str(path)) from error
        raise
