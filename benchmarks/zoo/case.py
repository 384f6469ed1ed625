"""What the zoo measures: a model, its inputs, and which value of its output is explained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a model's output, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's parameters and buffers with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


@dataclass(frozen=True)
class Case:
    """A model ready to be explained.

    model: the module, unmodified, in evaluation mode.
    arguments: its positional inputs.
    keywords: its inputs by keyword.
    explained: names of the inputs that relevance is asked of: positions as numbers, the rest by keyword.
    outputs: picks from the model's output the tensors to explain; by default all of them.
    additive: a pattern for further parameters and buffers that add to activations, beside those known by name.
    rows: whether the first dimension of inputs and outputs counts rows.
    named: yields the model's parameters and buffers with telling names.
    entries: what a composite needs in front of its own entries: rules for autograd functions of the model's own.
    """

    model: nn.Module
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    explained: tuple[int | str, ...] = (0,)
    outputs: Callable[[Any], Any] = lambda output: output
    additive: str = ""
    rows: bool = True
    named: Callable[[nn.Module], Iterable[tuple[str, Tensor]]] = named_tensors
    entries: tuple[tuple[Any, Any], ...] = ()

    def cast(self, dtype: torch.dtype) -> Case:
        """Return the case with model and inputs in another precision."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.to(dtype)
            return [convert(v) for v in value] if isinstance(value, list) else value

        arguments = tuple(convert(value) for value in self.arguments)
        keywords = {name: convert(value) for name, value in self.keywords.items()}
        return replace(self, model=self.model.to(dtype), arguments=arguments, keywords=keywords)

    def inputs(self) -> list[Tensor]:
        """Return fresh copies of the explained inputs, that require gradients."""
        return [self._given(name).detach().clone().requires_grad_() for name in self.explained]

    def _given(self, name: int | str) -> Tensor:
        value: Tensor = self.arguments[name] if isinstance(name, int) else self.keywords[name]
        return value

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return the tensors of the model's output for these explained inputs."""
        arguments, keywords = list(self.arguments), dict(self.keywords)
        for name, tensor in zip(self.explained, inputs, strict=True):
            if isinstance(name, int):
                arguments[name] = tensor
            else:
                keywords[name] = tensor
        found = list(tensors_of(self.outputs(self.model(*arguments, **keywords))))
        if not found:
            raise ValueError("the model returns no floating-point tensor")
        return found

    def choose(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return, for each tensor, the place of the largest value of each row (or of all)."""
        return [self._flat(output.detach()).argmax(1, keepdim=True) for output in outputs]

    def pick(self, outputs: list[Tensor], places: list[Tensor]) -> Tensor:
        """Return f(x): the sum of the values at these places."""
        picked = [self._flat(output).gather(1, place) for output, place in zip(outputs, places, strict=True)]
        return torch.cat([value.flatten() for value in picked]).sum()

    def _flat(self, output: Tensor) -> Tensor:
        return output.reshape(len(output), -1) if self.rows and output.dim() > 1 else output.reshape(1, -1)


class Positional(nn.Module):
    """A case as a module of its explained inputs alone, for libraries that know no other."""

    def __init__(self, case: Case, places: list[Tensor]) -> None:
        super().__init__()
        self.model = case.model
        self.case = case
        self.places = places

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return f(x) as a (1, 1) tensor."""
        return self.case.pick(self.case(list(inputs)), self.places).reshape(1, 1)


@dataclass(frozen=True)
class Subject:
    """One row of the zoo: where a model comes from, its name, and how it is built.

    build: makes the case in single precision. typed: makes it in a given precision, for models that cannot be cast.
    """

    source: str
    name: str
    build: Callable[[], Case] | None = None
    typed: Callable[[torch.dtype], Case] | None = None

    @property
    def key(self) -> str:
        """The name by which results are kept."""
        return f"{self.source}/{self.name}"

    def case(self, dtype: torch.dtype, prepare: Callable[[Case], None] = lambda _: None) -> Case:
        """Return model and inputs in a precision, the same numbers whatever came before."""
        torch.manual_seed(0)
        if self.typed is not None:
            case = self.typed(dtype)
        else:
            assert self.build is not None
            with default_dtype(torch.float32):
                case = self.build()
        case.model.eval()
        prepare(case)
        return case if self.typed is not None else case.cast(dtype)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make floating-point tensors of this type where the model does not say."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
