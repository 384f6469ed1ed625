"""Explanations that run as compiled graphs, traced when inputs of their kind first come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from lrphooks import backward, targets
from lrphooks.compilation.graph import Graph, Sizes, trace
from lrphooks.composite import Composite
from lrphooks.composites import EpsilonPlus
from lrphooks.engine import containers
from lrphooks.engine.checks import check_model
from lrphooks.engine.eager import EAGER
from lrphooks.engine.errors import LRPError
from lrphooks.engine.interception import THREAD
from lrphooks.explanation import Explanation
from lrphooks.forward import Inputs, explained
from lrphooks.selection import Target, as_index

#: So many graphs of one model are a sign that something new is given in each call.
_MOST = 64


def compiled(
    model: nn.Module,
    composite: Composite | None = None,
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    backend: str | Callable[..., Any] = "inductor",
    options: Mapping[str, Any] | None = None,
) -> CompiledExplainer:
    """Return a function that explains a model as :func:`lrphooks.lrp` does, by graphs that ``torch.compile`` made.

    Forward pass, rules and backward pass are one graph without breaks. It is traced and compiled in the first call
    with inputs of a kind, and again where their number, types or shapes are new, or the model is another: other
    modules, parameters, hooks or plain attributes, or train() after eval(). Parameters and buffers may change in
    place; the next call sees it.

    Parameters
    ----------
    model
        Any PyTorch module, also what ``torch.compile(module)`` returned; it is left as it was.
    composite
        The rules; :func:`lrphooks.composites.EpsilonPlus` by default.
    mode, backend, options
        As for ``torch.compile``. With ``mode="reduce-overhead"`` the graph is replayed as a CUDA graph.
    dynamic
        True: one graph for any number of rows from 2 on. None: a dimension becomes of any size when a second size is
        met in it, which traces once more. False: one graph for each shape. One row always has a graph of its own.

    Returns
    -------
    CompiledExplainer
        ``explainer(x, target, kwargs=None)`` returns the relevance.

    Raises
    ------
    LRPError, TypeError, ValueError
        If the model cannot be hooked, or an argument is wrong. In a call: as ``lrp``; if the model or the target
        asks for values of tensors, which a graph does not have while it is traced.

    Examples
    --------
    >>> explainer = lrphooks.compiled(model, EpsilonPlus(), dynamic=True)
    >>> relevance = explainer(images, target=[3, 7])
    """
    if not isinstance(composite, Composite | None):
        hint = f" Did you mean {composite.__name__}()?" if callable(composite) else ""
        raise TypeError(f"compiled: composite must be a Composite, such as EpsilonPlus(), got {composite!r}.{hint}")
    if not isinstance(dynamic, bool | None):
        raise TypeError(f"compiled: dynamic is True, False or None, got {dynamic!r}.")
    original = getattr(model, "_orig_mod", model) if type(model).__name__ == "OptimizedModule" else model
    check_model(original)
    options = None if options is None else dict(options)
    # What torch.compile does not take should be told here, not in the first call.
    torch.compile(nn.Identity(), fullgraph=True, mode=mode, backend=backend, options=options)
    return CompiledExplainer(
        original, EpsilonPlus() if composite is None else composite, mode, dynamic, backend, options
    )


@final
@dataclass(frozen=True, eq=False, repr=False)
class CompiledExplainer:
    """Explains one model by compiled graphs; made by :func:`compiled`.

    Attributes
    ----------
    model, composite, mode, dynamic, backend, options
        What was asked.
    graphs
        The graphs so far, each with ``module``, the graph itself as a ``torch.fx.GraphModule`` before compilation.
    """

    model: nn.Module
    composite: Composite
    mode: str | None = None
    dynamic: bool | None = None
    backend: str | Callable[..., Any] = "inductor"
    options: dict[str, Any] | None = None
    _graphs: list[tuple[_Kind, Graph]] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, x: Any, target: Target = None, *, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Return the relevance of every input value, as :func:`lrphooks.lrp` does.

        Targets are as there. One that is a function is part of the graph: give the same object in every call.
        """
        return self.explain(x, target, kwargs=kwargs).relevance

    def explain(self, x: Any, target: Target = None, *, kwargs: Mapping[str, Any] | None = None) -> Explanation:
        """Return the relevance beside what was explained, as :func:`lrphooks.explain` does."""
        inputs = Inputs(x, kwargs, "compiled")
        inputs.check()
        with torch.inference_mode(mode=False):
            args, keywords = inputs.enter()
            wanted = targets.resolve(self.model, target)
            if not (wanted is None or callable(wanted)):
                # As a tensor, so that all indices share a graph.
                wanted = as_index(wanted, inputs.leaves[0].device)
            call = (args, keywords, wanted)
            tensors = [_laid_out(t) for t in _tensors(call)]
            graph = self._graph(inputs, call, tensors)
            # The graph has its rules inside, so the contexts open around this call are no reason to run it eagerly;
            # in a forward pass that one of them explains, its operations are to be seen.
            with EAGER.idle(() if THREAD.runs else THREAD.sessions):
                value, *relevance = graph(tensors)
        found = inputs.arranged(relevance)
        return Explanation(found, value, target, self.composite, (x, kwargs) if kwargs is not None else x)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs so far."""
        return tuple(graph for _, graph in self._graphs)

    def _graph(self, inputs: Inputs, call: Any, tensors: Sequence[Tensor]) -> Graph:
        """Return a graph for a call, from memory where one serves it."""
        kind = _Kind.of(call, tensors)
        found = self._known(kind, tensors)
        if found is None:
            with self._lock:
                # Another thread may have traced it meanwhile.
                found = self._known(kind, tensors) or self._traced(inputs, kind, call, tensors)
        return found

    def _known(self, kind: _Kind, tensors: Sequence[Tensor]) -> Graph | None:
        return next((g for k, g in self._graphs if k.equals(kind) and g.serves(tensors) and g.snapshot.holds()), None)

    def _traced(self, inputs: Inputs, kind: _Kind, call: Any, tensors: Sequence[Tensor]) -> Graph:
        if len(self._graphs) == _MOST:
            raise LRPError(
                f"compiled: {_MOST} graphs were made for one model, more than inputs can need. The usual cause is a "
                "target function, or another input that is no tensor, that is made anew for each call: make it once. "
                "Many shapes want dynamic=True, or a new explainer; for single calls there is lrphooks.lrp."
            )

        def explain(placeholders: list[Tensor]) -> list[Tensor]:
            args, keywords, target = _replaced(call, iter(placeholders))
            given = Inputs(args, keywords, inputs.who)
            with explained(self.model, given, [target], self.composite) as (value,):
                (grads,) = backward.each([value], given.leaves, 1)
            relevance = given.arranged(grads)
            return [value.detach(), *containers.tensors(relevance)]

        graph = trace(explain, tensors, self._sizes(kind, tensors), self.model, self._compile)
        self._graphs.append((kind, graph))
        return graph

    def _sizes(self, kind: _Kind, tensors: Sequence[Tensor]) -> list[Sizes]:
        """Return the sizes that a graph is traced for."""
        others = [graph.sizes for known, graph in self._graphs if known.equals(kind)]

        def varies(i: int, dim: int, size: int) -> bool:
            if self.dynamic is False or size < 2:
                return False
            return (bool(self.dynamic) and dim == 0) or any(sizes[i][dim] != size for sizes in others)

        return [
            tuple(None if varies(i, dim, size) else size for dim, size in enumerate(tensor.shape))
            for i, tensor in enumerate(tensors)
        ]

    def _compile(self, module: torch.fx.GraphModule) -> Callable[..., Any]:
        return torch.compile(module, fullgraph=True, mode=self.mode, backend=self.backend, options=self.options)

    def __repr__(self) -> str:
        asked = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("mode", "dynamic", "backend", "options"))
        name = type(self.model).__name__
        return f"<CompiledExplainer of {name} under {self.composite!r}, {asked}: {len(self._graphs)} graphs>"


@dataclass(frozen=True)
class _Slot:
    """A tensor's place in a call."""

    dtype: torch.dtype
    device: torch.device
    dim: int
    channels_last: bool


@dataclass(frozen=True, eq=False)
class _Kind:
    """What a call is apart from sizes and values; calls of one kind may share a graph."""

    call: Any
    autocast: tuple[Any, ...]

    @classmethod
    def of(cls, call: Any, tensors: Sequence[Tensor]) -> _Kind:
        devices = {"cpu", *(t.device.type for t in tensors)}
        autocast = tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in sorted(devices))
        slots = (_Slot(t.dtype, t.device, t.dim(), not t.is_contiguous()) for t in tensors)
        return cls(_replaced(call, slots), autocast)

    def equals(self, other: _Kind) -> bool:
        """Whether two calls are of one kind; what cannot be compared is not equal."""
        if self.autocast != other.autocast:
            return False
        try:
            return bool(self.call == other.call)
        except (RuntimeError, TypeError, ValueError):
            return False


def _tensors(call: Any) -> list[Tensor]:
    """Return the tensors of a call in order; what a target function holds belongs to the function."""
    args, keywords, target = call
    return [*containers.tensors((args, keywords)), *([target] if isinstance(target, Tensor) else [])]


def _replaced(call: Any, others: Iterator[Any]) -> Any:
    """Return a call with others in place of its tensors."""
    args, keywords, target = call
    args, keywords = containers.map_tensors((args, keywords), lambda _: next(others), "input")
    return args, keywords, next(others) if isinstance(target, Tensor) else target


def _laid_out(tensor: Tensor) -> Tensor:
    """Return a tensor in one of two memory formats, since a graph is for one."""
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor
    return tensor.contiguous()
