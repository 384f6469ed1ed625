"""A composite applied to one model: every question that a run may ask about rules, answered by a look-up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from torch import Tensor, nn

from lrphooks import matching
from lrphooks.assignment import assign, is_linear_layer
from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning
from lrphooks.engine.reporting import warn
from lrphooks.engine.serving import FUNCTION, SUMS, check_entries, serves
from lrphooks.operations import Operation
from lrphooks.rules.base import LayerRule, Rule
from lrphooks.rules.input import InputRule
from lrphooks.rules.operation import Gradient, Identity, Pass

if TYPE_CHECKING:
    from torch.autograd.function import Function

    from lrphooks.engine.frame import Decision, Frame
    from lrphooks.entries import Entries


class Plan:
    """Which rule serves which module and operation of one model."""

    def __init__(self, composite: Entries, model: nn.Module) -> None:
        self.composite = composite
        paths = matching.paths_of(model)
        self.modules = tuple(paths)
        self.assignment = assign(composite, model, paths)
        check_entries(composite)
        self._names: dict[int, str] = {}
        self._layers: dict[int, tuple[tuple[Rule, int | None], ...]] = {}
        #: Which module a weight belongs to, by its identity, which another has once it is gone.
        self._owners: dict[int, tuple[ReferenceType[Tensor], nn.Module]] = {}
        #: The rule of each module for the operations that it runs, with its entry and whether it is its own.
        self._rules: dict[int, tuple[Rule, int, bool]] = {}
        self._places = {id(m): [path[-1] for path in found] for m, found in paths.items()}
        self._placed = any(matching.is_placed(matcher) for matcher, _ in composite.entries)
        self._operations: dict[Hashable, dict[str, Rule | None]] = {}
        self._decisions: dict[Hashable, dict[str, Decision]] = {}
        #: Whether softmax has a rule that passes relevance, which one that is written out then follows.
        self.softmax_is_ruled = any(
            isinstance(rule, Gradient) and "softmax" in matching.operation_names(matcher)
            for matcher, rule in composite.entries
        )
        #: Whether relevance itself may have to travel to a layer or module, beside the modified gradient.
        inner = [rule.inner if isinstance(rule, LayerRule) else rule for _, rule in composite.entries]
        self.delivers = any(isinstance(rule, InputRule | Identity | Pass) for rule in inner)
        #: Whether sums of activations may have a rule of linear layers.
        self.rules_sums = any(
            isinstance(rule, LayerRule) and not SUMS.isdisjoint(matching.operation_names(matcher))
            for matcher, rule in composite.entries
        )
        self.passing: dict[int, Rule] = {}
        inherited: dict[str, tuple[Rule, int, bool]] = {}
        for module, row in zip(self.modules, self.assignment, strict=True):
            self._names[id(module)] = name = row.name
            rule = row.rule
            layered = [c for c in row.candidates if isinstance(c.rule, LayerRule)]
            if is_linear_layer(module) or layered:
                self._layers[id(module)] = tuple((c.rule, c.entry if c.first else None) for c in row.candidates)
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and is_linear_layer(module):
                self._owners.setdefault(id(weight), (ref(weight), module))
            if isinstance(rule, Identity | Pass) and not served_by_operation(module):
                self.passing[id(module)] = rule
                rule = Gradient()
            if rule is not None and not isinstance(rule, LayerRule):
                self._rules[id(module)] = (rule, row.candidates[0].entry, True)
            elif name and (outer := inherited.get(name.rpartition(".")[0])) is not None:
                self._rules[id(module)] = (*outer[:2], False)
            if id(module) in self._rules:
                inherited[name] = self._rules[id(module)]
        self._check_layers()

    def _check_layers(self) -> None:
        policy = self.composite.unmatched
        if policy == "gradient":
            return
        unmatched = [m for m in self.modules if is_linear_layer(m) and not self._layers[id(m)]]
        if not unmatched:
            return
        missing = [f"{self._names[id(module)]!r} ({type(module).__name__})" for module in unmatched]
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        message = (
            f"No entry of the composite gives a rule for module {listed}. Add one, such as "
            "(lrphooks.matching.AnyLinear, lrphooks.rules.Epsilon()), or choose "
            'unmatched="warn" or "gradient" to keep the plain gradient there.'
        )
        if policy == "error":
            raise UnmatchedError(message)
        warn(message, UnmatchedWarning)
        # A rule of their own keeps the run from warning of each again.
        self._layers.update((id(module), ((Gradient(), None),)) for module in unmatched)

    def rules(self, module: nn.Module) -> bool:
        """Whether the composite gives a module a rule of its own, other than the gradient."""
        rule, _, own = self._rules.get(id(module), (None, None, False))
        given = [rule for rule, _ in self._layers.get(id(module), ())] + ([rule] if own else [])
        return id(module) in self.passing or any(not isinstance(rule, Gradient) for rule in given)

    def path_of(self, module: nn.Module) -> str:
        """Return the name of a module within the model, empty for the model itself."""
        return self._names.get(id(module), "")

    def name_of(self, module: nn.Module) -> str:
        """Return a module as messages name it."""
        name = self._names.get(id(module))
        return f"module {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"

    def layer_module(self, running: nn.Module | None, weight: Any) -> nn.Module | None:
        """Return the module that a linear operation belongs to: the one running, or the owner of its weight."""
        if running is not None and id(running) in self._layers:
            return running
        owner = self._owners.get(id(weight))
        return None if owner is None or owner[0]() is not weight else owner[1]

    def layer_candidates(
        self, module: nn.Module | None, operation: Operation, frames: Sequence[Frame] = ()
    ) -> Iterator[tuple[Rule, int | None]]:
        """Yield the rules a linear operation may get in order, each with its claim if only the first layer gets it."""
        seen = set()
        if module is not None:
            for rule, first in self._layers[id(module)]:
                seen.add(first)
                yield rule, first
        running = self._running(frames)
        for index, (matcher, rule) in enumerate(self.composite.entries):
            if matching.matches_operation(matcher, operation.name, running):
                first = index if isinstance(matcher, matching.First) else None
                if first is None or first not in seen:
                    yield rule, first

    def function_rule(self, function: type[Function]) -> Rule | None:
        """Return the rule that the composite gives an autograd function of the model's own, or None."""
        return next(
            (
                rule
                for matcher, rule in self.composite.entries
                if isinstance(rule, FUNCTION) and matching.matches_function(matcher, function)
            ),
            None,
        )

    def operation_rule(self, operation: Operation, frames: Sequence[Frame]) -> Rule | None:
        """Return the rule that the composite gives an operation inside the running modules, or None."""
        inside = self._inside(frames)
        found = self._operations.get(inside)
        if found is None:
            found = self._operations[inside] = {}
        if operation.name not in found:
            found[operation.name] = self._find_rule(operation, frames)
        return found[operation.name]

    def decisions_in(self, frames: Sequence[Frame], *, by_convention: bool) -> dict[str, Decision]:
        """Return what was decided of operations inside the running modules, by name, to be added to.

        ``by_convention`` tells whether those that no entry names follow the conventions.
        """
        inside = self._inside(frames), by_convention
        found = self._decisions.get(inside)
        if found is None:
            found = self._decisions[inside] = {}
        return found

    def _inside(self, frames: Sequence[Frame]) -> Hashable:
        """Return what stands for the running modules, as far as rules of operations depend on them."""
        if self._placed:
            return tuple(id(frame.module) for frame in frames)
        return id(frames[-1].module) if frames else 0

    def sure_rule(self, module: nn.Module) -> Rule | None:
        """Return the rule that each call of a layer gets, unless it depends on what ran before."""
        rule, first = next(iter(self._layers.get(id(module), ())), (None, None))
        return rule if first is None else None

    def _find_rule(self, operation: Operation, frames: Sequence[Frame]) -> Rule | None:
        found, entry, own = self._rules.get(id(frames[-1].module) if frames else 0, (None, None, False))
        if found is not None and not serves(found, operation):
            found, entry, own = None, None, False
        running = self._running(frames)
        for matcher, rule in self.composite.entries[:entry]:
            if isinstance(rule, LayerRule) or not serves(rule, operation):
                # A rule for linear maps serves a product with a parameter, which is a layer.
                continue
            if matching.matches_operation(matcher, operation.name, running, placed=own):
                return rule
        return found

    def _running(self, frames: Sequence[Frame]) -> list[tuple[str, nn.Module]]:
        """Return the running modules, each under all its names."""
        return [place for frame in frames for place in self._places.get(id(frame.module), ())] if self._placed else []


def served_by_operation(module: nn.Module) -> bool:
    """Whether a module is one of torch whose single operation takes Identity and Pass by itself."""
    types = (*matching.Activation.types, *matching.Dropout.types, nn.Flatten, nn.Unflatten)
    return is_linear_layer(module) or isinstance(module, types)
