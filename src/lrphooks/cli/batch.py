"""Many pictures: read, explained several at a time, drawn and written, each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from lrphooks.cli import pictures
from lrphooks.cli.command import CommandError
from lrphooks.cli.drawing import Drawing, draw
from lrphooks.cli.explaining import Explainer, Explanation, reason
from lrphooks.cli.results import Record, Store


@final
@dataclass(frozen=True)
class _Waiting:
    """A picture that was read and waits for the network."""

    picture: Path
    output: Path
    x: Tensor
    notes: tuple[str, ...]
    key: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Batch:
    """Explains pictures and writes what it finds, ``size`` of them in one pass of the network."""

    explainer: Explainer
    store: Store
    method: str
    size: int
    drawing: Drawing | None = None
    save: bool = False

    def run(self, tasks: Iterable[tuple[Path, Path]]) -> Iterator[Record]:
        """Yield what became of each picture and its output, in order; one that fails does not stop the others.

        Raises
        ------
        CommandError
            If no picture could be explained so: the model has no such target, or the composite cannot serve it.
        """
        queue: list[Record | _Waiting] = []
        for picture, output in tasks:
            queue.append(self._begun(picture, output))
            if sum(isinstance(each, _Waiting) for each in queue) == self.size or isinstance(queue[0], Record):
                yield from self._finished(queue)
                queue = []
        yield from self._finished(queue)

    def _begun(self, picture: Path, output: Path) -> Record | _Waiting:
        try:
            pictures.check(picture)
            # Before it is read: a picture that changes meanwhile is explained again.
            key = self.store.key(picture, output)
            kept = self.store.kept(picture, output, key)
            if kept is not None:
                return kept
            read = pictures.read(picture)
            x = pictures.prepared(self.explainer.model, read, picture)
        except CommandError as error:
            return _failed(picture, str(error))
        # Files come and go, and a person's own preparation fails in any way.
        except Exception as error:  # noqa: BLE001
            return _failed(picture, f"{picture}: {reason(error)}")
        return _Waiting(picture, output, x, read.notes, key)

    def _finished(self, queue: list[Record | _Waiting]) -> Iterator[Record]:
        waiting = [each for each in queue if isinstance(each, _Waiting)]
        found = iter(self.explainer.explain([each.x for each in waiting]) if waiting else ())
        for each in queue:
            yield each if isinstance(each, Record) else self._record(each, next(found))

    def _record(self, task: _Waiting, found: Explanation | CommandError) -> Record:
        if isinstance(found, CommandError):
            return _failed(task.picture, f"{task.picture}: {found}")
        record = Record(
            str(task.picture),
            "explained",
            str(task.output),
            str(found.prediction),
            tuple(found.prediction.to_dict()),
            found.explained,
            task.notes,
            model=self.explainer.model.name,
        )
        try:
            drawing = draw(self.explainer.model, task.x, found, self.method, self.drawing)
            if self.save:
                # First, so that a PNG, by which a result is known as finished, has its arrays.
                self.store.save_arrays(task.output, task.x, found.relevance, [each.target for each in found.explained])
            self.store.write(drawing, record, task.output, task.key)
        except CommandError as error:
            return _unwritten(record, str(error))
        except Exception as error:  # noqa: BLE001  as above
            return _unwritten(record, f"{task.picture}: {reason(error)}")
        return record


def _failed(picture: Path, error: str) -> Record:
    return Record(str(picture), "failed", error=error)


def _unwritten(record: Record, error: str) -> Record:
    """Return what was found although it could not be drawn or written, so that nobody has to find it again."""
    return replace(record, status="failed", written=None, error=error)
