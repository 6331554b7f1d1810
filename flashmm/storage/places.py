"""Where files are written before they get their name: a directory beside them, nobody else's.

A save that is killed leaves its directory behind. It is told apart from one at work by a lock,
which ends with the process that holds it; the next save into the same place removes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flashmm.exceptions import InputError

try:
    import fcntl
except ImportError:  # Windows: age has to do
    fcntl = None  # type: ignore[assignment]

__all__ = ["as_path", "resolved", "working_directory"]

_SUFFIX = ".flashmm"
_LOCK = "lock"
# Characters of a file's name in that of its directory; one takes up to four bytes.
_PART = 40
# Without a lock to ask, so old a directory is left over (seconds).
_OLD = 24 * 3600.0
_JUST_MADE = 3600.0


def as_path(path: object) -> Path:
    """What a user passes as the name of a file, as a path.

    Raises
    ------
    InputError
        If it is no name of a file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"`path` must be the name of a file, not {type(path).__name__}.")
    name = os.fspath(path)
    if not isinstance(name, str) or "\0" in name:
        raise InputError(f"`path` must be the name of a file, not {name!r}.")
    return Path(name)


def resolved(path: Path) -> Path:
    """The file that a path stands for: the target of a link, which may not exist yet."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{str(path)!r} is a link that leads back to itself.")
    return target


@contextmanager
def working_directory(target: Path) -> Iterator[Path]:
    """A new directory beside a file, gone afterwards; those left by killed saves go first."""
    _remove_left_overs(target.parent)
    directory, lock = _make(target)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock.close()


def _make(target: Path) -> tuple[Path, IO[bytes]]:
    # Of a long name a part: the directory's own may not be longer than the file system allows.
    prefix = f".{target.name[:_PART]}."
    for _ in range(100):
        try:
            made = tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=target.parent)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: nothing can be written in the directory of",
                str(target),
            ) from error
        directory = Path(made)
        try:
            lock = (directory / _LOCK).open("wb")
        except FileNotFoundError:  # another save took it for left over
            continue
        if _locked(lock):
            return directory, lock
        lock.close()
    raise OSError(f"No directory could be made beside {str(target)!r}.")


def _locked(lock: IO[bytes]) -> bool:
    """Whether the lock is ours now; always where there are none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left_overs(parent: Path) -> None:
    """Remove what killed saves have left in a directory; what cannot be removed stays."""
    for directory in parent.glob(f".*{_SUFFIX}"):
        if directory.is_symlink() or not directory.is_dir():
            continue
        try:
            age = time.time() - directory.stat().st_mtime
            if fcntl is None or not (directory / _LOCK).exists():
                if age > (_OLD if fcntl is None else _JUST_MADE):
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            with (directory / _LOCK).open("rb") as lock:
                if _locked(lock):
                    shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            continue
