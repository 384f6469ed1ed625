"""A model in training mode: its answers change from call to call, and it changes with them. That is said, once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor, nn

from lrphooks.engine.reporting import warn

#: Models of which it was said, by identity: a module of a person's own need not have a hash.
_told: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
#: How many modules of a kind are named.
_LISTED = 3
#: Where modules that drop what they are given keep how probable that is.
_PROBABILITIES = ("p", "drop_prob")


def warn_of_training(model: nn.Module, who: str, modules: Iterable[tuple[str, nn.Module]] | None = None) -> None:
    """Warn, once a model, of modules in training mode that answer differently there; nothing is switched.

    ``modules`` are those of the model by name, where they are known already.
    """
    given = model.named_modules() if modules is None else modules
    training = [(name or "the model itself", module) for name, module in given if module.training]
    if not training or _told.get(id(model)) is model:
        return
    dropping = [name for name, module in training if _drops(module)]
    learning = [name for name, module in training if isinstance(getattr(module, "running_mean", None), Tensor)]
    if not dropping and not learning:
        return
    _told[id(model)] = model
    effects = []
    if dropping:
        effects.append(f"{_listed(dropping)} drop{'s' * (len(dropping) == 1)} values at random")
    if learning:
        one = len(learning) == 1
        effects.append(
            f"{_listed(learning)} normalise{'s' * one} by the batch and change{'s' * one} "
            f"{'its' if one else 'their'} running statistics with every call"
        )
    warn(
        f"{who}: the model ({type(model).__name__}) is explained in training mode: {', and '.join(effects)}. So "
        "relevance may differ from call to call, and is not that of the model as it predicts. Call model.eval() first; "
        "it is never switched for you. If it is meant so, filter this warning, which comes once a model.",
        UserWarning,
    )


def _drops(module: nn.Module) -> bool:
    """Whether a module in training mode draws at random what it lets through."""
    if isinstance(module, nn.RReLU):
        return True
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    # Dropout of torch, stochastic depth of torchvision, paths dropped of timm and transformers.
    if next(module.parameters(), None) is not None:
        return False
    given = [getattr(module, name, None) for name in _PROBABILITIES]
    return any(isinstance(p, int | float) and not isinstance(p, bool) and 0 < p <= 1 for p in given)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
