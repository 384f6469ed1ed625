"""Which pictures are asked for, and which file each result goes to."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lrphooks.cli import files
from lrphooks.cli.command import CommandError, UsageError

#: What results of explain and of compare are called: the name of the picture, and this.
ENDING, COMPARISON = ENDINGS = ("-relevance.png", "-comparison.png")
#: The files of a folder that are taken for pictures.
SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".mpo", ".ico", ".pcx", ".tga", ".pbm", ".pgm", ".pnm", ".ppm"),
    )
)
_PNG = ".png"


@final
@dataclass(frozen=True)
class Item:
    """A picture to explain; ``place`` is its path within the folder that was given, or its name."""

    path: Path
    place: Path


@final
@dataclass(frozen=True)
class Found:
    """The pictures that were asked for, each once.

    many: whether a batch was asked for. left_out: how many other files are in the folders.
    """

    items: tuple[Item, ...]
    many: bool
    left_out: int


def find(arguments: Sequence[str]) -> Found:
    """Return the pictures that paths, folders (with all that is in them) and patterns stand for.

    A path that leads nowhere stays in, so that it fails by itself.

    Raises
    ------
    CommandError
        If a folder or a pattern has no picture.
    """
    items: list[Item] = []
    left_out = 0
    many = len(arguments) > 1
    for argument in arguments:
        path = Path(argument)
        folder = files.kind_of(path) == "a folder"
        if folder:
            found, others = _in_folder(path)
            left_out += others
            many = True
        elif not os.path.lexists(path) and glob.has_magic(argument):
            # Unlike Path.glob, it takes patterns of absolute paths.
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
            found = [Item(match, Path(match.name)) for match in matches if _wanted(match)]
            many = True
        else:
            found = [Item(path, Path(path.name))]
        if not found:
            kind = "folder" if folder else "pattern"
            raise CommandError(
                f"the {kind} {argument} has no picture: PNG, JPEG, WebP, TIFF and others are told by their endings, "
                f"and {' and '.join(f'*{ending}' for ending in ENDINGS)} are left out."
            )
        items += found
    unique = {os.path.realpath(item.path): item for item in items}
    return Found(tuple(unique.values()), many, left_out)


def _in_folder(folder: Path) -> tuple[list[Item], int]:
    found: list[Item] = []
    left_out = 0

    def unread(error: OSError) -> None:
        # It stays in, so that it fails by itself.
        path = Path(error.filename)
        found.append(Item(path, path.relative_to(folder)))

    for root, folders, names in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if _wanted(path):
                found.append(Item(path, path.relative_to(folder)))
            else:
                left_out += 1
    return found, left_out


def _wanted(path: Path) -> bool:
    name = path.name.lower()
    return path.suffix.lower() in SUFFIXES and not name.startswith(".") and not name.endswith(ENDINGS)


def output_file(output: Path | None) -> Path | None:
    """Return the output where it is the name of a file, or None where it is a folder or not given.

    Raises
    ------
    UsageError
        If it is the name of a picture of another kind.
    """
    kind = None if output is None else files.kind_of(output)
    if output is None or kind == "a folder":
        return None
    if kind is not None:
        raise UsageError(f"--output {output} is {kind}, neither a folder nor a PNG: choose another name.")
    suffix = output.suffix.lower()
    if suffix != _PNG and suffix in SUFFIXES:
        raise UsageError(f"the heatmap is a PNG: --output {output} must end in {_PNG}, or be a folder")
    return output if suffix == _PNG else None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that can neither be there nor be made.

    Raises
    ------
    CommandError
        If it is below a file, or its name is too long.
    """
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        there = next((each for each in folder.parents if os.path.lexists(each)), None)
        if there is not None and not there.is_dir():
            raise CommandError(f"--output {folder} cannot be a folder: {there} is no folder.") from None
    except OSError as error:
        raise CommandError(f"--output {folder} cannot be a folder: {error.strerror}. Choose another.") from error
    else:
        if not folder.is_dir():
            raise CommandError(f"--output {folder} is a file, neither a folder nor a name that ends in {_PNG}.")


def outputs(found: Found, output: Path | None) -> list[Path]:
    """Return the file for the result of each picture, all different.

    Raises
    ------
    UsageError
        If several pictures have one file to go to, or a result would overwrite a picture.
    """
    named = output_file(output)
    if output is not None and named is None:
        _check_folder(output)
    if named is not None and found.many:
        raise UsageError(f"several pictures need a folder: --output {named} is the name of one file.")
    chosen = [named] if named is not None else _places(found.items, output)
    pictures = {os.path.realpath(item.path) for item in found.items}
    for path in chosen:
        if os.path.realpath(path) in pictures:
            raise UsageError(f"--output {path} would overwrite the picture itself: choose another name.")
    return chosen


def one_output(picture: Path, output: Path | None, ending: str, *, packaged: bool) -> Path:
    """Return the file for what is made of one picture; of the packaged one it goes to the current directory.

    Raises
    ------
    UsageError
        As :func:`outputs`.
    """
    name = f"{picture.stem}{ending}"
    folder = Path() if packaged else picture.parent
    chosen = output_file(output) or (folder if output is None else output) / name
    if os.path.realpath(chosen) == os.path.realpath(picture):
        raise UsageError(f"--output {chosen} would overwrite the picture itself: choose another name.")
    return chosen


def _places(items: Sequence[Item], folder: Path | None) -> list[Path]:
    """Return where results go: beside the pictures, or as the pictures lie, in a folder."""

    def short(item: Item) -> Path:
        beside = item.path if folder is None else folder / item.place
        return beside.with_name(f"{item.place.stem}{ENDING}")

    def long(item: Item) -> Path:
        path = short(item)
        return path.with_name(f"{item.place.name}{ENDING}")

    places = [short(item) for item in items]
    for index in _doubled(places):
        places[index] = long(items[index])
    doubled = _doubled(places)
    if doubled and folder is not None:
        # Pictures of one name from several folders are told apart by the folders below the one they share.
        real = [items[index].path.absolute() for index in doubled]
        shared = Path(os.path.commonpath([path.parent for path in real]))
        for index, path in zip(doubled, real, strict=True):
            places[index] = folder / path.relative_to(shared).with_name(f"{path.name}{ENDING}")
    return places


def _doubled(places: Sequence[Path]) -> list[int]:
    """Return the indices of the paths that others share; letter case does not tell files apart everywhere."""
    same: defaultdict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(places):
        same[str(path).casefold()].append(index)
    return [index for indices in same.values() if len(indices) > 1 for index in indices]
