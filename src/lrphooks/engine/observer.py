"""What an observer of a run is told: every operation, every ruled layer, every way that relevance takes past them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrphooks.rules.base import Rule

if TYPE_CHECKING:
    from lrphooks.engine.call import Call
    from lrphooks.engine.frame import Frame


#: A run, and with it a layer call: it knows its observer, so that this module must not know it.
Run = Any


class Observer(ABC):
    """Watches a run without changing any value or any relevance.

    It may hold tensors of the graph. The run, and so the graph, refers to it weakly: it lives as long as the caller
    that made it holds it.
    """

    @abstractmethod
    def probe(self, run: Run, tensor: Tensor, *, as_relevance: bool = False) -> Tensor:
        """Return an operand of the operation that is about to run as the operation is to see it.

        With ``as_relevance`` it is a link, whose gradient is relevance itself.
        """

    @abstractmethod
    def begin(self, run: Run, name: str, rule: Rule) -> object:
        """Return a record of a layer that is about to run; it stays with the layer, whose nodes keep it."""

    @abstractmethod
    def operation(self, run: Run, call: Call, rule: Rule, handler: Callable[[Run, Call, Rule], Any]) -> Any:
        """Run an operation by its handler and return what it returns."""

    @abstractmethod
    def layer(
        self, layer: Any, output: Tensor | None, link: Tensor | None, *, relu_follows: bool, linked: bool
    ) -> None:
        """Note a layer where its rule is set: its output, and the link through which relevance itself arrives.

        ``linked`` says whether the layer hands relevance itself to its input.
        """

    @abstractmethod
    def passed(self, run: Run, rule: Rule, a: Tensor, output: Tensor, link: Tensor, *, linked: bool) -> None:
        """Note relevance that goes from ``output`` straight to ``a``."""

    @abstractmethod
    def entered(self, frame: Frame, name: str) -> None:
        """Note a module call that begins."""

    @abstractmethod
    def left(self, run: Run, module: nn.Module, output: Any) -> None:
        """Note a module call that ended, and what it returned."""

    @abstractmethod
    def fell_back(self, what: str) -> None:
        """Note an operation without a rule that keeps its plain gradient."""

    @abstractmethod
    def taken_out(self, where: str) -> None:
        """Note values that depend on the explained input and leave the graph: by what, in which module and line."""

    @abstractmethod
    def explained(self, run: Run, x: Tensor) -> None:
        """Note an explained input as the model sees it."""

    @abstractmethod
    def output(self, run: Run, before: Tensor, tensor: Tensor) -> None:
        """Note an output of the model, as the model returned it and as the user sees it."""
