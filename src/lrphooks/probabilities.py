"""A model that ends in a softmax: what is lost to its offset where a probability is explained."""

from __future__ import annotations

import torch
from torch import Tensor

from lrphooks import selection
from lrphooks.engine.reporting import warn
from lrphooks.engine.tracing import is_tracing
from lrphooks.selection import Target

#: The part of a probability that may be lost before it is said.
_MOST = 0.5
#: How far the sum of probabilities may be from 1.
_SLACK = 1e-3


def select_for_rules(output: object, target: Target, rows: int | None) -> Tensor:
    """Return what :func:`lrphooks.selection.select` does; warn where it is a probability of which little would be left.

    Of the probability p_c a softmax hands ``p_c (z_c - sum_j p_j z_j) = p_c (log p_c - sum_j p_j log p_j)`` to the
    logits z, and its offset takes the rest: nearly all of it where the model is sure.
    """
    explained = selection.select(output, target, rows)
    if callable(target) or is_tracing() or explained.dim() != 1:
        return explained
    with torch.no_grad():
        matrix = selection.as_matrix(output, rows).detach().double()
        if matrix.shape[1] < 2 or bool((matrix < 0).any()) or bool(((matrix.sum(1) - 1).abs() > _SLACK).any()):
            return explained
        chosen = explained.detach().double()
        handed_on = chosen * (torch.special.xlogy(1.0, chosen) + torch.special.entr(matrix).sum(1))
        lost = float((chosen - handed_on).abs().sum() / chosen.sum()) if bool(chosen.gt(0).all()) else 1.0
    if lost > _MOST:
        warn(
            "lrphooks: the outputs of the model are probabilities, so a softmax seems to be its last layer, and "
            f"{lost:.0%} of what is explained goes to the softmax's offset (softmax offset) instead of the inputs. "
            "Explain the logit: a model without its last softmax, such as model[:-1] of a Sequential, one with "
            "nn.Identity() in its place, or in Keras a last layer with activation=None.",
            UserWarning,
        )
    return explained
