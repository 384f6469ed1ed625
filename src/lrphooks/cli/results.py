"""Results as files: each PNG carries what it was made from and what was found, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.nn.parameter import is_lazy

from lrphooks.cli import files
from lrphooks.cli.command import CommandError
from lrphooks.models import PictureModel

#: The text within the PNG that holds the result.
CHUNK = "lrphooks"
#: To be raised when the drawing or the record changes, so that older results are made again.
LAYOUT = 2
_WHAT = "the heatmap"


@final
@dataclass(frozen=True)
class Explained:
    """One explained class of one picture: its output f(x), the sum of the relevance, and what was absorbed.

    absorbed is None where the method gives no relevance, so that the two need not be related.
    """

    target: int
    name: str
    output: float
    relevance: float
    absorbed: float | None


@final
@dataclass(frozen=True)
class Record:
    """What became of one picture: explained, kept from an earlier run, or failed.

    prediction: how it prints. classes: the classes with the largest outputs. notes: what reading the picture took.
    """

    picture: str
    status: str
    written: str | None = None
    prediction: str | None = None
    classes: tuple[Mapping[str, Any], ...] = ()
    explained: tuple[Explained, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    model: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """Return the record of plain data."""
        explained = tuple(Explained(**each) for each in data["explained"])
        fields = {name: tuple(data[name]) for name in ("classes", "notes")}
        return Record(**{**data, **fields, "explained": explained})


@final
@dataclass(frozen=True)
class Store:
    """Writes results, and knows which are there already.

    settings: what all results have in common, such as the model and the composite. again: results that are there count
    for nothing, whatever made them. chosen: the user named the file, so that it may be overwritten. resumed: finished
    results are kept.
    """

    settings: Mapping[str, Any]
    again: bool
    chosen: bool
    resumed: bool

    def key(self, picture: Path, output: Path) -> dict[str, Any]:
        """Return all that a result depends on.

        Raises
        ------
        OSError
            If the picture is not there.
        """
        status = picture.stat()
        # Relative, so that a folder may be moved, and so that no path of the machine is in the file.
        place = _relative(picture, output.parent)
        return {**self.settings, "picture": place, "bytes": status.st_size, "modified": status.st_mtime_ns}

    def kept(self, picture: Path, output: Path, mine: Mapping[str, Any]) -> Record | None:
        """Return the record of a finished result with the same settings, or None; ``mine`` is its :meth:`key`.

        Raises
        ------
        CommandError
            If the file is there, but is not the result of this picture.
        """
        files.tidy(output.parent)
        if self.again or self.chosen or not os.path.lexists(output):
            return None
        found = _contents(output)
        if found is None:
            raise CommandError(
                f"{output} is there already, and is no result of lrphooks explain: choose another --output, or give "
                "--again to overwrite it."
            )
        if found["settings"] == mine and self.resumed:
            return replace(Record.from_dict(found["result"]), status="kept", picture=str(picture), written=str(output))
        if found["settings"].get("picture") != mine["picture"]:
            raise CommandError(
                f"{output} is the result of another picture, {found['settings'].get('picture')}: choose another "
                "--output, or give --again to overwrite it."
            )
        return None

    def save_arrays(
        self, output: Path, x: torch.Tensor, relevance: Sequence[torch.Tensor], targets: Sequence[int]
    ) -> None:
        """Write targets, relevance and input beside a result, as arrays of numpy (.npz).

        Raises
        ------
        CommandError
            If they cannot be written.
        """
        content = io.BytesIO()
        stacked = torch.stack([each.detach().cpu().float() for each in relevance]).numpy()
        given = x[0].detach().cpu().float().numpy()
        np.savez_compressed(content, targets=np.array(targets), relevance=stacked, input=given)
        if not self.chosen:
            make_folder(output.parent)
        files.write(output.with_suffix(".npz"), content.getvalue(), "the relevance", "--output")

    def write(self, drawing: Image.Image, record: Record, output: Path, key: Mapping[str, Any]) -> None:
        """Write a result as a whole or not at all; ``key`` is its :meth:`key`.

        Raises
        ------
        CommandError
            If it cannot be written.
        """
        text = PngImagePlugin.PngInfo()
        text.add_text(CHUNK, json.dumps({"settings": key, "result": record.to_dict()}))
        if not self.chosen:
            make_folder(output.parent)
        save(drawing, output, text)


def save(drawing: Image.Image, output: Path, text: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a drawing as a whole or not at all.

    Raises
    ------
    CommandError
        If it cannot be written.
    """
    # In memory first: a run that is killed leaves nothing behind then, but in the moment of the writing.
    content = io.BytesIO()
    try:
        drawing.save(content, format="PNG", pnginfo=text)
    except OSError as error:
        raise _unwritten(output, error) from error
    files.write(output, content.getvalue(), _WHAT, "--output")


def make_folder(folder: Path) -> None:
    """Make a folder for results, where it is not there.

    Raises
    ------
    CommandError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(folder, error) from error


def _unwritten(place: Path, error: OSError) -> CommandError:
    reason = "there is no folder, but a file of that name" if isinstance(error, FileExistsError) else error.strerror
    return CommandError(
        f"{_WHAT} could not be written: {place}: {reason or error}. Choose another place with --output."
    )


def _relative(picture: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(os.path.realpath(picture), os.path.realpath(folder))).as_posix()
    except ValueError:  # on another drive
        return picture.name


def _contents(output: Path) -> dict[str, Any] | None:
    """Return what a result carries, or None if the file is no result."""
    try:
        with warnings.catch_warnings():
            # Nothing is drawn from it: it does not matter how large it is.
            warnings.simplefilter("ignore")
            with files.opened(output) as file, Image.open(file, formats=("PNG",)) as image:
                contents: dict[str, Any] = json.loads(image.info[CHUNK])
        Record.from_dict(contents["result"])
        contents["settings"]["picture"]
    # A file of any kind may have the name of a result.
    except Exception:  # noqa: BLE001
        return None
    return contents


def fingerprint(model: PictureModel) -> str:
    """Return a digest of a model's structure and weights."""
    digest = hashlib.blake2b(repr(model.network).encode(), digest_size=16)
    for name, value in model.network.state_dict().items():
        digest.update(name.encode())
        # Lazy modules have no weights before they run.
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            digest.update(_bytes(value.detach().cpu()))
    return digest.hexdigest()


def _bytes(value: torch.Tensor) -> memoryview:
    if value.layout is torch.strided and not value.is_quantized and not value.is_nested:
        return value.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data
    # Sparse and quantised tensors are more than one array.
    stored = io.BytesIO()
    torch.save(value, stored)
    return stored.getbuffer()
