"""A person's own models: a program of torch.export, or what a function of a Python module returns."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from lrphooks.models.errors import ModelError, UnknownModelError
from lrphooks.models.picture_model import PictureModel
from lrphooks.models.preparation import Size
from lrphooks.models.source import Request, Source, seeded
from lrphooks.models.weights import tensors_only

SUFFIX = ".pt2"
#: Operations that only programs have whose layers were taken apart.
_DECOMPOSED = (
    "aten.convolution.default",
    "aten._native_batch_norm_legit_no_training.default",
    "aten.native_layer_norm",
)


@final
class Exported(Source):
    """Programs of ``torch.export``, which hold their weights and the size of their input."""

    form = "PATH.pt2"
    about = "a file of torch.export"
    needs = ""

    def has(self, name: str) -> bool:
        return name.endswith(SUFFIX)

    def missing(self) -> str | None:
        return None

    def names(self) -> tuple[str, ...]:
        return ()

    def load(self, name: str, request: Request) -> PictureModel:
        request.refuse_classes(name)
        if not request.own_weights:
            raise ModelError(f"{name} holds its weights: --weights is for other models.")
        program = _program(Path(name))
        rows, channels, size = _input_of(program, name)
        if request.size is not None and size is not None and request.size != size:
            raise ModelError(
                f"{name} was exported for inputs of {size[1]} x {size[0]} pixels, and takes no other --size."
            )
        network = program.module()
        preparation = request.pixels(name, channels, size)
        return PictureModel(name, network, preparation, rows=rows, notes=("the program's own",))


@final
class Factory(Source):
    """What a function, or another name, of an importable module is."""

    form = "MODULE:FACTORY"
    about = "a function of your own"
    needs = ""

    def has(self, name: str) -> bool:
        module, colon, attribute = name.partition(":")
        return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))

    def missing(self) -> str | None:
        return None

    def names(self) -> tuple[str, ...]:
        return ()

    def load(self, name: str, request: Request) -> PictureModel:
        request.refuse_classes(name)
        made = named(name, "model")
        if not isinstance(made, nn.Module | PictureModel):
            if not callable(made):
                raise ModelError(f"{name} is a {type(made).__name__}, not a function that returns a network.")
            with seeded():
                made = called(name, made)
        network = made.network if isinstance(made, PictureModel) else made
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"{name} returned a {type(made).__name__}: it must return a torch.nn.Module, or a "
                "lrphooks.models.PictureModel that knows how to prepare pictures."
            )
        notes = (f"as {name} returned them",) if request.own_weights else request.fill(network)
        empty = next((each for each, value in network.state_dict().items() if getattr(value, "is_meta", False)), None)
        if empty is not None:
            raise ModelError(
                f"{name} returned a network whose {empty} is on the meta device, and so has no values: give weights "
                "with load_state_dict(..., assign=True) or to_empty(device='cpu') before it is returned."
            )
        called(f"{name}().eval", network.eval)
        if isinstance(made, PictureModel):
            return replace(made, network=network, notes=(*made.notes, *notes))
        return PictureModel(name, network, request.pixels(name, _channels(network)), notes=notes)


def named(name: str, what: str) -> Any:
    """Return what ``module:attribute`` names; modules of the current directory are found too.

    Raises
    ------
    UnknownModelError, ModelError
        If there is no such module or attribute, or the module raises.
    """
    module_name, _, path = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # It stays there: a model may import more when it runs.
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _raised(f"importing {module_name}", error) from error
        raise UnknownModelError(
            f"there is no Python module {error.name!r} for the {what} {name}: neither installed nor in the current "
            "directory."
        ) from error
    except KeyboardInterrupt:
        raise
    # A person's own code fails in any way, and may end the program as well.
    except BaseException as error:
        raise _raised(f"importing {module_name}", error) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:  # noqa: PERF203  few parts
            raise UnknownModelError(f"{module_name} has no {path!r} for the {what} {name}.") from error
        except Exception as error:
            raise _raised(f"{module_name}.{path}", error) from error
    return found


def called(name: str, function: Callable[[], Any]) -> Any:
    """Return what a person's own function returns.

    Raises
    ------
    ModelError
        If it raises.
    """
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _raised(f"{name}()", error) from error


def _raised(what: str, error: BaseException) -> ModelError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"(in {Path(place.filename).name}, line {place.lineno})"
    if isinstance(error, SystemExit):
        return ModelError(
            f"{what} called sys.exit({'' if error.code is None else repr(error.code)}) {where}, as a program does that "
            'reads its own command line: put such a part below if __name__ == "__main__", where an import does not '
            "reach it."
        )
    text = " ".join(str(error).split())
    return ModelError(f"{what} raised {type(error).__name__}{': ' if text else ''}{text} {where}")


def _program(path: Path) -> torch.export.ExportedProgram:
    if not os.path.isfile(path):  # noqa: PTH113  it never raises
        raise UnknownModelError(f"there is no program {path}: check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            opaque = [name for name in archive.namelist() if "/constants/opaque_obj" in name]
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path} is no whole program of torch.export: {error}.") from error
    if opaque:
        raise ModelError(
            f"{path} is refused: it holds pickled objects, and reading them could run code of the file's own."
        )
    try:
        with tensors_only(), warnings.catch_warnings():
            # Of the bytes that torch 2.11 reads tensors from, which it keeps to itself.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            program = torch.export.load(path)
    # Archives that are broken, or that another torch wrote, fail in many ways.
    except Exception as error:
        raise ModelError(
            f"{path} could not be read as a program of torch.export: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}. Write it with torch.export.save, by this release of torch "
            f"({torch.__version__}) or an older one."
        ) from error
    for node in program.graph.nodes:
        if str(node.target).startswith(_DECOMPOSED):
            raise ModelError(
                f"{path} was decomposed into core operations ({node.target}), so its layers cannot be told any more. "
                "Save what torch.export.export returns, without run_decompositions()."
            )
    return program


def _input_of(program: torch.export.ExportedProgram, name: str) -> tuple[int | None, int, Size | None]:
    """Return the rows, the channels, and the height and width that a program takes: None for what it leaves open."""
    wanted = set(program.graph_signature.user_inputs)
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        described = ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
        raise ModelError(f"{name} takes inputs of shape {described}, not one batch of pictures (rows, C, H, W).")
    rows, channels, height, width = shapes[0]
    fixed = isinstance(height, int) and isinstance(width, int)
    return (rows if isinstance(rows, int) else None), int(channels), ((height, width) if fixed else None)


def _channels(network: nn.Module) -> int:
    """Return how many channels the first registered convolution takes, or 3 where there is none."""
    found = next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 0)
    # A lazy one does not know yet.
    return found or 3
