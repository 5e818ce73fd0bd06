"""Checks files and folders that the user names, and says in one sentence why one cannot be used."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

HALF = ".part"
"""Suffix of files that are being written."""

_MOUNTS = Path("/proc/mounts")
_OVER_A_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "gluster", "beegfs", "afs")
"""Prefixes of file system types (proc(5)). A network volume of Runpod is a `fuse` one."""

PATH_ERRORS = (OSError, ValueError, RuntimeError)
"""Errors of a path that cannot be used: refused by the system, a forbidden character, an unknown
home folder, or links in a circle."""


class PathRefused(Exception):
    """A path that cannot be used. The text has the path and the reason."""


def why(error: Exception) -> str:
    """The reason, in the words of the system."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def shown(path: object) -> str:
    """A path for messages: short, on one line."""
    text = str(path)
    text = text if len(text) < 200 else text[:60] + "..."
    return text if text.isprintable() else ascii(text)


@contextmanager
def refusing(path: object) -> Iterator[None]:
    """Turn errors with `path` inside the block into `PathRefused`."""
    try:
        yield
    except PATH_ERRORS as error:
        raise PathRefused(f"{shown(path)} cannot be used ({why(error)})") from error


def sentence(error: Exception) -> str:
    """The system's error as a sentence, with the path that it names."""
    path = getattr(error, "filename", None)
    return f"{shown(path)} cannot be used ({why(error)})" if path else why(error)


def to_read(text: str, *, pipes: bool = False) -> Path:
    """The file that `text` names. Raises `PathRefused` if it cannot be read, or not be read twice.
    `pipes` allows files that can be read only once."""
    with refusing(text):
        path = Path(text).expanduser()
        try:
            kind = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise PathRefused(f"there is no file {shown(text)}") from None
        if stat.S_ISDIR(kind):
            raise PathRefused(f"{shown(text)} is a folder, not a file")
        if not stat.S_ISREG(kind):
            if pipes:
                return path
            raise PathRefused(f"{shown(text)} is a device or pipe, not a file")
        try:
            path.open("rb").close()
        except OSError as error:
            raise PathRefused(f"{shown(text)} cannot be read ({why(error)})") from error
    return path


def to_write(text: str) -> Path:
    """The absolute path of the file that `text` names. Raises `PathRefused` if no file can be
    written in its folder."""
    with refusing(text):
        path = Path(text).expanduser().resolve()
        parent = path.parent
        if not parent.is_dir():
            raise PathRefused(f"the folder {shown(parent)} does not exist")
        if path.is_dir():
            raise PathRefused(f"{shown(path)} is a folder, not a file")
        if path.exists() and not path.is_file():
            raise PathRefused(f"{shown(path)} is a device or pipe, not a file")
        try_folder(parent)
    return path


def try_folder(folder: Path) -> None:
    """Create a file in `folder`, which must exist, and remove it. Raises `PathRefused`."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise PathRefused(
            f"the folder {shown(folder)} cannot be written to ({why(error)})"
        ) from error


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """Like `beside`, for a file that the user named. Raises `PathRefused`."""
    try:
        with beside(target) as half:
            yield half
    except OSError as error:
        raise PathRefused(f"{shown(target)} cannot be written ({why(error)})") from error


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path next to `target` to write to. It is renamed to `target` at the end or removed, so
    readers of `target` see a complete file or none. Raises `OSError`."""
    half = target.with_name(f".{uuid4().hex}{HALF}")
    try:
        yield half
        half.replace(target)
    except BaseException:
        with suppress(OSError):  # report the first error
            half.unlink(missing_ok=True)
        raise


def over_a_network(folder: Path) -> bool:
    """Whether `folder` is on a network file system. There, memory mapping fetches a file in small
    pieces, and locks may hold on this machine only."""
    path, longest, kind = os.path.realpath(folder), 0, ""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:  # not Linux
        return False
    for _, point, found, *_ in (line.split() for line in lines):
        point = point.replace("\\040", " ")  # the kernel escapes a space
        if Path(path).is_relative_to(point) and len(point) >= longest:
            longest, kind = len(point), found
    return kind.startswith(_OVER_A_NETWORK)
