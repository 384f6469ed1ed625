"""``lrphooks evaluate``: how faithful composites are on pictures of one's own."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from lrphooks import __version__
from lrphooks.cli import arguments, files, inputs, pictures, reporting
from lrphooks.cli.command import FAILURE, SUCCESS, CommandError, UsageError
from lrphooks.cli.explaining import reason
from lrphooks.cli.methods import Method
from lrphooks.cli.output import emit, error_line
from lrphooks.cli.predictions import predict, targets_of
from lrphooks.cli.progress import progress
from lrphooks.cli.results import fingerprint
from lrphooks.engine.errors import UnmatchedError
from lrphooks.evaluation import Blur, Metric, Result, SymmetricRelevanceGain, difference
from lrphooks.extras import install
from lrphooks.models import PictureModel

BATCH = 16
#: How each line of the results begins.
_BEGINNING = '{"key": '


class UnkeptError(CommandError):
    """A result could not be kept, and the next could not either."""


@final
@dataclass(frozen=True)
class Kept:
    """Results in a file, each found again by all that it depends on."""

    path: Path
    rows: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, path: Path) -> Kept:
        """Return what is in the file, if there is one; a line that a killed run did not finish counts for nothing."""
        rows: dict[str, dict[str, Any]] = {}
        try:
            lines = []
            if os.path.lexists(path):
                with files.opened(path) as file:
                    lines = file.read().decode("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise cls._foreign(path, str(error)) from error
        broken = [line for line in lines if not cls._read(line, rows)]
        if broken and not rows and broken[0][: len(_BEGINNING)] != _BEGINNING[: len(broken[0])]:
            raise cls._foreign(path, f"it begins with {broken[0][:40]}")
        return cls(path, rows)

    @staticmethod
    def _foreign(path: Path, why: str) -> CommandError:
        return CommandError(
            f"{path} is there, but holds no results of lrphooks evaluate ({why}): choose another --results."
        )

    @staticmethod
    def _read(line: str, rows: dict[str, dict[str, Any]]) -> bool:
        try:
            row = json.loads(line)
        except ValueError:
            return False
        whole = isinstance(row, dict) and row.keys() >= {"key", "value", "curve", "at"}
        if whole:
            rows[row["key"]] = row
        return whole

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more result."""
        self.rows[row["key"]] = row
        try:
            with self.path.open("ab+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                unfinished = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * unfinished + json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise UnkeptError(f"the result could not be kept: {error}. Choose another place with --results.") from error


def run(options: argparse.Namespace) -> int:
    """Measure how faithful composites are."""
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"--plot needs matplotlib. Install it: {install('plot')}.")
    found = inputs.find(options.pictures)
    kept = Kept.of(options.results)
    arguments.choose_model(options, [item.path for item in found.items])
    model = arguments.model_of(options)
    methods = arguments.composites_of(options)
    judged: dict[str, list[dict[str, Any]]] = {each.text: [] for each in methods}
    if model.rows not in (None, 1):
        raise CommandError(
            f"{model.name} takes {model.rows} pictures at once and no other number, and lrphooks evaluate takes as "
            "many as it needs: export it for one, or with a dynamic batch."
        )
    metric: Metric | None = None
    failed = 0
    digest = fingerprint(model)
    with progress(len(found.items)) as display:
        for item in found.items:
            try:
                x, target = _read(item.path, model, options)
                metric = _metric(x, options, model.rows or BATCH)
                rows = list(_rows(item.path, x, target, model, digest, methods, metric, kept))
                for each, row in zip(methods, rows, strict=True):
                    judged[each.text].append(row)
            except (UsageError, UnkeptError):
                raise
            # Files come and go, and a person's own network fails in any way.
            except Exception as error:  # noqa: BLE001
                failed += 1
                told = str(error) if isinstance(error, CommandError) else f"{item.path}: {reason(error)}"
                display.print(error_line(told), error=True)
            display.advance()
    if metric is None or failed == len(found.items):
        return FAILURE
    results = {text: _result(metric, rows) for text, rows in judged.items()}
    _print(results, model, options)
    if options.plot is not None:
        _plot(results, options.plot)
    return FAILURE if failed else SUCCESS


def _read(path: Path, model: PictureModel, options: argparse.Namespace) -> tuple[Tensor, int]:
    read = pictures.read(path)
    x = model.batch([pictures.prepared(model, read, path)])
    targets = targets_of(options.target, predict(model, x)[0])
    if len(targets) > 1:
        raise UsageError(f"--target {options.target} names {len(targets)} classes, and evaluate takes one.")
    return x, targets[0]


def _metric(x: Tensor, options: argparse.Namespace, batch: int) -> Metric:
    patch = options.patch or max(1, min(x.shape[2:]) // 14)
    if patch > max(x.shape[2:]):
        raise UsageError(f"--patch {patch} is larger than the input of the model, {tuple(x.shape[2:])}.")
    # A blur that leaves little of a patch to be seen.
    return SymmetricRelevanceGain(
        patch=patch, infill=Blur(max(1.0, 10 * patch / 16)), steps=options.steps, batch_size=batch
    )


def _rows(
    path: Path,
    x: Tensor,
    target: int,
    model: PictureModel,
    digest: str,
    methods: Sequence[Method],
    metric: Metric,
    kept: Kept,
) -> Iterator[dict[str, Any]]:
    """Yield what each method got on one picture, from an earlier run where there was one."""
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    for each in methods:
        composite = each.make(model)
        settings = [__version__, digest, content, target, repr(metric), repr(composite), repr(model.preparation)]
        key = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
        if key not in kept.rows:
            try:
                found = metric(model.network, x, [target], composite)
            except UnmatchedError as error:
                raise UsageError(f"{each.text}: {error}") from error
            except Exception as error:
                raise CommandError(f"{path}: {each.text}: {reason(error)}") from error
            assert found.curve is not None
            assert found.at is not None
            kept.add(
                {
                    "key": key,
                    "picture": path.name,
                    "composite": each.text,
                    "target": target,
                    "metric": repr(metric),
                    "value": float(found.values[0]),
                    "curve": found.curve[0].tolist(),
                    "at": found.at.tolist(),
                }
            )
        yield kept.rows[key]


def _result(metric: Metric, rows: Sequence[dict[str, Any]]) -> Result:
    return Result(
        metric,
        np.array([row["value"] for row in rows]),
        np.array([row["curve"] for row in rows]),
        np.array(rows[0]["at"]),
    )


def _print(results: dict[str, Result], model: PictureModel, options: argparse.Namespace) -> None:
    order = sorted(results, key=lambda text: -results[text].mean)
    best = results[order[0]]
    count = len(best.values)
    rows = []
    for text in order:
        apart = difference(results[text], best) if count > 1 and text != order[0] else None
        rows.append((text, results[text], apart))
    if options.json:
        table = [
            {
                "composite": text,
                "mean": result.mean,
                "standard_error": None if count == 1 else result.standard_error,
                "difference": None if apart is None else [apart.low, apart.mean, apart.high],
            }
            for text, result, apart in rows
        ]
        emit(json.dumps({"metric": repr(best.metric), "pictures": count, "composites": table}))
        return
    for line in reporting.of_model(model, options.model):
        emit(line)
    emit(reporting.field("metric", repr(best.metric)))
    emit(reporting.field("pictures", str(count)))
    emit(reporting.field("kept in", str(options.results)))
    emit()
    header = ("composite", "gain", "± error", "to the best", "95% interval")
    lines = [header]
    for text, result, apart in rows:
        spread = "" if count == 1 else f"{result.standard_error:.4f}"
        between = ("", "") if apart is None else (f"{apart.mean:+.4f}", f"{apart.low:+.4f} to {apart.high:+.4f}")
        lines.append((text, f"{result.mean:.4f}", spread, *between))
    for line in reporting.table(lines):
        emit(line)


def _plot(results: dict[str, Result], path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for text, result in sorted(results.items(), key=lambda pair: -pair[1].mean):
        assert result.curve is not None
        assert result.at is not None
        axis.plot(
            result.at.astype(float), result.curve.mean(0), marker="o", markersize=3, label=f"{text}, {result.mean:.3f}"
        )
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set_xlabel("part of the picture that is removed")
    axis.set_ylabel("probability, least less most relevant first")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    content = io.BytesIO()
    path = path if path.suffix else path.with_suffix(".png")
    try:
        figure.savefig(content, dpi=120, format=path.suffix[1:])
    except (OSError, ValueError) as error:
        raise CommandError(f"the plot could not be written: {error}. Choose another place with --plot.") from error
    files.write(path, content.getvalue(), "the plot", "--plot")
