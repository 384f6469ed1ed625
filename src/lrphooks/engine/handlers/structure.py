"""Operations that move, select or add values: the plain gradient, and what is known of the elements goes along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.bounds import Bound, bounds_of, clips_as_activation
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.handlers.common import plain
from lrphooks.engine.handlers.elementwise import activation, quotient_of, relu
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient, Identity, Pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


#: Leave the last dimension as it is, where its size stays.
_RESHAPES = frozenset(("view", "reshape", "_unsafe_view", "contiguous", "clone"))


def shape(run: Run, call: Call, rule: Rule) -> Any:
    """Rearrange: facts about elements, and the way for relevance itself, go along."""
    source = call.dependent[0]
    note = notes.read(source, run)
    out = plain(run, call, rule)
    if note is None or not isinstance(out, Tensor) or out is source or len(call.dependent) != 1:
        return out
    if note.product is not None and call.operation.name in _RESHAPES and out.shape[-1] == source.shape[-1]:
        notes.write(out, run, product=note.product)
    link = note.link
    if note.nonnegative or link is not None:
        follow = partial(_rearranged, link, call.over([source])) if link is not None else None
        if "dropout" in call.operation.name:
            # Run again, it would draw another mask; what arrives as relevance keeps its place.
            follow = link  # type: ignore[assignment]
        notes.write(out, run, nonnegative=note.nonnegative, link=follow)
    return out


def _rearranged(link: Callable[[], Tensor | None], function: Callable[[Tensor], Any]) -> Tensor | None:
    made = link()
    return None if made is None else function(made)


def split(run: Run, call: Call, rule: Rule) -> Any:
    """Cut into several tensors."""
    note = notes.read(call.dependent[0], run)
    out = plain(run, call, rule)
    if note is not None and note.nonnegative and len(call.dependent) == 1:
        for tensor in tensors_in((out,)):
            notes.write(tensor, run, nonnegative=True)
    return out


def select(run: Run, call: Call, rule: Rule) -> Any:
    """Hand relevance to the values selected; after max-pooling the way for relevance itself leads to the winners."""
    if isinstance(rule, Identity | Pass):
        return activation(run, call, rule)
    source = call.dependent[0]
    note = notes.read(source, run)
    if call.operation.name == "prelu" and run.carries(call.argument(1, "weight")):
        _report(run, call, "its slope depends on the explained input")
    out = plain(run, call, rule)
    if note is not None and isinstance(out, Tensor) and call.operation.name.startswith(("max_pool", "adaptive_max")):
        notes.write(out, run, nonnegative=note.nonnegative)
        if note.link is not None:
            notes.write(out, run, link=partial(_winners, note.link, call, source))
    return out


def clamp(run: Run, call: Call, rule: Rule) -> Any:
    """Clip to bounds: a lower one up to 0 and an upper one from 0 as activations, R_a = R_z; others are constants."""
    bounds = bounds_of(call)
    if bounds is None or not isinstance(rule, Identity):
        return select(run, call, Gradient() if isinstance(rule, Identity) else rule)
    (source,) = call.dependent
    note = notes.read(source, run)
    facts = {"nonnegative": isinstance(bounds[0], int | float) and bounds[0] >= 0}
    if note is not None and note.offset:
        facts["offset"] = True
    low, high = bounds
    tensors = [bound for bound in bounds if isinstance(bound, Tensor)]
    if tensors and (shape := torch.broadcast_tensors(source, *tensors)[0].shape) != source.shape:  # type: ignore[no-untyped-call]
        return clamp(run, call.replaced({id(source): source.expand(shape)}), rule)
    if not tensors and bounds == (0, None):
        out = relu(run, call, Gradient())
    elif clips_as_activation(call):
        inside = (low is None or low < 0) and (high is None or high > 0)
        out = activation(run, call, rule, quotient=partial(quotient_of, slope=float(inside)))
    else:
        out = activation(run, call, rule, quotient=partial(_clipped, low, high))
    if any(facts.values()):
        notes.write(out, run, **facts)
    return out


def _clipped(
    low: Bound, high: Bound, function: Callable[..., Tensor], gradient: Tensor, x: Tensor, *learned: Tensor
) -> Tensor:
    """Return G f(x) / x, and nothing where a bound wins that is a constant."""
    zero = x == 0
    between, constant = torch.ones_like(zero), torch.zeros_like(zero)
    for given, sign in ((low, 1), (high, -1)):
        if given is not None:
            bound = sign * torch.as_tensor(given, device=x.device)
            between, constant = between & (bound < 0), constant | ((bound > 0) & (sign * x < bound))
    safe = torch.where(zero, torch.ones_like(x), x)
    quotient = torch.where(zero, between.to(x.dtype), function(safe, *learned) / safe)
    return gradient * torch.where(constant, torch.zeros_like(x), quotient)


def _winners(link: Callable[[], Tensor | None], call: Call, source: Tensor) -> Tensor | None:
    made = link()
    pool = getattr(F, f"{call.operation.name}_with_indices", None)
    if made is None or pool is None:
        return None
    kwargs = {k: v for k, v in call.kwargs.items() if k != "return_indices"}
    with torch.no_grad():
        _, indices = pool(source.detach(), *call.args[1:], **kwargs)
    spatial = int(call.operation.name[-2])
    winners: Tensor = made.flatten(-spatial).gather(-1, indices.flatten(-spatial))
    return winners.reshape(indices.shape)


#: Sums with weights that are not negative: of nonnegative operands they are nonnegative.
_KEEP_SIGN = frozenset(
    {
        "cat", "concat", "concatenate", "stack", "sum", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    }
)  # fmt: skip


#: Linear in their input as long as nothing else depends on what is explained.
_WEIGHTED = frozenset({"embedding_bag", "stft", "istft"})


def _report(run: Run, call: Call, reason: str) -> None:
    """Report a form of an operation that is not linear, unless the composite has a rule for it."""
    if run.plan.operation_rule(call.operation, run.frames) is None:
        run.unmatched(call, reason)


def combination(run: Run, call: Call, rule: Rule) -> Any:
    """Add, average or join: linear in all operands together."""
    name = call.operation.name
    if any(v == "prod" for v in (*call.args, *call.kwargs.values()) if isinstance(v, str)):
        _report(run, call, "it multiplies what it gathers")
    if name in _WEIGHTED and len(call.dependent) > 1:
        _report(run, call, "its weights depend on the explained input")
    nonnegative = False
    if name in _KEEP_SIGN or (name == "add" and not call.kwargs and len(call.args) == 2):
        operands = list(tensors_in(call.args))
        known = [notes.read(t, run) for t in operands]
        scalars = [a for a in call.args if isinstance(a, int | float)] if name == "add" else []
        nonnegative = all(n is not None and n.nonnegative for n in known) and all(s >= 0 for s in scalars)
    offset = name in ("add", "sub") and any(isinstance(a, int | float) and a != 0 for a in call.args)
    out = plain(run, call, rule)
    if (nonnegative or offset) and isinstance(out, Tensor):
        notes.write(out, run, nonnegative=nonnegative, offset=offset)
    return out
