"""What is judged, and by what: any method that explains, and the output that it explains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lrphooks.baselines import Baseline
from lrphooks.composite import Composite
from lrphooks.explanation import lrp
from lrphooks.selection import Target, as_matrix, select
from lrphooks.targets import OutputTarget, resolve

__all__ = ["Judged", "Method", "Output", "Scorer", "Target", "relevance_of", "settled"]

#: A method explains: a function of (model, x, target) that returns relevance in the shape of x.
Method: TypeAlias = Callable[[nn.Module, Tensor, Any], Tensor]
#: What a metric judges: a method, a composite or baseline of lrphooks, or relevance that was computed before.
Judged: TypeAlias = "Method | Composite | Baseline | Tensor"
#: What a perturbed input is measured by: the softmax probability of the target, or the explained value itself.
Output: TypeAlias = Literal["probability", "logit"]


def relevance_of(method: Judged, model: nn.Module, x: Tensor, target: Target, *, batch_size: int, who: str) -> Tensor:
    """Return the relevance that a method gives x, shape (rows, channels or 1, ...), ``batch_size`` rows at a time."""
    if isinstance(method, Tensor):
        return checked(method.detach().to(x.device), x, who)
    explain = method if callable(method) else lambda m, rows, t: lrp(m, rows, t, method)
    found: list[Tensor] = []
    for start in range(0, len(x), batch_size):
        rows = x[start : start + batch_size]
        relevance = explain(model, rows.detach().clone(), of_rows(target, range(start, start + len(rows))))
        if not isinstance(relevance, Tensor):
            raise TypeError(f"{who}: the method must return a tensor of relevance, got {type(relevance).__name__}.")
        found.append(checked(relevance.detach(), rows, who))
    return torch.cat(found)


def checked(relevance: Tensor, x: Tensor, who: str) -> Tensor:
    """Return relevance with a dimension for channels, or raise an error where it does not fit x."""
    without_channels = (x.shape[0], *x.shape[2:])
    if x.dim() > 2 and relevance.shape == without_channels:
        relevance = relevance.unsqueeze(1)
    if relevance.shape != x.shape and (x.dim() == 2 or relevance.shape != (x.shape[0], 1, *x.shape[2:])):
        raise ValueError(
            f"{who}: the relevance has shape {tuple(relevance.shape)} and x {tuple(x.shape)}. Relevance has the shape "
            "of x, or one channel where x has several."
        )
    if not bool(torch.isfinite(relevance).all()):
        raise ValueError(f"{who}: the relevance holds NaN or infinite values, so it cannot be judged.")
    return relevance


def of_rows(target: Target, rows: Sequence[int]) -> Target:
    """Return the target of some of the rows, which may come several times."""
    if isinstance(target, Tensor) and target.dim() == 1:
        return target[torch.as_tensor(rows, device=target.device)]
    if isinstance(target, OutputTarget):
        # Its classes, where there is one for each row.
        classes = {f.name: getattr(target, f.name) for f in dataclasses.fields(target) if f.name in ("a", "b")}
        several = {name: [given[row] for row in rows] for name, given in classes.items() if isinstance(given, tuple)}
        return dataclasses.replace(target, **several)
    return target


def settled(target: Target, model: nn.Module, x: Tensor, *, batch_size: int, who: str) -> Target:
    """Return the target as an index for each row of x, so that it stays when the input or the model changes.

    A function of the output stays as it is.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrphooks.lrp` does for a target.
    """
    target = resolve(model, target)
    if callable(target) and not isinstance(target, Tensor):
        return target
    several = isinstance(target, Sequence) or (isinstance(target, Tensor) and target.dim() > 0)
    if several and len(target) != len(x):  # type: ignore[arg-type]
        raise ValueError(f"{who}: {len(target)} targets were given for {len(x)} rows; give one, or one a row.")  # type: ignore[arg-type]
    with torch.no_grad():
        logits = torch.cat([as_matrix(model(rows), len(rows)) for rows in torch.split(x, batch_size)])
    # Checks the target, with the errors of lrp.
    select(logits, target, len(x))
    index = logits.argmax(1) if target is None else torch.as_tensor(target, device=logits.device).long()
    return index.expand(len(x)) % logits.shape[1]


@dataclass(frozen=True)
class Scorer:
    """The output that is measured, as a function of changed inputs."""

    model: nn.Module
    target: Target
    """As :func:`settled` returns it."""
    output: Output
    who: str

    def __post_init__(self) -> None:
        if not isinstance(self.target, Tensor) and self.output == "probability":
            raise ValueError(
                f"{self.who}: the target is a function, whose value is no probability. Give output='logit' to measure "
                "the value itself, or let the function return a probability."
            )

    @torch.no_grad()
    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the score of each of some inputs, which were made of the rows of these numbers; (inputs,), double."""
        found = self.model(x)
        if not isinstance(self.target, Tensor):
            return select(found, of_rows(self.target, rows.tolist()), len(x)).double()
        logits = as_matrix(found, len(x)).double()
        if self.output == "probability" and logits.shape[1] == 1:
            raise ValueError(
                f"{self.who}: the model has one output, whose softmax is 1 whatever the input. Give output='logit'."
            )
        scores = logits.softmax(-1) if self.output == "probability" else logits
        return scores.gather(1, self.target[rows].unsqueeze(1)).squeeze(1)
