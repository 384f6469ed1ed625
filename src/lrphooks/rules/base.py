"""What every rule shares: immutability, honest printing, argument checks and the stabilizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """How one layer or operation hands relevance from its output to its inputs.

    Rules are immutable values: they compare, hash, pickle and print as the call that made them, hold no state
    of a run, and may serve any number of models and threads at once.
    """


@dataclass(frozen=True)
class LayerRule(Rule):
    """A rule for linear layers."""

    @property
    def inner(self) -> LayerRule:
        """The rule that hands relevance on, where this one is wrapped around it; else the rule itself."""
        return self


def number(owner: str, name: str, value: Any, *, minimum: float | None = None) -> float:
    """Return ``value`` as a float, or raise an error that names the argument, what it must be and what it was."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r} of type {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"{owner}: {name} must be finite, got {value!r}.")
    if minimum is not None and value < minimum:
        raise ValueError(f"{owner}: {name} must be at least {minimum:g}, got {value!r}.")
    return float(value)


@dataclass(frozen=True)
class Stabilizer:
    """Keeps a denominator away from zero without changing its sign, where sign(0) counts as +1.

    Formula: ``z + epsilon * sign(z)``, or with ``clip=True`` ``sign(z) * max(|z|, epsilon)``. With
    ``norm_scale=True`` epsilon is multiplied by ``sqrt(mean(z**2))`` over ``dim`` (all dimensions but the
    first when None), so that it is relative to the size of z.

    Raises
    ------
    TypeError, ValueError
        If ``epsilon`` is not a finite number of at least 0, or ``dim`` neither None nor integers.
    """

    epsilon: float = 1e-6
    clip: bool = False
    norm_scale: bool = False
    dim: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        number("Stabilizer", "epsilon", self.epsilon, minimum=0.0)
        if self.dim is not None:
            dim = tuple(self.dim) if isinstance(self.dim, tuple | list) else (self.dim,)
            if not all(isinstance(d, int) for d in dim):
                raise TypeError(f"Stabilizer: dim must be None or integers, got {self.dim!r}.")
            object.__setattr__(self, "dim", dim)

    @classmethod
    def ensure(cls, owner: str, name: str, value: float | Stabilizer) -> Stabilizer:
        """Return ``value`` as a stabilizer; a number becomes a constant shift."""
        if isinstance(value, Stabilizer):
            return value
        return cls(number(owner, name, value, minimum=0.0))

    def __call__(self, z: Tensor) -> Tensor:
        """Return the stabilized ``z``, of the same shape."""
        if self.epsilon == 0.0:
            # Where z is 0 there is nothing to distribute.
            return torch.where(z == 0, torch.full_like(z, math.inf), z)
        epsilon = torch.full((), self._least(z.dtype), dtype=z.dtype, device=z.device)
        if self.norm_scale:
            dim = tuple(range(1, z.dim())) if self.dim is None else self.dim
            epsilon = z.square().mean(dim, keepdim=True).sqrt() * epsilon
        if self.clip:
            size = z.abs().clamp(min=epsilon)
            return torch.where(z < 0, -size, size)
        return z + torch.where(z < 0, -epsilon, epsilon)

    def shift(self, dtype: torch.dtype) -> float | None:
        """Return what it adds to the size of every value, where it is a constant and not 0."""
        return None if self.clip or self.norm_scale or self.epsilon == 0.0 else self._least(dtype)

    def _least(self, dtype: torch.dtype) -> float:
        # Half precision has no room for the quotient of a value and 1e-6; for one by its smallest normal number it has.
        return max(self.epsilon, torch.finfo(dtype).tiny) if dtype == torch.float16 else self.epsilon
