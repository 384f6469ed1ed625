"""What the engine knows of a value between the operation that made it and those that consume it.

Facts belong to a value, in the run and in the state of the data in which they were learnt. They hang on the tensor that
holds the value, so they live and die with it; for that very tensor alone, since subclasses of Tensor may hand their
attributes to whatever is computed from them; and only until the data changes: an in-place write through any alias
raises the version that they remember. Where torch wraps what goes in and out of a module, for a backward hook, they are
found by the place in the graph where the value was made (:class:`Remembered`).

How results inherit facts from operands is in :mod:`lrphooks.engine.inheritance`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import ReferenceType, ref

from torch import Tensor

from lrphooks.engine.errors import LRPError
from lrphooks.engine.provenance import past_hooks
from lrphooks.engine.tracing import is_tracing, require
from lrphooks.torch_private import version_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from lrphooks.layers.linear_map import LinearMap

_ATTRIBUTE = "_lrphooks_facts"

Constant = Literal["", "parameter", "stopped"]


class Knower(Protocol):
    """A run, as far as facts are concerned."""

    remembered: Remembered | None

    @property
    def linked(self) -> bool:
        """Whether relevance itself may travel, so that layers give a link to their outputs."""


class Executed(ABC):
    """An executed linear layer under a rule, as what comes behind it knows it.

    hooks: the hooks on saved tensors that were in force.
    """

    __slots__ = ()

    map: LinearMap
    hooks: Any

    @property
    @abstractmethod
    def merged(self) -> bool:
        """Whether a BatchNorm belongs to it already."""

    @abstractmethod
    def mapped(self, linear_map: LinearMap) -> Self:
        """Return the layer with its map in another form."""

    @abstractmethod
    def multiplied(self) -> Self:
        """Return the layer with its weight and bias multiplied by the number that its output was."""

    @abstractmethod
    def way_for_relevance(self, output: Tensor) -> Callable[[], Tensor | None] | None:
        """Return what makes the link of the output, where the rule is not set for a consumer that is seen."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A value on the way to a softmax of ``logits``, to the given base, over ``dim`` where it is known."""

    kind: Literal["exp", "sum", "logsumexp", "log"]
    logits: Tensor
    base: float = math.e
    dim: int = 0


class Attached:
    """What hangs on one tensor and is of no other: not of those that get its attributes, nor of a copy or pickle."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[OrderedDict[str, Any]], tuple[()]]:
        # Nothing, of a type that torch.load takes from a file that nobody vouches for.
        return OrderedDict, ()


@dataclass(frozen=True, slots=True)
class Offset:
    """A constant that an activation was added to, as the 1 in ``1 + tanh(u)``: a number, and tensors times numbers."""

    number: float = 0.0
    tensors: tuple[tuple[Tensor, float], ...] = ()

    def times(self, factor: float) -> Offset:
        """Return a multiple."""
        return Offset(self.number * factor, tuple((tensor, scale * factor) for tensor, scale in self.tensors))

    def plus(self, other: Offset) -> Offset:
        """Return the sum."""
        return Offset(self.number + other.number, self.tensors + other.tensors)

    def asked(self) -> Offset:
        """Return the offset as a number; a tensor whose elements differ has no part in it.

        Only who has to know asks, since the values of a tensor may be on their way to a device.
        """
        total = self.number
        for tensor, scale in self.tensors:
            total += scale * _number(tensor)
        return Offset(total)

    @property
    def is_zero(self) -> bool:
        """Whether it may be left out."""
        return self.number == 0 and not self.tensors


def _number(tensor: Tensor) -> float:
    """Return the value that all elements of a tensor have, or 0 where they differ."""
    if not tensor.numel() or tensor.is_complex():
        return 0.0
    first = tensor.flatten()[0]
    alike = (tensor == first).all()
    if is_tracing():
        require(~(alike & (first != 0)), _unknown_offset)
        return 0.0
    return float(first) if alike else 0.0


def _unknown_offset() -> LRPError:
    return LRPError(
        "A tensor that is one number everywhere is added to an activation that multiplies another one, so it gates. In "
        "a compiled explanation values are not known. Add a number, as in 1 + x, or explain with lrphooks.lrp."
    )


@dataclass(slots=True)
class Facts(Attached):
    """What is known of one value.

    of, run, version: the tensor, the run, and the state of the data for which the facts hold.
    constant: it carries no relevance: made of parameters alone, or of values that a rule declared constant.
    nonnegative: no element is below zero, known from the operation that made it.
    offset: the constant in it, if it is a sum of one and something; where that is not 0 it gates, as a factor.
    degree: how many factors it is a product of, or each of its summands is.
    contracted: it is a sum of products, as those of matrices are, so that a further sum is another part of the same.
    fresh: no linear layer is behind it.
    layer: the ruled linear layer that made it, by way of moves and products with numbers at most.
    ruled: the layer's rule was set for the consumers that the engine sees; until then it waits to know them.
    bias_follows: the layer has no bias, and one that is added next belongs to it, as model code writes a layer.
    kept: a checkpoint keeps the tensor to run from it again, so its autograd graph must stay as it is.
    weighted: a product of an activation with a parameter, element by element, of which a sum is a linear layer.
    link: makes the tensor whose gradient is relevance itself rather than the modified gradient.
    softmax: what the tensor is to a softmax that the model writes out.
    maker: what an observer remembers of the operation that made it.
    """

    of: ReferenceType[Tensor]
    run: object
    version: int
    constant: Constant = ""
    nonnegative: bool = False
    offset: Offset | None = None
    degree: int = 1
    contracted: bool = False
    fresh: bool = False
    layer: Executed | None = None
    ruled: bool = False
    bias_follows: bool = False
    kept: bool = False
    weighted: tuple[Callable[..., Tensor], Tensor, Tensor] | None = None
    link: Callable[[], Tensor | None] | None = None
    softmax: Part | None = None
    maker: object = None

    @property
    def gates(self) -> bool:
        """Whether the value is a constant other than 0 plus something."""
        if self.offset is not None and self.offset.tensors:
            self.offset = self.offset.asked()
        return self.offset is not None and self.offset.number != 0


def read(tensor: Tensor, run: Knower) -> Facts | None:
    """Return what is known of the tensor in this run, or None where nothing is, or what was is out of date."""
    found = tensor.__dict__.get(_ATTRIBUTE)
    if type(found) is Facts and found.run is run and found.version == version_of(tensor) and found.of() is tensor:
        return found
    return None if run.remembered is None else run.remembered.find(tensor, run)


def hang_on(tensor: Tensor) -> bool:
    """Whether facts hang on a tensor, of whatever run and state."""
    return _ATTRIBUTE in tensor.__dict__


def write(tensor: Tensor, run: Knower, **known: Any) -> None:
    """Note facts about the tensor, beside those that still hold."""
    found = read(tensor, run)
    if found is None:
        found = Facts(ref(tensor), run, version_of(tensor), **known)
        setattr(tensor, _ATTRIBUTE, found)
        if run.remembered is not None:
            run.remembered.keep(tensor, found)
        return
    for name, fact in known.items():
        setattr(found, name, fact)


def of_values(tensor: Tensor, run: Knower) -> dict[str, Any]:
    """Return the facts that hold wherever the values of a tensor are."""
    found = read(tensor, run)
    return {} if found is None else {name: getattr(found, name) for name in _OF_VALUES}


def hand_on(source: Tensor, target: Tensor, run: Knower, **known: Any) -> None:
    """Note on a tensor with the values of another what is known of that, and more."""
    told = of_values(source, run) | known
    if told:
        write(target, run, **told)


#: The facts that hold for the same values elsewhere.
_OF_VALUES = ("constant", "nonnegative", "offset", "degree", "contracted", "fresh")


class Remembered:
    """What is known of values by their places in the graph, while a model with backward hooks runs.

    torch passes what goes in and out of a module with such a hook through a node of its own.
    """

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: dict[tuple[Any, int], Facts] = {}

    def keep(self, tensor: Tensor, found: Facts) -> None:
        """Keep the facts where they are found behind the nodes of hooks."""
        if tensor.grad_fn is not None:
            self._places[tensor.grad_fn, tensor.output_nr] = found

    def find(self, tensor: Tensor, run: Knower) -> Facts | None:
        """Return the facts of what a hook's node wraps, which hold for the tensor that comes out too."""
        node = tensor.grad_fn
        if type(node).__name__ != "BackwardHookFunctionBackward":
            return None
        before = self._places.get(past_hooks(node, tensor.output_nr))
        if before is None or before.version != version_of(tensor):
            return None
        layer, link = before.layer, before.link
        if link is None and layer is not None and not before.ruled and run.linked:
            link = layer.way_for_relevance(tensor)
        # The rule stays where it is, behind the layer itself, since the hook is to see what arrives there.
        found = replace(before, of=ref(tensor), layer=layer, ruled=True, link=link)
        setattr(tensor, _ATTRIBUTE, found)
        return found
