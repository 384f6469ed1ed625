"""What ``lrphooks explain`` prints: facts of one picture, a line for each of many, or JSON."""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import final

from lrphooks.cli import reporting
from lrphooks.cli.explaining import Explainer
from lrphooks.cli.inputs import Found
from lrphooks.cli.output import error_line, printable
from lrphooks.cli.progress import Progress
from lrphooks.cli.results import Record


class Printer(ABC):
    """Prints what became of the pictures."""

    def __init__(self, options: argparse.Namespace, explainer: Explainer, found: Found) -> None:
        self.options, self.explainer, self.found = options, explainer, found

    @abstractmethod
    def begin(self, display: Progress) -> None:
        """Print what holds for all pictures."""

    @abstractmethod
    def show(self, record: Record, display: Progress) -> None:
        """Print what became of one picture."""

    @abstractmethod
    def end(self, display: Progress, tally: Mapping[str, int]) -> None:
        """Print what became of all pictures."""

    def failure(self, record: Record, display: Progress) -> None:
        """Print why a picture failed, as errors are printed."""
        display.print(error_line(record.error or ""), error=True)


@final
class Fields(Printer):
    """One picture in full, a line for each fact."""

    def begin(self, display: Progress) -> None:
        pass

    def show(self, record: Record, display: Progress) -> None:
        if record.error is not None:
            self.failure(record, display)
            return
        packaged = "" if self.options.pictures else " (comes with the package)"
        name = record.picture if self.options.pictures else Path(record.picture).name
        lines = [
            reporting.field("picture", f"{name}{packaged}"),
            *(reporting.field("read as", note) for note in record.notes),
            *reporting.of_model(self.explainer.model, self.options.model),
            reporting.field("prediction", str(record.prediction)),
        ]
        composite = reporting.of_composite(self.options.composite.text, self.explainer.composite)
        for index, each in enumerate(record.explained):
            lines += [reporting.field("explained", each.name), *([] if index else [composite])]
            lines += reporting.of_explained(each, self.explainer.composite)
        lines.append(reporting.field("written", str(record.written)))
        for line in lines:
            display.print(line)

    def end(self, display: Progress, tally: Mapping[str, int]) -> None:
        pass


@final
class Json(Printer):
    """A line of JSON for each picture, and nothing else."""

    def begin(self, display: Progress) -> None:
        pass

    def show(self, record: Record, display: Progress) -> None:
        if record.error is not None:
            self.failure(record, display)
        display.print(json.dumps(record.to_dict()))

    def end(self, display: Progress, tally: Mapping[str, int]) -> None:
        pass


@final
class Lines(Printer):
    """Many pictures, a line each."""

    def begin(self, display: Progress) -> None:
        count, left_out = len(self.found.items), self.found.left_out
        others = f", and {left_out} other file{'s' if left_out > 1 else ''} left out" if left_out else ""
        for line in (
            *reporting.of_model(self.explainer.model, self.options.model),
            reporting.of_composite(self.options.composite.text, self.explainer.composite),
            reporting.field("pictures", f"{count}{others}"),
            "",
        ):
            display.print(line)

    def show(self, record: Record, display: Progress) -> None:
        if record.error is not None:
            self.failure(record, display)
        else:
            display.print(self._line(record))

    @staticmethod
    def _line(record: Record) -> str:
        amounts = [f"f(x) {each.output:.4g}" for each in record.explained]
        if [each.target for each in record.explained] != [best["class"] for best in record.classes[:1]]:
            amounts = [f"{each.name} f(x) {each.output:.4g}" for each in record.explained]
        notes = [*record.notes, *(["kept"] if record.status == "kept" else [])]
        told = f" ({'; '.join(notes)})" if notes else ""
        return printable(f"{record.picture}: {record.prediction}; {', '.join(amounts)}{told}")

    def end(self, display: Progress, tally: Mapping[str, int]) -> None:
        display.print("")
        display.print(", ".join(f"{count} {status}" for status, count in tally.items() if count))


def printer_for(options: argparse.Namespace, explainer: Explainer, found: Found) -> Printer:
    """Return what prints as it is asked for."""
    kind = Json if options.json else Lines if found.many else Fields
    return kind(options, explainer, found)
