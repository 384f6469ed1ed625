"""Files: read only where they are ordinary ones, written as a whole or not at all."""

from __future__ import annotations

import importlib
import os
import re
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lrphooks.cli.command import CommandError

try:
    _fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # on Windows
    _fcntl = None

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
#: What files are called while they are written: .NAME.png.0123abcd.part, and .NAME.0123abcd.part.mp4 of a video.
_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part(?P<suffix>\.\w+)?", re.DOTALL)
_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
#: Windows would change ends of lines.
_BINARY = getattr(os, "O_BINARY", 0)
#: The folders in which nothing of earlier runs is left.
_tidied: set[str] = set()


def begin() -> None:
    """Forget what earlier runs of this process found."""
    _tidied.clear()


def kind_of(path: Path) -> str | None:
    """Return what is at a path where that is no ordinary file, such as ``a pipe``; None for a file, and for nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def opened(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for another program that would have to write it.

    Raises
    ------
    OSError
        If it cannot be opened, or is no ordinary file.
    """
    flags = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"it is {kind_of(path) or 'no file'}")
    return file


def write(path: Path, content: bytes, what: str, option: str) -> None:
    """Write a file as a whole or not at all.

    Raises
    ------
    CommandError
        If it cannot be written; the message names ``what`` it is and the ``option`` that gives another place.
    """
    kind = kind_of(path)
    reason = f"there is {kind} of that name" if kind else None
    if reason is None:
        try:
            part, file = claim(path.with_name(_part_name(path.name, "")))
            try:
                file.write(content)
                file.flush()
                if _fcntl is None:
                    file.close()  # Windows renames no open file
                # Elsewhere it is closed, and so unlocked, under its last name.
                part.replace(path)
            finally:
                with suppress(OSError):
                    file.close()
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
    if reason is not None:
        raise CommandError(f"{what} could not be written: {path}: {reason}. Choose another place with {option}.")


def _part_name(name: str, suffix: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.part{suffix}"


def part_of_video(path: Path) -> Path:
    """Return what a video is called while it is written; its suffix tells the format."""
    return path.with_name(_part_name(path.stem, path.suffix))


def claim(part: Path) -> tuple[Path, BinaryIO]:
    """Make a file that is to be renamed when it is whole, locked while it is open, so that no other run removes it.

    What runs left that were killed is removed first.
    """
    tidy(part.parent)
    found = _PART.fullmatch(part.name)
    assert found is not None
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | getattr(os, "O_CLOEXEC", 0)
        file = os.fdopen(os.open(part, flags, 0o666), "w+b")
        # Another run may have seen the file before it was locked, and removes it then.
        if _fcntl is None or (_locked(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink):
            return part, file
        file.close()
        part = part.with_name(_part_name(found["name"], found["suffix"] or ""))


def tidy(folder: Path) -> None:
    """Remove what runs of this user left in a folder that were killed; those that still write hold a lock."""
    place = os.path.realpath(folder)
    if _fcntl is None or place in _tidied:
        return
    _tidied.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _is_part(entry.name):
                with suppress(OSError):
                    _remove(entry)


def _is_part(name: str) -> bool:
    found = _PART.fullmatch(name)
    if found is None:
        return False
    named = f"x{found['suffix']}" if found["suffix"] else found["name"]
    return named.lower().endswith((".mp4", ".avi") if found["suffix"] else _SUFFIXES)


def _remove(entry: os.DirEntry[str]) -> None:
    if not entry.is_file(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
        return
    number = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # Where locks are unknown, nobody knows whether it is being written.
        if _locked(number):
            os.unlink(entry.path)  # noqa: PTH108
    finally:
        os.close(number)


def _locked(number: int) -> bool | None:
    """Lock an open file until it is closed; False if another holds the lock, None if there are no locks there."""
    try:
        _fcntl.flock(number, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
