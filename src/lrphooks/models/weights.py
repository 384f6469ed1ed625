"""Weights from a file: tensors alone, never code."""

from __future__ import annotations

import importlib
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrphooks.extras import install
from lrphooks.models.errors import MissingExtraError, ModelError

#: What says that the weights of a network are to be drawn at random.
RANDOM = "random"
#: Where training programs keep the state of the network within a checkpoint.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params")
#: How many names of each kind a message lists.
_LISTED = 4
#: The end of the name of what counts batches in a BatchNorm.
_COUNTER = "num_batches_tracked"
#: The switch of torch for it.
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

_WAY_OUT = (
    "Where you trust the file, keep its tensors alone, and give that file: "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth'), or model.state_dict() of a model."
)


def load_weights(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a file of weights into a network, and return what was done, in words.

    Read are ``.safetensors`` and what ``torch.save`` writes, with ``weights_only=True``. A checkpoint that holds the
    state under a usual name is unwrapped, and a prefix that all names share and the network does not have is cut off.

    Raises
    ------
    ModelError
        If the file cannot be read, holds more than tensors, or does not fit the network.
    MissingExtraError
        If the file is a ``.safetensors`` and the package to read it is not installed.
    """
    state, notes = _state(_read(path), path)
    expected = network.state_dict()
    state, prefix = _without_prefix(state, expected)
    if prefix:
        notes.append(f"cut {prefix!r} off {len(state)} names")
    _check(state, expected, path)
    notes += _check_values(state, expected, path)
    try:
        found = network.load_state_dict(state, strict=False)
    # Networks and tensors of a person's own have a say in it.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} does not fit the model: {type(error).__name__}: {reason}") from error
    if found.missing_keys or found.unexpected_keys:
        raise ModelError(
            f"{path} does not fit the model: {_listed('missing', found.missing_keys)}"
            f"{_listed('not of the model', found.unexpected_keys)}Is it the file of another model?"
        )
    return (f"{path}{''.join(f', {note}' for note in notes)}",)


def _read(path: Path) -> Any:
    if not os.path.isfile(path):  # noqa: PTH113  it never raises
        there = os.path.lexists(path)
        kind = "is no ordinary file" if there else "there is no file of weights"
        raise ModelError(f"{path} {kind}: give a file of weights." if there else f"{kind} {path}: check the path.")
    if path.suffix.lower() == ".safetensors":
        return _safetensors(path)
    try:
        with warnings.catch_warnings():
            # Of what it warns, it raises an error next, or nothing comes of it.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" not in reason and "GLOBAL" not in reason:
            raise ModelError(f"{path} is no file of weights that torch.save wrote: {_first(reason)}") from error
        raise ModelError(
            f"{path} is refused: it holds more than tensors ({_cause(reason)}), and reading that could run code of the "
            f"file's own. {_WAY_OUT}"
        ) from error
    # Broken files fail in many ways.
    except Exception as error:
        if "TorchScript" in str(error):
            raise ModelError(
                f"{path} is a TorchScript program, whose inside cannot be seen. Give the weights of the model that it "
                "was made from, or a program of torch.export (.pt2)."
            ) from error
        raise ModelError(f"{path} is no whole file of weights: {type(error).__name__}: {_first(str(error))}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs the Python package safetensors, which could not be imported ({error}). Install it: "
            f"{install('cli')}."
        ) from error
    try:
        state: dict[str, Tensor] = load_file(path)
    except Exception as error:
        raise ModelError(f"{path} is no whole file of safetensors: {_first(str(error))}") from error
    return state


def _first(text: str) -> str:
    return text.strip().partition("\n")[0]


def _cause(reason: str) -> str:
    """Return the part of torch's message that names what stands in the way."""
    lines = [line.strip() for line in reason.splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0]).partition(". ")[0]


def _state(loaded: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name within what a file holds, and how they were found."""
    notes: list[str] = []
    seen: list[Any] = []
    while isinstance(loaded, Mapping) and not all(isinstance(value, Tensor) for value in loaded.values()):
        seen.append(loaded)
        inner = next(
            (
                name
                for name in WRAPPERS
                # A file may hold itself.
                if isinstance(loaded.get(name), Mapping) and not any(loaded[name] is each for each in seen)
            ),
            None,
        )
        if inner is None:
            kinds = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in [*loaded.items()][:_LISTED])
            raise ModelError(
                f"{path} holds no tensors by name, but {{{kinds}{', ...' if len(loaded) > _LISTED else ''}}}. The "
                f"state of a network is looked for under {', '.join(WRAPPERS)}: save model.state_dict() by itself."
            )
        left_out = [str(key) for key in loaded if key != inner]
        notes.append(f"its {inner!r}" + (f" (not {', '.join(left_out[:_LISTED])})" if left_out else ""))
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not loaded:
        kind = "nothing" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise ModelError(f"{path} holds {kind}, not tensors by name. Save model.state_dict().")
    return {str(name): value for name, value in loaded.items()}, notes


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state without the prefix that all its names share, as far as the network does not have it."""
    prefix = ""
    while not any(name in expected for name in state):
        parts = {name.partition(".")[0] for name in state}
        if len(parts) != 1 or not all("." in name for name in state):
            return (state, "") if not prefix else ({f"{prefix}{name}": value for name, value in state.items()}, "")
        prefix += f"{parts.pop()}."
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state, prefix


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of another shape than the network's."""
    # What is nested has no shape, and lazy layers take any.
    wrong = {
        name: value
        for name, value in state.items()
        if name in expected
        and not value.is_nested
        and not is_lazy(expected[name])
        and value.shape != expected[name].shape
    }
    if not wrong:
        return
    texts = [
        f"{name} is {tuple(value.shape)} where the model has {tuple(expected[name].shape)}"
        for name, value in wrong.items()
    ]
    rows = {
        value.shape[0] if value.dim() and value.shape[1:] == expected[name].shape[1:] else 0
        for name, value in wrong.items()
    }
    other = len(rows) == 1 and 0 not in rows
    hint = f" Has it another number of classes? Then give --classes {rows.pop()}." if other else ""
    more = f", and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
    raise ModelError(f"{path} does not fit the model: {'; '.join(texts[:_LISTED])}{more}.{hint}")


def _check_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> list[str]:
    """Refuse tensors whose numbers the network cannot hold, and return what is rounded, in words."""
    wrong, rounded = [], []
    for name, value in state.items():
        if name not in expected:
            continue
        mine = expected[name]
        form, wanted = _form(value), _form(mine)
        # It counts batches for training, and averages of checkpoints make fractions of it.
        if form != wanted and not (name.endswith(_COUNTER) and {form, wanted} <= {"real numbers", "integers"}):
            wrong.append(f"{name} holds {form} where the model has {wanted}")
        elif value.is_floating_point() and _rounds(value.dtype, mine.dtype):
            if bool((value.to(mine.dtype).double().isinf() & ~value.double().isinf()).any()):
                wrong.append(f"{name} holds numbers beyond the range of the model's {mine.dtype}")
            rounded.append(f"{str(value.dtype).removeprefix('torch.')} to {str(mine.dtype).removeprefix('torch.')}")
    if wrong:
        more = f", and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise ModelError(
            f"{path} does not fit the model: {'; '.join(wrong[:_LISTED])}{more}. Save the state of a network with "
            "dense weights of real numbers: model.float().state_dict(), before it is quantised or made sparse."
        )
    return [f"rounded {rounded.count(each)} tensors from {each}" for each in dict.fromkeys(rounded)]


def _form(value: Tensor) -> str:
    """Return what kind of numbers a tensor holds, and how, as messages name it."""
    if value.is_meta:
        return "no values (meta tensor)"
    if value.is_nested:
        return "rows of different lengths (nested tensor)"
    if value.is_quantized:
        return f"quantised numbers ({value.dtype})"
    if value.layout is not torch.strided:
        return f"sparse numbers ({value.layout})"
    if value.is_complex():
        return "complex numbers"
    if value.is_floating_point():
        return "real numbers"
    return "truth values" if value.dtype is torch.bool else "integers"


def _rounds(given: torch.dtype, mine: torch.dtype) -> bool:
    """Whether numbers lose digits or range."""
    if not mine.is_floating_point:
        return False
    return torch.finfo(given).eps < torch.finfo(mine).eps or torch.finfo(given).max > torch.finfo(mine).max


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}). "


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` of other libraries read tensors alone, whatever they ask for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
