"""Memory: how much is free, and an error in place of a program that the system kills."""

from __future__ import annotations

import re
from pathlib import Path

from lrphooks.cli.command import CommandError

_GROUPS = Path("/sys/fs/cgroup")
#: What torch, for whichever device, and its libraries say where an allocation fails.
_FAILED = ("out of memory", "can't allocate memory", "could not create a memory object", "bad_alloc")
#: The bytes that one pixel of an input takes at the least, whatever the network: in three channels the picture, the
#: input, its gradient, and its relevance, which is added up in float64.
PER_PIXEL = 3 + 3 * (4 + 4 + 4 + 8)


def available() -> int | None:
    """Return how many bytes can still be had, or None where the system does not say."""
    try:
        fields = _numbers(Path("/proc/meminfo").read_text(encoding="ascii"))
        free = 1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0))
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_groups()])


def limit() -> None:
    """Let an allocation that memory has no room for raise an error, which ends one picture.

    Without it, Linux grants what is not there, and kills the program when that is used.
    """
    try:
        import resource  # noqa: PLC0415  not on Windows

        free = available()
        if free is None:
            return
        held = 1024 * _numbers(Path("/proc/self/status").read_text(encoding="utf-8"))["VmData"]
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = [each for each in (held + free, soft, hard) if each != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(most), hard))
    except (ImportError, OSError, KeyError, ValueError):
        return


def is_used_up(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _FAILED)


def told(text: str) -> str:
    """Return the sentence of such an error that says what was wanted."""
    return next((each for each in text.split(". ") if any(words in each for words in _FAILED)), text)


def check(count: int, what: str, way_out: str) -> None:
    """Refuse what cannot fit: it takes so many bytes at the least.

    Raises
    ------
    CommandError
        If there is less memory.
    """
    free = available()
    if free is not None and count > free:
        raise CommandError(f"{what} takes at least {_size(count)} of memory, and {_size(free)} is free: {way_out}.")


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def _groups() -> list[int]:
    """Return what is left to the control groups of this process, such as a container's."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        names = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        place = root / path.strip("/")
        for group in (place, *place.parents):
            if group.is_relative_to(root):
                found += _left(group, *names)
    return found


def _left(group: Path, most: str, used: str) -> list[int]:
    try:
        limit_, current = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in (most, used))
        # What was read from files is given back when it is needed.
        cached = _numbers((group / "memory.stat").read_text(encoding="ascii"))
    # No such group here, or no limit ("max").
    except (OSError, ValueError):
        return []
    return [max(0, limit_ - current + cached.get("total_inactive_file", cached.get("inactive_file", 0)))]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\w+):?\s+(\d+)", text, re.MULTILINE)}
