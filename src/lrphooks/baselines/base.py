"""What every baseline is: another way to attribute a prediction, behind the same call as LRP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from lrphooks.selection import Target


@dataclass(frozen=True)
class Baseline(ABC):
    """A method to compare LRP with; it stands in the place of a composite: ``lrp(model, x, target, baseline)``."""

    @abstractmethod
    def attribute(self, model: nn.Module, x: Any, target: Target, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Return the attribution of every input value, as :func:`lrphooks.lrp` returns relevance."""
