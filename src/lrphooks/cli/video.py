"""Frames from videos and cameras, and to videos and folders, by OpenCV."""

from __future__ import annotations

import importlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image

from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.results import save

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
            "Install the extra: pip install 'lrphooks[video]'"
        ) from error


@final
class Capture(AbstractContextManager["Capture"]):
    """An opened video or camera."""

    def __init__(self, cv2: Any, source: str) -> None:
        self._cv2 = cv2
        camera = source.isdecimal() and not Path(source).exists()
        if not camera and not Path(source).is_file():
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
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        save(frame, self._folder / f"frame-{self._count:06d}.png")


@final
class Video(Sink):
    """A video file, which takes its name when it is whole."""

    def __init__(self, cv2: Any, path: Path) -> None:
        self._cv2, self._path = cv2, path
        self._writer: Any = None
        self._part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")

    def write(self, frame: Image.Image, rate: float) -> None:
        if self._writer is None:
            codec = self._cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
            self._writer = self._cv2.VideoWriter(str(self._part), codec, rate, frame.size)
            if not self._writer.isOpened():
                raise CommandError(f"{self._path} could not be written: choose another place with --output.")
        self._writer.write(self._cv2.cvtColor(np.asarray(frame), self._cv2.COLOR_RGB2BGR))

    def __exit__(self, *_: object) -> None:
        if self._writer is not None and self._writer.isOpened():
            self._writer.release()
            self._part.replace(self._path)


def sink_for(cv2: Any, output: Path | None) -> Sink:
    """Return what writes to a video or a folder, or nowhere."""
    if output is None:
        return Nowhere()
    if output.is_dir() or not output.suffix:
        return Folder(output)
    if output.suffix.lower() not in CODECS:
        raise UsageError(f"--output {output} must end in {' or '.join(CODECS)}, or be a folder")
    return Video(cv2, output)
