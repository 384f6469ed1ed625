"""Finds out what kind of operation a torch function is, whatever name it was called by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import resolve_name

from lrphooks import torch_private
from lrphooks.operations import names

Kind = Literal[
    "passive", "unknown", "relu", "shape", "split", "select", "clamp", "combination", "product", "added product",
    "division", "power", "activation", "constant", "moments", "shift", "softmax", "attention", "normalization",
    "batch norm", "linear", "gate", "composed", "recurrent",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """A torch function as the engine knows it.

    name: the plain name, without the underscore of the in-place form; the same for all aliases.
    kind: what it does to relevance.
    in_place: whether it writes to its first argument.
    reversed: whether the operands arrive in reverse order (``2 - x``).
    """

    name: str
    kind: Kind
    in_place: bool = False
    reversed: bool = False

    def __str__(self) -> str:
        return self.name


_KINDS: dict[str, Kind] = {
    **dict.fromkeys(names.SHAPE.split(), "shape"),
    **dict.fromkeys(names.SPLIT.split(), "split"),
    **dict.fromkeys(names.SELECT.split(), "select"),
    **dict.fromkeys(names.CLAMP.split(), "clamp"),
    **dict.fromkeys(names.LINEAR_COMBINATION.split(), "combination"),
    **dict.fromkeys(names.PRODUCT.split(), "product"),
    **dict.fromkeys(names.ADDED_PRODUCT.split(), "added product"),
    **dict.fromkeys(names.DIVISION.split(), "division"),
    **dict.fromkeys(names.ACTIVATION.split(), "activation"),
    **dict.fromkeys(names.CONSTANT.split(), "constant"),
    **dict.fromkeys(names.SHIFT.split(), "shift"),
    **dict.fromkeys(names.SOFTMAX.split(), "softmax"),
    **dict.fromkeys(names.ATTENTION.split(), "attention"),
    **dict.fromkeys(names.NORMALIZATION.split(), "normalization"),
    **dict.fromkeys(names.LINEAR.split(), "linear"),
    **dict.fromkeys(names.COMPOSED.split(), "composed"),
    **dict.fromkeys(names.NATIVE.split(), "composed"),
    **dict.fromkeys((f"_foreach_{name}" for name in names.FOREACH.split()), "composed"),
    **dict.fromkeys(names.RECURRENT.split(), "recurrent"),
    **dict.fromkeys(("pow", "float_power", "square", "sqrt"), "power"),
    **dict.fromkeys(("var_mean", "std_mean"), "moments"),
    "relu": "relu",
    "batch_norm": "batch norm",
    "glu": "gate",
}

_REVERSED = {"rsub": "sub", "rdiv": "div", "rpow": "pow", "rmatmul": "matmul"}


def classify(name: str) -> Operation:
    """Return the operation of a plain, second, in-place or operator name."""
    name = names.OPERATORS.get(name, name)
    name = names.ALIASES.get(name, name)
    if name in _REVERSED:
        base = _REVERSED[name]
        return Operation(base, _KINDS[base], reversed=True)
    if name in _KINDS:
        return Operation(name, _KINDS[name], in_place=name == "setitem")
    base = names.ALIASES.get(name[:-1], name[:-1])
    if name.endswith("_") and not name.startswith("__") and base in _KINDS:
        return Operation(base, _KINDS[base], in_place=True)
    for prefix in ("special_", "linalg_", "fft_"):
        if name.startswith(prefix):
            return classify(name.removeprefix(prefix))
    in_place = name.endswith("_") and not name.startswith("__")
    return Operation(name.removesuffix("_") if in_place else name, "unknown", in_place=in_place)


#: The namespaces that have torch functions for users, by the code that names them.
NAMESPACES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": F,
    "torch.special": torch.special,
    "torch.linalg": torch.linalg,
    "torch.fft": torch.fft,
    "torch.functional": torch.functional,
    "torch.Tensor": torch.Tensor,
}


def _namespaces() -> Iterator[Any]:
    # The functional namespace comes last: its plain Python wrappers are the ones a function mode sees.
    yield from torch_private.NAMESPACES
    yield from (torch.special, torch.linalg, torch.fft, torch.functional, torch, torch.Tensor, F)


@cache
def _known() -> dict[Any, Operation]:
    table: dict[Any, Operation] = {}
    plain = [*_KINDS, *names.ALIASES]
    wanted = [*plain, *(f"{name}_" for name in plain), *names.OPERATORS]
    for namespace in _namespaces():
        for name in wanted:
            for full in (name, f"special_{name}", f"linalg_{name}", f"fft_{name}"):
                function = getattr(namespace, full, None)
                if callable(function):
                    table[function] = classify(name)
    for name in names.REORDERED:
        table[getattr(torch, name)] = Operation(name, "composed")
    for name in dir(torch.Tensor):
        descriptor = torch.Tensor.__dict__.get(name) or getattr(torch_private.TensorBase, name, None)
        getter = getattr(descriptor, "__get__", None)
        if callable(descriptor) or getter is None:
            continue
        tensor_valued = name in names.TENSOR_PROPERTIES
        table[getter] = Operation(name, _KINDS[name] if tensor_valued else "passive")
    for name in _PASSIVE.split():
        function = getattr(torch.Tensor, name, None)
        if function is not None:
            table.setdefault(function, Operation(name, "passive"))
    return table


_PASSIVE = """
    size dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex is_signed
    is_same_size data_ptr element_size get_device item tolist numpy detach detach_ __len__ __bool__ __int__
    __float__ __index__ __contains__ __format__ __repr__ __hash__ register_hook retain_grad requires_grad_ backward
    eq ne lt le gt ge argmax argmin argsort isnan isinf isfinite any all new_zeros new_ones new_empty new_full
    new_tensor bool long int short char byte __eq__ __ne__ __lt__ __le__ __gt__ __ge__ storage untyped_storage
    logical_not logical_and logical_or bitwise_not is_set_to
"""


@cache
def _overload(name: str) -> Operation:
    return Operation(name, "composed") if name in names.REORDERED else classify(name)


@cache
def _looked_up() -> dict[Any, Operation]:
    return dict(_known())


def is_known(function: Callable[..., Any]) -> bool:
    """Whether a function is listed here; others may be torch functions all the same."""
    return function in _known()


def lookup(function: Callable[..., Any]) -> Operation:
    """Return what the engine knows of a torch function; an unheard-of one has the kind ``unknown``."""
    table = _looked_up()
    found = table.get(function)
    if found is None:
        if isinstance(function, torch_private.CustomOperation):
            # What its decorator returns; calls of it are calls of the overload.
            function = torch_private.overload_of(function)
        if isinstance(function, torch_private.HigherOrder):
            inside = function.__name__ in names.HIGHER_ORDER.split()
            found = Operation(f"higher_order.{function.__name__}", "composed" if inside else "unknown")
        elif isinstance(function, torch_private.Overload | torch_private.Overloads):
            packet = function.overloadpacket if isinstance(function, torch_private.Overload) else function
            found = _overload(packet.__name__) if str(packet).startswith("aten.") else Operation(str(packet), "unknown")
        else:
            found = _unlisted(function)
        table[function] = found
    return found


def _unlisted(function: Callable[..., Any]) -> Operation:
    """Return the operation of a function that is not listed, under the name that its aliases share."""
    path = resolve_name(function)
    if path is None:
        name = getattr(function, "__name__", repr(function))
        if getattr(torch, name, None) is function:
            return classify(name)
        return Operation(getattr(function, "__qualname__", name), "unknown")
    namespace, _, name = path.rpartition(".")
    if namespace == "torch.foreach":
        return classify(f"_foreach_{name}")
    return classify(name) if namespace in NAMESPACES else Operation(path.removeprefix("torch."), "unknown")


def identify(function: Callable[..., Any]) -> str:
    """Return the plain name of a torch function, the one that all its aliases share."""
    return lookup(function).name


@cache
def _squeezed() -> dict[str, Operation]:
    return {name.replace("_", "").lower(): classify(name) for name in (*names.ALIASES, *_KINDS)}


def by_node(name: str) -> Operation:
    """Return the operation that leaves an autograd node of a name, such as ``NativeLayerNorm``, if it can be told."""
    return _squeezed().get(name.lower()) or Operation(name, "unknown")
