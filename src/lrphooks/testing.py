"""For tests of rules of your own: the contract that every rule of an operation keeps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrphooks.audit import audit
from lrphooks.composite import Composite
from lrphooks.explanation import lrp
from lrphooks.rules.operation import OperationRule


class _Model(nn.Module):
    """An operation, in a checkpoint or not, and a model that writes over what it returned."""

    def __init__(self, function: Callable[..., Tensor], *, again: bool = False, overwrites: bool = False) -> None:
        super().__init__()
        self.function, self.again, self.overwrites = function, again, overwrites

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the value of the operation."""
        out: Tensor = (
            checkpoint(self.function, *operands, use_reentrant=False) if self.again else self.function(*operands)
        )
        if not self.overwrites:
            return out
        value = out.clone()
        out.zero_()
        return value


def check_rule(rule: OperationRule, operation: Any, *operands: Tensor, tolerance: float = 1e-9) -> None:
    """Check that a rule of your own serves an operation as the rules of lrphooks do.

    Checked are that relevance is ``R_a = a * G_a`` with what the rule answers; that the value is bit for bit the
    operation's; that relevance is the same in a checkpoint, where the model overwrites the output, and in several
    threads at once; that the audit accounts for all of it; that it can be differentiated, against finite differences;
    and that the rule compares, hashes, prints and pickles as a value.

    Parameters
    ----------
    rule
        The rule.
    operation
        What an entry of a composite names: a function of torch, an operation of ``torch.ops`` or of
        ``torch.library.custom_op``, or a class of ``torch.autograd.Function``.
    operands
        Example values, of float64, each of which depends on the explained input.
    tolerance
        The largest difference over the largest value; a thousand times as much for finite differences.

    Raises
    ------
    AssertionError
        If something does not hold: it says what.
    TypeError
        If an operand is not of float64.
    """
    for a in operands:
        if not isinstance(a, Tensor) or a.dtype != torch.float64:
            raise TypeError(f"check_rule: operands must be tensors of float64, got {getattr(a, 'dtype', type(a))}.")
    function: Callable[..., Tensor] = getattr(operation, "apply", operation)
    composite = Composite(((operation, rule),))
    given = tuple(a.detach() for a in operands)
    value = function(*given)
    seed = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)

    def relevance(**how: bool) -> tuple[Tensor, ...]:
        found = lrp(_Model(function, **how), given, lambda out: out * seed, composite)
        return found if isinstance(found, tuple) else (found,)

    answers = rule.modified_gradients(seed, value, given)
    expected = tuple(torch.zeros_like(a) if g is None else a * g for a, g in zip(given, answers, strict=True))
    _same("relevance is a * G_a", relevance(), expected, tolerance)
    _same("in a checkpoint relevance is the same", relevance(again=True), expected, tolerance)
    _same("relevance is that of an output which is overwritten", relevance(overwrites=True), expected, tolerance)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: relevance(), range(8)):
            _same("in several threads relevance is the same", found, expected, tolerance)
    leaves = tuple(a.clone().requires_grad_() for a in given)
    with composite.context(model := _Model(function)):
        out = model(*leaves)
    assert torch.equal(out, value), f"{rule!r}: the value of the operation is not bit for bit what it is without it"
    found = torch.autograd.grad((out * seed).sum(), leaves, create_graph=True, allow_unused=True)
    whole = tuple(torch.zeros_like(a) if r is None else r for a, r in zip(leaves, found, strict=True))
    _differentiates(rule, function, whole, leaves, seed, tolerance)
    unexplained = audit(_Model(function), given, lambda out: out * seed, composite).unexplained
    assert unexplained <= tolerance, f"{rule!r}: the audit leaves {unexplained:.1e} unexplained"
    assert pickle.loads(pickle.dumps(rule)) == rule, f"{rule!r}: a pickled rule is not equal to it"  # noqa: S301 -- what was just pickled here
    assert hash(rule) == hash(pickle.loads(pickle.dumps(rule))), f"{rule!r}: equal rules have different hashes"  # noqa: S301 -- what was just pickled here
    assert "object at 0x" not in repr(rule), f"{rule!r} does not print as the call that made it"


def _same(what: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-300))
        assert error <= tolerance, f"{what}: not so for operand {number}, by {error:.1e} of the largest value"


def _differentiates(
    rule: OperationRule,
    function: Callable[..., Tensor],
    found: tuple[Tensor, ...],
    leaves: tuple[Tensor, ...],
    seed: Tensor,
    tolerance: float,
) -> None:
    """Check the derivative of relevance along one direction against finite differences."""
    weights = [torch.linspace(1.0, 2.0, r.numel(), dtype=r.dtype).reshape(r.shape) for r in found]

    def total(operands: tuple[Tensor, ...]) -> Tensor:
        answers = rule.modified_gradients(seed, function(*operands), operands)
        terms = [(w * a * g).sum() for w, a, g in zip(weights, operands, answers, strict=True) if g is not None]
        return torch.stack(terms).sum()

    summed = torch.stack([(w * r).sum() for w, r in zip(weights, found, strict=True)]).sum()
    grads = torch.autograd.grad(summed, leaves, allow_unused=True) if summed.requires_grad else [None for _ in leaves]
    # Another direction for each operand, since what depends on their difference has no derivative along one for all.
    steps = tuple(
        torch.linspace(-1.0, 1.5 + k, a.numel(), dtype=a.dtype).reshape(a.shape) for k, a in enumerate(leaves)
    )
    derivative = sum(float((g * s).sum()) for g, s in zip(grads, steps, strict=True) if g is not None)
    with torch.no_grad():
        ahead, behind = (
            total(tuple(a + sign * 1e-5 * s for a, s in zip(leaves, steps, strict=True))) for sign in (1, -1)
        )
    expected = float((ahead - behind) / 2e-5)
    error = abs(derivative - expected) / max(abs(expected), 1e-12)
    assert error <= 1e3 * tolerance, (
        f"{rule!r}: the derivative of relevance along a direction is {derivative:.6g}, by finite differences "
        f"{expected:.6g}. Write the rule in differentiable operations of torch, without detach() or in-place writes."
    )
