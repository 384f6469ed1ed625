"""Reads picture files of all sorts as what they show, or says why it cannot."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lrphooks.cli import files, memory
from lrphooks.cli.command import CommandError
from lrphooks.digits.data import on_white
from lrphooks.models import PictureModel

#: More pixels than this are taken for an accident or an attack: it is what Pillow refuses by itself.
MOST_PIXELS = 178_956_970


#: What is read: formats that Pillow decodes by itself. It would give EPS to Ghostscript, which runs it as a program,
#: and others (IPTC, FPX) to whatever reads what is packed in them.
_FORMATS = (
    *("AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO"),
    *("MSP", "PCD", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
#: How PostScript begins, by itself and in a frame with a preview.
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")


@final
@dataclass(frozen=True)
class Picture:
    """A picture as it looks: upright, in 8 bits a channel, grey (mode L) or coloured (RGB), on white.

    notes: what was done to it, and what was left out.
    """

    image: Image.Image
    notes: tuple[str, ...]


def read(path: Path) -> Picture:
    """Read a picture file.

    Raises
    ------
    CommandError
        If it is not there, no picture, broken, too large, or of a form whose black and white are not known.
    """
    check(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of half of what is too much here, and of faults that do not change what is seen.
            warnings.simplefilter("ignore")
            with files.opened(path) as file, Image.open(file, formats=_formats()) as opened:
                return _upright(opened, path)
    except Image.DecompressionBombError as error:
        raise CommandError(
            f"{path} has more than {MOST_PIXELS // 1_000_000} million pixels, which would fill the memory: {error} "
            "Make it smaller first."
        ) from error
    except MemoryError as error:
        raise CommandError(f"{path} does not fit into the memory: make it smaller first.") from error
    except CommandError:
        raise
    # Pillow reports broken files with whatever the reader of the format stumbles over.
    except Exception as error:
        raise CommandError(
            f"{path} could not be read as a picture: {_reason(error, path)}. Give a PNG, a JPEG or another "
            "format that Pillow reads, and check that the file is whole."
        ) from error


def check(path: Path) -> None:
    """Refuse what is no file.

    Raises
    ------
    CommandError
        If it is not there, or anything else, such as a pipe that would be waited for.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise CommandError(f"{path} is a link to a file that is not there: {_goal(path)}.") from None
        raise CommandError(f"there is no picture file {path}: check the path.") from None
    except OSError as error:
        raise CommandError(f"{path} could not be read as a picture: {_reason(error, path)}.") from error
    kind = files.kind_of(path)
    if kind is not None:
        raise CommandError(f"{path} is {kind}, not a picture.{_unread(path)}")


def _goal(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError as error:
        return error.strerror or str(error)


def _unread(path: Path) -> str:
    """Return why a folder could not be looked through, if it could not."""
    try:
        os.listdir(path)  # noqa: PTH208  the folder may be large
    except NotADirectoryError:
        return ""
    except OSError as error:
        return f" It could not be looked through: {_reason(error, path)}."
    return ""


def prepared(model: PictureModel, read: Picture, path: Path) -> Tensor:
    """Return a picture as the input of a model, shape (1, C, H, W).

    Raises
    ------
    CommandError
        If the model cannot read such a picture.
    """
    try:
        return model.prepare(read.image)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    except MemoryError as error:
        raise CommandError(
            f"{path} does not fit into the memory as an input of {model.name}: give a smaller --size."
        ) from error


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        start = _start(path)
        if not start:
            return "the file is empty"
        if start.startswith(_POSTSCRIPT):
            return "what is in it is PostScript, a program, which is not run"
        return "what is in it is no picture that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).replace(str(path), "the file").rstrip(".")


def _start(path: Path) -> bytes:
    try:
        with files.opened(path) as file:
            return file.read(8)
    except OSError:
        return b""


def _upright(opened: Image.Image, path: Path) -> Picture:
    if opened.width * opened.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"it is {opened.width} x {opened.height}.")
    # Pillow keeps colours in four bytes; and they are copied once at the least.
    each = 1 if len(opened.getbands()) == 1 else 4
    memory.check(2 * each * opened.width * opened.height, str(path), "make it smaller first")
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    opened.load()
    image = opened
    try:
        turned = opened.getexif().get(0x0112, 1) not in (0, 1)
        # Cameras store a turned photograph with a note of how to hold it.
        image = ImageOps.exif_transpose(opened)
        if turned:
            notes.append("turned upright")
    # Notes of cameras and editors are broken in as many ways as files are.
    except Exception:  # noqa: BLE001
        notes.append("its EXIF notes are broken and were left out")
    image, deep = _shallow(image, opened.format, path)
    if deep:
        notes.append(deep)
    if image.has_transparency_data:
        notes.append("transparent parts on white")
        image = on_white(image)
    if image.mode not in ("L", "RGB"):
        notes += {"CMYK": ["CMYK as RGB, without its colour profile"], "LAB": ["Lab as RGB"]}.get(image.mode, [])
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Picture(image, tuple(notes))


def _shallow(image: Image.Image, kind: str | None, path: Path) -> tuple[Image.Image, str]:
    """Return a picture of more than 8 bits a pixel with 8, and what was done."""
    if not image.mode.startswith(("I", "F")):
        return image, ""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= 1.0):
            raise CommandError(
                f"{path} has fractions from {low:g} to {high:g} as pixels, so what is black and white is not known. "
                "Save it with values from 0 to 1, or with 8 bits."
            )
        return Image.fromarray((values * 255).round().astype(np.uint8)), "fractions from 0 to 1 as 8 bits"
    values = values.astype(np.int64)
    # These formats have no integers of more than 16 bits, whatever mode they are opened with.
    if image.mode == "I" and kind not in ("PNG", "PPM"):
        raise CommandError(
            f"{path} has 32 bits a pixel, from {values.min()} to {values.max()}, so what is black and white is not "
            "known. Save it with 8 or 16 bits."
        )
    return Image.fromarray((values / 257).round().clip(0, 255).astype(np.uint8)), "16 bits a pixel as 8"
