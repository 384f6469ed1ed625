"""What the engine knows of a tensor between the operation that made it and those that consume it.

A note hangs on the tensor object itself, so it lives and dies with it. It counts for that very tensor alone, since
subclasses of Tensor may hand their attributes to whatever is computed from them; only within the run that wrote it; and
only until the data changes: an in-place write through any alias raises the version that the note remembers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType, ref

from torch import Tensor

from lrphooks.torch_private import version_of

if TYPE_CHECKING:
    from lrphooks.engine.epsilon_node import EpsilonCall
    from lrphooks.engine.handlers.softmax import Part
    from lrphooks.engine.layer_call import LayerCall

_ATTRIBUTE = "_lrphooks_note"

Constant = Literal["", "parameter", "stopped"]


class Attached:
    """What hangs on one tensor and is of no other: not of those that get its attributes, nor of a copy or pickle."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[OrderedDict[str, Any]], tuple[()]]:
        # Nothing, of a type that torch.load takes from a file that nobody vouches for.
        return OrderedDict, ()


@dataclass(slots=True)
class Note(Attached):
    """Facts about one tensor.

    of, run, version: the tensor, the run, and the state of the data for which the facts hold.
    constant: it carries no relevance: made of parameters alone, or of values that a rule declared constant.
    nonnegative: no element is below zero, known from the operation that made it.
    offset: it is a constant other than 0 plus something, as in ``1 + tanh(u)``: as a factor, it gates.
    layer: the ruled linear layer that made it.
    product: the ruled product with a parameter that a bias may follow, as model code writes a layer.
    ruled: the layer's rule was set for the consumers that the engine sees; until then it waits to know them.
    kept: a checkpoint keeps the tensor to run from it again, so its autograd graph must stay as it is.
    link: makes the tensor whose gradient is relevance itself rather than the modified gradient.
    softmax: what the tensor is to a softmax that the model writes out.
    maker: what an observer remembers of the operation that made it.
    """

    of: ReferenceType[Tensor]
    run: object
    version: int
    constant: Constant = ""
    nonnegative: bool = False
    offset: bool = False
    layer: LayerCall | EpsilonCall | None = None
    product: LayerCall | EpsilonCall | None = None
    ruled: bool = False
    kept: bool = False
    link: Callable[[], Tensor | None] | None = None
    softmax: Part | None = None
    maker: object = None


def read(tensor: Tensor, run: object) -> Note | None:
    """Return the note of this run on the tensor, or None where there is none or it is out of date."""
    note = tensor.__dict__.get(_ATTRIBUTE)
    if type(note) is not Note or note.run is not run or note.version != version_of(tensor) or note.of() is not tensor:
        return None
    return note


def write(tensor: Tensor, run: object, **facts: Any) -> None:
    """Note facts about the tensor, beside those that still hold."""
    note = read(tensor, run)
    if note is None:
        setattr(tensor, _ATTRIBUTE, Note(ref(tensor), run, version_of(tensor), **facts))
        return
    for name, fact in facts.items():
        setattr(note, name, fact)


def erase(tensor: Tensor) -> None:
    """Forget what was noted on the tensor."""
    tensor.__dict__.pop(_ATTRIBUTE, None)
