"""One explanation as one graph of torch's operations: traced once, with its guards, and compiled."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lrphooks.compilation.kept import SMALL, Kept, split
from lrphooks.compilation.preparation import Prepared, share_laid_out_weights, take_scales_out_of_weights
from lrphooks.compilation.snapshot import Snapshot
from lrphooks.engine.errors import LRPError
from lrphooks.engine.reporting import site_of
from lrphooks.engine.tracing import Condition, tracing
from lrphooks.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    allow_any_size,
    enable_python_dispatcher,
    inductor_freezes,
    source_of_constant,
    traced,
    tracing_through_compiled_functions,
    tree_map_only,
)

if TYPE_CHECKING:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

#: The sizes of a tensor's dimensions, None for any size.
Sizes = tuple["int | None", ...]
#: From the tensors of a call to what the graph returns of it.
Explain = Callable[[list[Tensor]], list[Tensor]]


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """An explanation of inputs of certain shapes, for as long as the model stays what it was.

    module: the graph, in which the model's parameters and buffers are attributes. placeholders: its inputs, without
    values. conditions: what must hold of values, whose results come last among its own.
    """

    module: GraphModule
    placeholders: tuple[FakeTensor, ...]
    conditions: tuple[Condition, ...]
    snapshot: Snapshot
    _shapes: ShapeEnv
    _guards: str | None
    _kept: Kept | None
    _run: Callable[..., list[Tensor]] = field(repr=False)

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """The sizes that each input must have."""
        return tuple(tuple(map(_known_size, t.shape)) for t in self.placeholders)

    def serves(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the graph holds for inputs of these shapes."""
        sizes = zip(self.sizes, tensors, strict=True)
        if not all(n is None or n == m for each, t in sizes for n, m in zip(each, t.shape, strict=True)):
            return False
        return self._guards is None or bool(self._shapes.evaluate_guards_expression(self._guards, list(tensors)))

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return what was traced, of other tensors.

        Raises
        ------
        Exception
            The error of a condition on values that does not hold.
        """
        given = [t.detach() for t in tensors]
        for tensor, sizes in zip(given, self.sizes, strict=True):
            for dim, size in enumerate(sizes):
                if size is None:
                    allow_any_size(tensor, dim)
        if any(t.is_cuda for t in given):
            # What CUDA graphs returned before may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            found = self._run(*given, *(self._kept() if self._kept is not None else ()))
        checked = sum(1 + len(condition.values) for condition in self.conditions)
        results, rest = found[: len(found) - checked - 1], iter(found[len(found) - checked - 1 :])
        if not bool(next(rest)):
            for condition in self.conditions:
                holds, *values = (next(rest) for _ in (None, *condition.values))
                Condition(holds, tuple(values), condition.error).check()
        return [t.clone() for t in results] if any(t.is_cuda for t in given) else results


def trace(
    explain: Explain,
    tensors: Sequence[Tensor],
    sizes: Sequence[Sizes],
    model: nn.Module,
    compile_graph: Callable[[GraphModule], Callable[..., Any]],
) -> Graph:
    """Return ``explain`` of tensors of the given sizes as a graph.

    The whole of it runs once on tensors without values, autograd and the rules' nodes included. The model takes part
    as it is: nothing is exchanged in it, and its tensors become attributes of the graph.

    Raises
    ------
    LRPError
        If the model or the target asks for values, which a graph does not have.
    """
    # Here, for it takes long to import.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: PLC0415

    snapshot = Snapshot(model)
    shapes = ShapeEnv()
    fake = _WithoutValues(shape_env=shapes, allow_non_fake_inputs=True)
    conditions: list[Condition] = []

    def everything(*placeholders: Tensor) -> list[Tensor]:
        with tracing() as met, Prepared():
            found = explain(list(placeholders))
        conditions.extend(met)
        all_hold = torch.stack([condition.holds for condition in met]).all()
        return [*found, all_hold, *(t for condition in met for t in (condition.holds, *condition.values))]

    with torch.inference_mode(mode=False), torch.autograd.set_multithreading_enabled(False):
        placeholders = [_placeholder(fake, *each) for each in zip(tensors, sizes, range(len(tensors)), strict=True)]
        try:
            with (
                fake,
                enable_python_dispatcher(),
                # Functions of the model that are compiled by themselves become part of this graph.
                tracing_through_compiled_functions(),
            ):
                module = traced(everything, *placeholders)
        except Exception as error:
            if _asks_for_values(error):
                raise _untraceable(error) from error
            raise
    _write_out_scaled_sums(module)
    take_scales_out_of_weights(module)
    module.graph.eliminate_dead_code()
    kept = None
    # Where inductor freezes weights, it computes and packs them itself, if they are the graph's own.
    if not inductor_freezes():
        share_laid_out_weights(module, SMALL)
        kept = split(module, model)
    module.recompile()
    guards = shapes.produce_guards_expression(placeholders)
    run = compile_graph(module)
    return Graph(module, tuple(placeholders), tuple(conditions), snapshot, shapes, guards, kept, run)


def _write_out_scaled_sums(module: GraphModule) -> None:
    """Write ``add(a, b, alpha=k)`` as ``add(a, k * b)``.

    The inductor of torch 2.13 forgets alpha where it merges the sum with a matrix product.
    """
    aten = torch.ops.aten
    for node in module.graph.nodes:
        alpha = node.kwargs.get("alpha", 1)
        if node.target in (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor) and alpha != 1:
            with module.graph.inserting_before(node):
                scaled = module.graph.call_function(aten.mul.Tensor, (node.args[1], alpha))
            node.args, node.kwargs = (node.args[0], scaled), {}


@final
class _WithoutValues(FakeTensorMode):
    """Calculates without values, also where a call has the model's own tensors alone.

    torch's mode by itself carries out some of these calls, such as the count of batches in a BatchNorm, which would
    change the model while it is traced.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.lift_fns:
            args, kwargs = tree_map_only(Tensor, self._emptied, (args, kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _emptied(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.from_tensor(tensor, static_shapes=True)


def _known_size(size: int | torch.SymInt) -> int | None:
    """Return a size, or None where the graph is for any; some are fixed by what the model does with them."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _placeholder(fake: FakeTensorMode, tensor: Tensor, sizes: Sizes, position: int) -> FakeTensor:
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext  # noqa: PLC0415  as above

    dynamic = [DimDynamic.DYNAMIC if size is None else DimDynamic.STATIC for size in sizes]
    return fake.from_tensor(
        tensor.detach(),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic),
        source=source_of_constant(f"input{position}"),
    )


#: Where torch cannot go on without values, in the words of its errors; its classes for that have changed.
_WORDS = ("data-dependent", "data dependent", "tracing tensor", "FakeTensor", "fake tensor", "tensor subclasses")
_CLASSES = (DataDependentOutputException, DynamicOutputShapeException)


def _asks_for_values(error: Exception) -> bool:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # noqa: PLC0415  as above

    return isinstance(error, (*_CLASSES, GuardOnDataDependentSymNode)) or (
        isinstance(error, RuntimeError | NotImplementedError) and any(word in str(error) for word in _WORDS)
    )


def _untraceable(error: Exception) -> LRPError:
    site = site_of(reversed(list(traceback.walk_tb(error.__traceback__))))
    reason = str(error).splitlines()[0][:200] if str(error) else ""
    return LRPError(
        f"The explanation cannot become a graph{f': {site}' if site else ''} asks for values of tensors, which a graph "
        "does not have while it is traced. It comes of .item(), .tolist(), bool(tensor), .numpy() or a Python if on "
        "values, in the model or in the target function. Write it with torch.where, or call lrphooks.lrp, which "
        f"needs no graph. (torch: {type(error).__name__}: {reason})"
    )
