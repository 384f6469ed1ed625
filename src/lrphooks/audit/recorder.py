"""Watches one run: what arrives at every operation, what it hands on, and to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks.audit.sinks import Seen, Sinks, copy_of, dot, layer_sinks, operation_sinks
from lrphooks.engine import facts
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.nodes import ScaleNode
from lrphooks.engine.observer import Observer
from lrphooks.engine.provenance import made_by_function
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Pass
from lrphooks.torch_private import base_of, is_view

if TYPE_CHECKING:
    from lrphooks.engine.frame import Frame
    from lrphooks.engine.layer_call import LayerCall
    from lrphooks.engine.passes import Passes
    from lrphooks.engine.run import Run

#: Under this name the node of a link holds the record that the link leads to.
_OWNER = "lrphooks record"

#: What is known of an operand beside its values.
_OF_OPERANDS = ("link", "layer", "ruled", "bias_follows", "weighted", "maker")

#: Kinds that only move relevance: they absorb nothing, and as views of their operand they must stay so.
_MOVES = ("shape", "split")


@dataclass(eq=False)
class Flow:
    """A tensor on its way from one operation to another, and the gradient and the relevance that came back by it.

    kept: whether formulas ask for them; else only their amount stays. passes: tells which passes count, so that one
    that the model runs itself does not; without it, all do.
    """

    value: Tensor
    gradient: Tensor | None = None
    relevance: Tensor | None = None
    source: Record | None = None
    kept: bool = False
    passes: Passes | None = None
    _amount: float = 0.0

    def watch(self, tensor: Tensor, *, as_relevance: bool = False, written: Tensor | None = None) -> None:
        """Keep the gradient that arrives at a tensor, or at the part of another that was ``written`` through it."""
        name = "relevance" if as_relevance else "gradient"

        # The hook must not hold the tensors, which hold the hook.
        part = None if written is None else _part(written, tensor)

        def keep(gradient: Tensor | None) -> None:
            if gradient is None or not (self.passes is None or self.passes.relevance):
                return
            found = gradient.detach() if part is None else part(gradient.detach())
            self._amount += float(found.double().sum()) if as_relevance else dot(self.value, found)
            if self.kept:
                before = getattr(self, name)
                setattr(self, name, found if before is None else before + found)

        keep.watches = True  # type: ignore[attr-defined]
        # What was written through a view is used through its base as well.
        watched = tensor if written is None else written
        if watched.requires_grad:
            watched.register_hook(keep)  # type: ignore[no-untyped-call]

    @property
    def amount(self) -> float:
        """The relevance that came back."""
        return self._amount


@dataclass(eq=False)
class Record:
    """One executed operation.

    arrived: flows from its results. handed: flows to its operands, complete if ``balanced``: what an operation
    overwrites cannot be watched, and its source is the ``target``.
    """

    name: str
    rule: Rule
    path: tuple[Frame, ...]
    arrived: list[Flow] = field(default_factory=list)
    handed: list[Flow] = field(default_factory=list)
    formulas: list[Callable[[], Sinks]] = field(default_factory=list)
    balanced: bool = True
    target: Record | None = None

    def absorbed(self) -> Sinks:
        """Return what the operation's own formulas say that it absorbed."""
        sinks: Sinks = {}
        for formula in self.formulas:
            for name, amount in formula().items():
                sinks[name] = sinks.get(name, 0.0) + amount
        return sinks


class Recorder(Observer):
    """Keeps a record of every operation of one run."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.frames: list[tuple[Frame, str]] = []
        self.inputs = Record("input", Pass(), ())
        self.result = Record("output", Pass(), ())
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()
        self.unseen: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self._waiting: list[Flow] = []

    # --- what the engine tells ---

    def entered(self, frame: Frame, name: str) -> None:
        """Note a module call that begins."""
        self.frames.append((frame, name))

    def left(self, run: Run, module: nn.Module, output: Any) -> None:
        """Modules that end are of no concern: relevance is booked where operations take it."""

    def explained(self, run: Run, x: Tensor) -> None:
        """Note an explained input."""
        facts.write(x, run, maker=self.inputs)
        _lead(x, self.inputs)

    def output(self, run: Run, before: Tensor, tensor: Tensor) -> None:
        """Watch an output of the model."""
        flow = Flow(tensor.detach().clone(), source=self._source(run, before))
        flow.watch(tensor)
        self.result.handed.append(flow)

    def fell_back(self, what: str) -> None:
        """Count an operation that keeps its plain gradient."""
        self.fallbacks[what] += 1

    def taken_out(self, where: str) -> None:
        """Count values that leave the graph."""
        self.taken[where] += 1

    def probe(self, run: Run, tensor: Tensor, *, as_relevance: bool = False) -> Tensor:
        """Watch an operand of the operation that is about to run."""
        probed: Tensor = ScaleNode.apply(run.passes, 1.0, tensor)
        note = facts.read(tensor, run)
        if note is not None:
            more = {
                name: getattr(note, name) for name in ("link", "layer", "ruled", "bias_follows", "weighted", "maker")
            }
            facts.hand_on(tensor, probed, run, **more)
        source = _owner(tensor) if as_relevance else self._source(run, tensor)
        flow = Flow(copy_of(tensor), source=source, passes=run.passes)
        flow.watch(probed, as_relevance=as_relevance)
        self._waiting.append(flow)
        return probed

    def begin(self, run: Run, name: str, rule: Rule) -> Record:
        """Open the record of an operation."""
        record = Record(name, rule, tuple(run.frames))
        self.records.append(record)
        self.counts[name, repr(rule)] += 1
        return record

    def operation(self, run: Run, call: Call, rule: Rule, handler: Callable[[Run, Call, Rule], Any]) -> Any:
        """Run an operation, and record it."""
        name, kind = call.operation.name, call.operation.kind
        if kind in ("composed", "recurrent") or call.function is torch.autograd.grad:
            # The last asks for gradients at its operands themselves, so none may be watched.
            self.counts[name, repr(rule)] += 1
            return handler(run, call, rule)
        if kind in _MOVES:
            self.counts[name, repr(rule)] += 1
            maker = self._source(run, call.dependent[0])
            out = handler(run, call, rule)
            for tensor in self._results(call, out):
                facts.write(tensor, run, maker=maker)
            return out
        call = _onto_target(call)
        record = self.begin(run, name, rule)
        unruled = sum(self.fallbacks.values())
        seen = Seen.of(call, rule)
        if call.writes_in_place and call.args and any(t is call.args[0] for t in call.dependent):
            record.target, record.balanced = self._source(run, call.args[0]), False
        probed = self._probed(run, call)
        out = handler(run, probed, rule)
        record.handed, self._waiting = self._waiting, []
        results = list(self._results(call, out))
        for tensor in results:
            flow = Flow(copy_of(tensor), kept=True, passes=run.passes)
            flow.watch(tensor, written=base_of(tensor) if call.writes_in_place and is_view(tensor) else None)
            record.arrived.append(flow)
            facts.write(tensor, run, maker=record)
        fallen = sum(self.fallbacks.values()) > unruled

        def formula() -> Sinks:
            seen.outputs = [flow.value for flow in record.arrived]
            seen.gradients = [flow.gradient for flow in record.arrived]
            return operation_sinks(seen, unruled=fallen)

        record.formulas.append(formula)
        return out

    def layer(
        self, layer: LayerCall, output: Tensor | None, link: Tensor | None, *, relu_follows: bool, linked: bool
    ) -> None:
        """Watch a layer's output under one form of its rule."""
        record = layer.record
        assert isinstance(record, Record)
        # Its operand was probed before the layer was known.
        record.handed += self._waiting
        self._waiting = []
        flow = Flow(torch.zeros(()) if output is None else copy_of(output), kept=True, passes=layer.run.passes)
        if output is not None:
            flow.watch(output)
            facts.write(output, layer.run, maker=record)
        if link is not None:
            flow.watch(link, as_relevance=True)
            _lead(link, record)
        record.arrived.append(flow)
        record.formulas.append(
            lambda: (
                {}
                if flow.gradient is None and flow.relevance is None
                else layer_sinks(layer, flow.gradient, flow.relevance, relu_follows=relu_follows, linked=linked)
            )
        )

    def passed(self, run: Run, rule: Rule, a: Tensor, output: Tensor, link: Tensor, *, linked: bool) -> None:
        """Record relevance that goes past what the model computes."""
        record = self.begin(run, "pass", rule)
        record.handed, self._waiting = self._waiting, []
        flow = Flow(copy_of(output), kept=True, passes=run.passes)
        flow.watch(output)
        flow.watch(link, as_relevance=True)
        _lead(link, record)
        record.arrived.append(flow)
        facts.write(output, run, maker=record)
        zero = (a == 0).detach()

        def formula() -> Sinks:
            total = torch.zeros_like(flow.value) if flow.gradient is None else flow.gradient * flow.value
            total = total if flow.relevance is None else total + flow.relevance
            return {} if linked else {"zeros": float(total[zero].double().sum())}

        record.formulas.append(formula)

    def release(self) -> None:
        """Let go of the graph: what was recorded refers to it, and it refers to the recorder."""
        for record in (*self.records, self.result):
            record.formulas.clear()
            record.handed.clear()
        self.records.clear()
        self.frames.clear()

    # --- helpers ---

    def _source(self, run: Run, tensor: Tensor) -> Record | None:
        note = facts.read(tensor, run)
        if note is not None and note.maker is not None:
            return note.maker  # type: ignore[return-value]
        function = made_by_function(tensor)
        if function is not None:
            self.hidden[function.__name__] += 1
        elif tensor.grad_fn is not None and not is_view(tensor):
            # What overwrote a tensor through another of its views is no news, and neither is a module's hook.
            self.unseen[tensor.grad_fn.name().removesuffix("0").removesuffix("Backward")] += 1
        return None

    def _probed(self, run: Run, call: Call) -> Call:
        """Return the call with its operands probed, but for what it overwrites."""
        target = call.args[0] if call.writes_in_place and call.args else None
        return call.replaced({id(t): self.probe(run, t) for t in _distinct(call.dependent) if t is not target})

    @staticmethod
    def _results(call: Call, out: Any) -> Iterator[Tensor]:
        results = (call.args[0],) if call.operation.in_place and call.args else tensors_in((out,))
        for tensor in results:
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                yield tensor


def _onto_target(call: Call) -> Call:
    """Return a call with what it overwrites among its operands, also where another tensor has that one's rule."""
    if not call.operation.in_place or not call.args:
        return call
    given = tensors_in((call.args, call.kwargs))
    dependent = [t if any(t is operand for operand in given) else call.args[0] for t in call.dependent]
    return Call(call.operation, call.function, call.args, call.kwargs, dependent, call.rule)


def _part(base: Tensor, view: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what takes the part of a gradient of the base that belongs to a view of it."""
    whole, size, stride = (base.size(), base.stride()), view.size(), view.stride()
    offset = view.storage_offset() - base.storage_offset()

    def part(gradient: Tensor) -> Tensor:
        laid_out = torch.empty_strided(*whole, dtype=gradient.dtype, device=gradient.device)
        return laid_out.copy_(gradient).as_strided(size, stride, offset)

    return part


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def _lead(link: Tensor, record: Record) -> None:
    node: Any = link.grad_fn
    node.metadata[_OWNER] = record


def _owner(link: Tensor) -> Record | None:
    """Return the record that a link leads to, through whatever rearranges it."""
    node: Any = link.grad_fn
    while node is not None and _OWNER not in node.metadata:
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None else node.metadata[_OWNER]
