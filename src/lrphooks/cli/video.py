"""Frames from videos and cameras, and to videos and folders, by OpenCV."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from PIL import Image

from lrphooks.cli import files
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.results import make_folder, save
from lrphooks.extras import install

#: The codec for each container that can be written.
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
#: The frames a second of what does not say it of itself.
_RATE = 25.0


def opencv() -> Any:
    """Import OpenCV, or name the extra."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise CommandError(
            f"lrphooks stream needs the Python package opencv-python-headless, which could not be imported ({error}). "
            f"Install it: {install('video')}."
        ) from error


@final
class Capture(AbstractContextManager["Capture"]):
    """An opened video or camera."""

    def __init__(self, cv2: Any, source: str) -> None:
        self._cv2 = cv2
        there = os.path.exists(source)  # noqa: PTH110  it never raises
        camera = source.isdecimal() and not there
        kind = files.kind_of(Path(source))
        if kind is not None:
            raise CommandError(f"{source} is {kind}, not a video file.")
        if not camera and not there:
            raise CommandError(f"there is no video {source}: check the path, or give the number of a camera.")
        # It would say on standard error, in words of its own, what the exception tells.
        cv2.utils.logging.setLogLevel(0)
        self._capture = cv2.VideoCapture(int(source) if camera else source)
        if not self._capture.isOpened():
            what = f"camera {source} could not be opened" if camera else f"{source} could not be opened as a video"
            raise CommandError(f"{what}: is it whole, of a format that OpenCV reads, and free?")

    @property
    def rate(self) -> float:
        """How many frames a second it has, by its own account."""
        rate = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return rate if 1.0 <= rate <= 240.0 else _RATE

    def frames(self, most: int | None) -> Iterator[Image.Image]:
        """Yield the frames, at most so many."""
        count = 0
        while most is None or count < most:
            read, frame = self._capture.read()
            if not read:
                return
            count += 1
            yield Image.fromarray(self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))

    def __exit__(self, *_: object) -> None:
        self._capture.release()


class Sink(AbstractContextManager["Sink"], ABC):
    """Where drawn frames go."""

    @abstractmethod
    def write(self, frame: Image.Image, rate: float) -> None:
        """Take the next frame, of a video with so many a second."""

    def __exit__(self, *_: object) -> None:
        """Finish what was written."""


@final
class Nowhere(Sink):
    """Forgets the frames."""

    def write(self, frame: Image.Image, rate: float) -> None:
        pass


@final
class Folder(Sink):
    """A PNG for each frame."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def write(self, frame: Image.Image, rate: float) -> None:
        make_folder(self._folder)
        self._count += 1
        save(frame, self._folder / f"frame-{self._count:06d}.png")


@final
class Video(Sink):
    """A video file, which takes its name when it is whole."""

    def __init__(self, cv2: Any, path: Path) -> None:
        self._cv2, self._path = cv2, path
        self._writer: Any = None
        self._part: Path | None = None
        self._lock: BinaryIO | None = None

    def write(self, frame: Image.Image, rate: float) -> None:
        if self._writer is None:
            codec = self._cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
            try:
                # The lock says that this run is alive; OpenCV opens the file once more.
                self._part, self._lock = files.claim(files.part_of_video(self._path))
            except OSError as error:
                raise self._unwritten(error.strerror) from error
            self._writer = self._cv2.VideoWriter(str(self._part), codec, rate, frame.size)
            if not self._writer.isOpened():
                raise self._unwritten("OpenCV cannot write such a video here")
        self._writer.write(self._cv2.cvtColor(np.asarray(frame), self._cv2.COLOR_RGB2BGR))

    def __exit__(self, *_: object) -> None:
        if self._part is None or self._lock is None:
            return
        try:
            if self._writer is not None and self._writer.isOpened():
                self._writer.release()
                self._part.replace(self._path)
        except OSError as error:
            raise self._unwritten(error.strerror) from error
        finally:
            self._lock.close()
            self._part.unlink(missing_ok=True)

    def _unwritten(self, reason: str | None) -> CommandError:
        return CommandError(f"{self._path} could not be written: {reason}. Choose another place with --output.")


def sink_for(cv2: Any, output: Path | None) -> Sink:
    """Return what writes to a video or a folder, or nowhere."""
    if output is None:
        return Nowhere()
    kind = files.kind_of(output)
    if kind == "a folder" or (kind is None and not output.suffix):
        return Folder(output)
    if kind is not None:
        raise UsageError(f"--output {output} is {kind}, not a video or a folder: choose another name.")
    if output.suffix.lower() not in CODECS:
        raise UsageError(f"--output {output} must end in {' or '.join(CODECS)}, or be a folder")
    return Video(cv2, output)
