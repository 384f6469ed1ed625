"""A warning where relevance stands for next to nothing of what was explained."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrphooks.composite import Composite
from lrphooks.engine import containers
from lrphooks.engine.reporting import warn

#: The least part of f(x) that relevance has to stand for.
LEAST = 0.1


def warn_of_absorbed(value: Tensor, relevance: Any, composite: Composite, who: str) -> None:
    """Warn where more than nine tenths of f(x) are absorbed, in at least half of the rows.

    value: f(x), of each row or as a target function returned it. relevance: that of the inputs, in their structure.
    """
    if composite.attribution != "relevance" or not value.numel():
        return
    found = list(containers.tensors(relevance))
    by_row = value.dim() == 1 and all(t.dim() > 0 and t.shape[0] == value.shape[0] for t in found)
    explained = value.double() if by_row else value.double().sum()[None]
    arrived = sum((t.double().reshape(len(explained), -1).sum(1) for t in found), explained.new_zeros(()))
    shares = (arrived / explained).masked_fill(explained == 0, 1.0)
    # Plus 0, which has no sign afterwards.
    share = float(shares[shares.abs().argsort()[(len(shares) - 1) // 2]]) + 0.0
    if abs(share) >= LEAST:
        return
    warn(
        f"{who}: {share:.2g} of f(x) arrives at the inputs; the composite's rules absorb the rest on the way, so the "
        "relevance stands for next to nothing of what the model answers. Usually biases take it, as those of merged "
        "BatchNorms, or the offset of a softmax at the end; lrphooks.audit, asked the same, tells what did. Explain "
        'the logit, leave biases out, as EpsilonGammaBox(low, high, bias="ignore") does, or choose another composite, '
        f"such as AttnLRP(). This one is {composite!r}.",
        UserWarning,
    )
