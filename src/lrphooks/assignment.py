"""Which rule each module gets: a pure function of composite and model, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.linear import Bilinear, Linear
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from lrphooks import matching
from lrphooks.engine.errors import LRPError
from lrphooks.rules.base import LayerRule, Rule
from lrphooks.rules.input import InputRule
from lrphooks.rules.operation import Constant, DeconvReLU, Gradient, GuidedReLU, Identity, OperationRule, Pass
from lrphooks.torch_private import Convolution

if TYPE_CHECKING:
    from lrphooks.entries import Entries


@dataclass(frozen=True)
class Candidate:
    """A rule that a module may get: entry number, rule, and whether only the first executed layer gets it."""

    entry: int
    rule: Rule
    first: bool


@dataclass(frozen=True)
class Row:
    """One module: its names, its type, its candidate rules in order, and what it is if it has none."""

    names: tuple[str, ...]
    type: str
    candidates: tuple[Candidate, ...]
    otherwise: str

    @property
    def name(self) -> str:
        """The name that the module has, the first if it is registered under several."""
        return self.names[0]

    @property
    def rule(self) -> Rule | None:
        """The rule for certain, where there is one and it does not depend on what runs first."""
        return self.candidates[0].rule if self.candidates and not self.candidates[0].first else None

    def __str__(self) -> str:
        parts = [f"{c.rule!r} if executed first" if c.first else repr(c.rule) for c in self.candidates]
        if not self.candidates or self.candidates[-1].first:
            parts.append(self.otherwise)
        return ", else ".join(parts)


@dataclass(frozen=True)
class Assignment(Sequence[Row]):
    """The rows of all modules, in the order in which the model registers them; ``assignment["fc"]`` finds one."""

    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, key: int | slice | str) -> Row | tuple[Row, ...]:  # type: ignore[override]  # names too
        if isinstance(key, str):
            for row in self.rows:
                if key in row.names:
                    return row
            raise KeyError(f"no module is named {key!r}")
        return self.rows[key]

    def __str__(self) -> str:
        header = ("module", "type", "rule")
        table = [header, *((", ".join(row.names) or "(model)", row.type, str(row)) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in table]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def operation_name(module: nn.Module) -> str | None:
    """Return the linear operation that a layer of torch runs, or None for other modules."""
    if isinstance(module, Linear):
        return "linear"
    if isinstance(module, Convolution):
        return f"conv{'_transpose' if module.transposed else ''}{len(module.kernel_size)}d"
    return None


def is_linear_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's linear layers (lazy ones included) or derives from one."""
    return operation_name(module) is not None


def assign(
    composite: Entries, model: nn.Module, modules: dict[nn.Module, list[matching.Path]] | None = None
) -> Assignment:
    """Return the assignment of a composite to a model, whose modules are as :func:`matching.paths_of` gives them.

    Raises
    ------
    LRPError
        If a name pattern matches no module.
    TypeError
        If the model is no module, or a rule cannot serve a layer that its entry names.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module to explain, got {model!r} of type {type(model).__name__}.")
    modules = matching.paths_of(model) if modules is None else modules
    _check_patterns(composite, modules)
    entries = _located(composite, modules)
    rows = []
    for module, paths in modules.items():
        candidates = _by_module(entries, module, paths)
        operation = operation_name(module)
        if operation is not None and (not candidates or candidates[-1].first):
            candidates += _by_operation(composite, operation, module, paths, {c.entry for c in candidates})
        otherwise = "no rule" if operation is not None else "by operation"
        names = tuple(path[-1][0] for path in paths)
        rows.append(Row(names, type(module).__name__, tuple(candidates), otherwise))
    return Assignment(tuple(rows))


def _by_module(entries: Sequence[tuple[Any, Rule]], module: nn.Module, paths: list[matching.Path]) -> list[Candidate]:
    """Return the rules whose matchers describe the module itself, up to the first that holds for certain."""
    candidates: list[Candidate] = []
    operation = operation_name(module) or ""
    for index, (matcher, rule) in enumerate(entries):
        if not any(
            matching.matches_module(matcher, path) or matching.matches_operation(matcher, operation, path, placed=True)
            for path in paths
        ):
            continue
        problem = cannot_serve(rule, module)
        if problem is None:
            candidates.append(Candidate(index, rule, isinstance(matcher, matching.First)))
            if not candidates[-1].first:
                break
        elif not matching.is_wildcard(matcher):
            name = paths[0][-1][0]
            raise TypeError(
                f"{rule!r} cannot serve {f'module {name!r}' if name else 'the model'} ({type(module).__name__}): "
                f"{problem}. It was matched by entry {index}, ({matching.describe(matcher)}, ...) of the composite."
                f"{'' if name else ' The model itself is a module too, with an empty name.'}"
            )
    return candidates


def _by_operation(
    composite: Entries, operation: str, module: nn.Module, paths: list[matching.Path], seen: set[int]
) -> list[Candidate]:
    """Return the rules whose matchers describe the operation that a layer runs."""
    candidates: list[Candidate] = []
    for index, (matcher, rule) in enumerate(composite.entries):
        if index in seen or cannot_serve(rule, module):
            continue
        if not any(matching.matches_operation(matcher, operation, path) for path in paths):
            continue
        candidates.append(Candidate(index, rule, isinstance(matcher, matching.First)))
        if not candidates[-1].first:
            break
    return candidates


def cannot_serve(rule: Rule, module: nn.Module) -> str | None:
    """Return why a rule cannot serve a module, or None if it can, as far as the type tells."""
    if isinstance(module, RNNBase | RNNCellBase):
        return _cannot_serve_cells(rule)
    native = type(module).__module__.startswith("torch.nn.modules") and type(module).__name__ != "Identity"
    if isinstance(rule, LayerRule):
        return None if is_linear_layer(module) else _without_weight(module, native=native)
    if is_linear_layer(module) and not isinstance(rule, Gradient | Pass | Constant | OperationRule):
        return "the rule is not for linear layers"
    if isinstance(rule, GuidedReLU | DeconvReLU) and native and not isinstance(module, nn.ReLU):
        return "the rule is for torch.nn.ReLU"
    if isinstance(rule, Identity) and any(True for _ in module.children()):
        return "it is a container; Pass() hands relevance through a whole module"
    return None


def _without_weight(module: nn.Module, *, native: bool) -> str | None:
    """Return why a rule for linear maps cannot serve a module that is no linear layer of torch."""
    if any(True for _ in module.children()):
        return 'it is a container; match its layers instead, by type or with a pattern such as "name.*"'
    if native:
        kind = "it is linear in each of two inputs" if isinstance(module, Bilinear) else "it is no linear layer"
        return f"{kind}, and the rule needs a weight (torch.nn.Linear, ConvNd or ConvTransposeNd)"
    return None


def _cannot_serve_cells(rule: Rule) -> str | None:
    """Return why a rule cannot serve a recurrent layer: one for linear maps is for those in its cells."""
    if isinstance(rule, LayerRule) and isinstance(rule.inner, InputRule):
        return "it is for input values, and the layer's linear maps see its hidden state too"
    if isinstance(rule, LayerRule | Gradient | Pass | Constant):
        return None
    return "each operation of a cell has its own rule; match its gates (lrphooks.matching.Gate) or products (torch.mul)"


def _check_patterns(composite: Entries, modules: dict[nn.Module, list[matching.Path]]) -> None:
    paths = [path for each in modules.values() for path in each]
    for index, (matcher, _) in enumerate(composite.entries):
        for pattern in matching.patterns(matcher):
            if not any(matching.matches_module(pattern, path) for path in paths):
                known = ", ".join(repr(path[-1][0]) for path in paths[1:9]) + (", ..." if len(paths) > 9 else "")
                raise LRPError(
                    f"The name pattern {pattern!r} of entry {index} matches no module of the model. Is it misspelt? "
                    f"The modules are {known}."
                )


def _located(composite: Entries, modules: dict[nn.Module, list[matching.Path]]) -> list[tuple[Any, Rule]]:
    """Return the entries with their ranges of layers found in the model."""
    try:
        return [(matching.located(matcher, modules), rule) for matcher, rule in composite.entries]
    except ValueError as error:
        raise LRPError(str(error)) from None
