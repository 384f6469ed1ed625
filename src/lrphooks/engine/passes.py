"""What the nodes of the graph know of the backward passes over it."""

from __future__ import annotations

from lrphooks.torch_private import current_backward_pass


class Passes:
    """Which backward passes over the graph of one forward pass are relevance passes, and what they are to find.

    It is all that a node of the graph knows of the run that made it.
    """

    __slots__ = ("_derivatives", "_identifiers", "differentiable", "parameters", "times_input")

    def __init__(self, *, parameters: bool = False, times_input: bool = True) -> None:
        #: Whether they give parameters a gradient too.
        self.parameters = parameters
        #: Whether they end with relevance, and not with the modified gradient.
        self.times_input = times_input
        #: Whether relevance was made that may be differentiated, so that other passes have a meaning.
        self.differentiable = False
        self._identifiers: set[int] = set()
        self._derivatives: set[int] = set()

    def begin(self) -> None:
        """Declare the backward pass now running to be a relevance pass, unless it differentiates relevance."""
        current = current_backward_pass()
        if current not in self._derivatives:
            self._identifiers.add(current)

    def differentiate(self) -> None:
        """Declare the backward pass now running to differentiate relevance, so that everything in it is true."""
        self._derivatives.add(current_backward_pass())

    @property
    def relevance(self) -> bool:
        """Whether the backward pass now running is a relevance pass."""
        return current_backward_pass() in self._identifiers
