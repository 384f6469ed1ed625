"""What every metric is: frozen options, and a call that judges a method on the rows of an input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.evaluation.method import Judged, Target, relevance_of, settled
from lrphooks.evaluation.result import Numbers, Result
from lrphooks.matching import BatchNorm, Dropout


@dataclass(frozen=True, kw_only=True, repr=False)
class Metric(ABC):
    """A metric is a value: it compares, hashes and prints as the call that made it.

    Call it to judge a method: ``metric(model, x, target, method)`` returns a :class:`Result`.

    Parameters
    ----------
    batch_size
        How many rows the model sees at once, which bounds the memory.
    """

    # The numbers do not depend on it, so metrics that differ in it alone are equal.
    batch_size: int = field(default=16, compare=False)

    #: Which way is better: "higher", "lower", or None where neither is.
    better: ClassVar[Literal["higher", "lower"] | None]
    #: Whether it compares relevance with a region, which is given as ``truth``.
    needs_truth: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole(self, "batch_size", self.batch_size)

    def __call__(
        self, model: nn.Module, x: Tensor, target: Target, method: Judged, *, truth: Tensor | None = None
    ) -> Result:
        """Judge a method on the rows of x.

        Parameters
        ----------
        model
            The model, in evaluation mode; it is left as it was.
        x
            The input, floating-point, shape (rows, features), (rows, channels, length) or
            (rows, channels, height, width).
        target
            What is explained, as :func:`lrphooks.lrp` takes it. None is the largest output of each row of x as it
            stands, and stays that when the metric changes the input.
        method
            What is judged: a function ``(model, x, target) -> relevance`` of any library, which is given one index for
            each row as the target; a composite or a baseline of lrphooks; or relevance that was computed before, as a
            tensor. Relevance has the shape of x, or one channel where x has several.
        truth
            For metrics of localisation only: where relevance should be. A mask, zero outside, of shape
            (rows, height, width), or boxes of integers (rows, 4): left, top, right and bottom in pixels, the last two
            exclusive.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong type or shape, the relevance is not finite or not of the shape of x, the model
            is in training mode, or ``truth`` is missing or not wanted.
        """
        check_input(self, model, x)
        if self.needs_truth and truth is None:
            raise ValueError(
                f"{self.name}: relevance is compared with a region, so truth=mask or truth=boxes is needed."
            )
        if not self.needs_truth and truth is not None:
            raise ValueError(f"{self.name}: takes no truth; metrics of localisation do.")
        x = x.detach()
        target = settled(target, model, x, batch_size=self.batch_size, who=self.name)
        return self._judge(model, x, target, method, truth)

    @abstractmethod
    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result: ...

    def __repr__(self) -> str:
        # Options that are as usual would hide those that are not.
        changed = [
            f"{option.name}={getattr(self, option.name)!r}"
            for option in fields(self)
            if option.compare and not _usual(self, option)
        ]
        return f"{self.name}({', '.join(changed)})"

    @property
    def name(self) -> str:
        """The name of the metric, without its options."""
        return type(self).__name__

    def _relevance(self, model: nn.Module, x: Tensor, target: Target, method: Judged) -> Tensor:
        """Return the relevance of x, shape (rows, channels or 1, ...), detached."""
        return relevance_of(method, model, x, target, batch_size=self.batch_size, who=self.name)


def _usual(metric: Metric, option: Field[Any]) -> bool:
    usual = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(metric, option.name) == usual)


def pooled(relevance: Tensor) -> Tensor:
    """Return relevance as (rows, positions) in double precision: channels are summed where there are any."""
    relevance = relevance.double()
    return relevance.flatten(1) if relevance.dim() < 3 else relevance.sum(1).flatten(1)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, where nothing of nothing is 0."""
    return torch.where((part == 0) & (whole == 0), torch.zeros_like(part), part / whole)


def numbers(values: Tensor) -> Numbers:
    """Return a tensor as an array of doubles."""
    return np.array(values.detach().double().cpu().numpy())


def check_input(metric: Metric, model: nn.Module, x: Any) -> None:
    """Refuse what no metric can judge."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{metric.name}: model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{metric.name}: x must be a floating-point tensor, got {kind}. A model of several inputs is judged by a "
            "module that takes one of them and holds the others."
        )
    if x.dim() < 2 or 0 in x.shape:
        raise ValueError(
            f"{metric.name}: x has shape {tuple(x.shape)}; rows of features or of channels are wanted. Give a single "
            "example as x.unsqueeze(0)."
        )
    for name, module in model.named_modules():
        # Frozen TorchScript modules have no mode.
        if getattr(module, "training", False) and isinstance(module, BatchNorm.types + Dropout.types):
            raise ValueError(
                f"{metric.name}: module {name!r} ({type(module).__name__}) is in training mode, where the output of a "
                "row depends on chance or on the other rows. Call model.eval() first."
            )


def whole(owner: object, name: str, value: Any, *, minimum: int = 1) -> None:
    """Refuse an option that is not a whole number of at least ``minimum``."""
    owner = owner if isinstance(owner, str) else type(owner).__name__
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be a whole number, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{owner}: {name} must be at least {minimum}, got {value!r}.")


def one_of(owner: object, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse an option that is not among the allowed names."""
    if value not in allowed:
        raise ValueError(f"{type(owner).__name__}: {name} must be one of {', '.join(allowed)}, got {value!r}.")


def generator(seed: int) -> torch.Generator:
    """Return a source of chance of its own, on the CPU, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(seed)
