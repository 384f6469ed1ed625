"""Composites: ordered lists of (matcher, rule) that say how relevance goes through a whole model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from torch import nn

from lrphooks.assignment import Assignment, assign
from lrphooks.engine.session import Session
from lrphooks.entries import Entries
from lrphooks.rules.base import LayerRule
from lrphooks.rules.filter import TopRelevance


@dataclass(frozen=True, repr=False)
class Composite(Entries):
    """Maps layers and operations to rules; the first entry that matches wins.

    Parameters
    ----------
    entries
        Pairs of a matcher (see :mod:`lrphooks.matching`) and a rule. Operations that no entry names follow the
        conventions (:data:`lrphooks.engine.conventions.CONVENTIONS`); linear layers must be matched.
    unmatched
        What to do with a linear layer or an operation that has no rule: raise an error (the default), warn, or
        silently keep its plain gradient.
    attribution
        "relevance" multiplies the modified gradient by the input, which makes it relevance; "gradient" leaves the
        modified gradient itself in ``x.grad``, as guided backpropagation wants it.

    Raises
    ------
    TypeError, ValueError
        If an entry is not a pair of a matcher and a rule, or an option is unknown.

    Examples
    --------
    >>> composite = Composite([(First(Convolution), ZBox(-2.1, 2.6)), (Convolution, Gamma()), (Linear, Epsilon())])
    >>> print(composite.assign(model))  # which rule each module gets
    >>> with composite.context(model):
    ...     model(x)[:, 3].sum().backward()  # x requires a gradient, and x.grad is its relevance
    """

    def filtered(self, percent: float) -> Composite:
        """Return the composite with a relevance filter in front of the rule of every linear layer.

        See :class:`lrphooks.rules.TopRelevance`; a rule that has one gets it anew.

        Raises
        ------
        ValueError
            If no entry gives linear layers a rule, or ``percent`` is out of range.
        """
        entries = [(m, TopRelevance(r.inner, percent) if isinstance(r, LayerRule) else r) for m, r in self.entries]
        if not any(isinstance(rule, LayerRule) for _, rule in entries):
            raise ValueError(f"Composite: {self!r} gives no linear layer a rule whose relevance could be filtered.")
        return replace(self, entries=tuple(entries))

    def assign(self, model: nn.Module) -> Assignment:
        """Return which rule each module of the model gets, as plain data that prints as a table; runs nothing."""
        return assign(self, model)

    def context(self, model: nn.Module) -> AbstractContextManager[Composite]:
        """Return a context in which ``model(x)`` followed by ``backward()`` leaves relevance in ``x.grad``.

        ``x`` must be a leaf that requires a gradient: what is behind it would take its relevance for a gradient. The
        forward pass must run inside, the backward pass may come after. It holds for the thread that enters it; the
        model itself stays as it is.

        Raises
        ------
        UnmatchedError
            If a linear layer has no rule, unless ``unmatched`` says otherwise.
        LRPError, TypeError, ValueError
            If an entry matches nothing by name, a rule cannot serve its layer, or the model cannot be hooked.
        """
        return Session(self, model)
