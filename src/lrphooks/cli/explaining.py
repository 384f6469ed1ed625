"""Explains pictures, several in one pass of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lrphooks import LRPError, UnmatchedError, lrp_targets
from lrphooks.cli import memory, output
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.methods import Explaining, conserves
from lrphooks.cli.predictions import Prediction, predict, targets_of
from lrphooks.cli.results import Explained
from lrphooks.models import PictureModel
from lrphooks.targets import AgainstOthers, Target


@final
@dataclass(frozen=True)
class Explanation:
    """What was found for one picture: the prediction, and each explained class with its relevance, (C, H, W)."""

    prediction: Prediction
    explained: tuple[Explained, ...]
    relevance: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Explainer:
    """A model, how to explain it, and which of its outputs; ``target`` is as it is given on the command line."""

    model: PictureModel
    composite: Explaining
    target: str | None
    against: int | None = None

    def explain(self, inputs: Sequence[Tensor]) -> list[Explanation | CommandError]:
        """Return for each input, shape (1, C, H, W), what was found, or why nothing was.

        Where the pictures cannot be explained together, each is explained by itself, so that one does not spoil the
        others.

        Raises
        ------
        CommandError
            If it is not the picture's fault: the model has no such target, or the composite cannot serve it.
        """
        try:
            return list(self._together(inputs))
        except UsageError:
            raise
        except UnmatchedError as error:
            raise CommandError(str(error)) from error
        # A person's own network fails in any way.
        except Exception as error:  # noqa: BLE001
            if len(inputs) > 1:
                return [found for x in inputs for found in self.explain([x])]
            failure = error if isinstance(error, CommandError) else CommandError(reason(error))
            return [failure]

    def _together(self, inputs: Sequence[Tensor]) -> list[Explanation]:
        x = self.model.batch(inputs)
        rows = self.model.rows or len(x)
        if rows > len(x):
            # The network takes this many rows and no other number: the last picture fills them up.
            x = torch.cat((x, x[-1:].expand(rows - len(x), -1, -1, -1)))
        predictions = predict(self.model, x)
        targets = [targets_of(self.target, prediction) for prediction in predictions]
        columns = [self._asked(column, x.device) for column in zip(*targets, strict=True)]
        found = lrp_targets(self.model.network, x, columns, self.composite)
        return [
            self._explanation(prediction, chosen, [relevance[row].detach().cpu() for relevance in found])
            for row, (prediction, chosen) in enumerate(zip(predictions[: len(inputs)], targets, strict=False))
        ]

    def _explanation(self, prediction: Prediction, targets: list[int], relevance: list[Tensor]) -> Explanation:
        explained = []
        for target, values in zip(targets, relevance, strict=True):
            # In float64: float32 terms would round the sum.
            output, total = self._output(prediction, target), float(values.double().sum())
            absorbed = output - total if conserves(self.composite) else None
            name = prediction.describe(target)
            if self.against is not None:
                name += f" against the {self.against} strongest others"
            explained.append(Explained(target, name, output, total, absorbed))
        return Explanation(prediction, tuple(explained), tuple(relevance))

    def _asked(self, classes: tuple[int, ...], device: torch.device) -> Target:
        """Return what is explained of each row: its class, or this against others."""
        if self.against is None:
            return torch.tensor(classes, device=device)
        return AgainstOthers(classes, strongest=self.against)

    def _output(self, prediction: Prediction, target: int) -> float:
        if self.against is None:
            return float(prediction.outputs[target])
        return float(AgainstOthers(target, strongest=self.against)(prediction.outputs.unsqueeze(0)))


def reason(error: Exception) -> str:
    """Return why something failed, in a line."""
    text = " ".join(str(error).split())
    if memory.is_used_up(error):
        told = f" ({memory.told(text)})" if text else ""
        return f"there is not enough memory: give a smaller --batch-size, or a smaller --size.{told}"
    # The network's own errors name their type, those of lrphooks are sentences.
    return text if text and isinstance(error, LRPError | ValueError) else output.reason(error)
