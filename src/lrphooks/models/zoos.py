"""Models by name from torchvision and timm, each with its own preparation, class names and weights."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any, final

from torch import nn

from lrphooks.extras import install, why_torchvision_fails
from lrphooks.models.errors import MissingExtraError, ModelError, UnknownModelError
from lrphooks.models.picture_model import PictureModel
from lrphooks.models.preparation import Pixels
from lrphooks.models.source import Request, Source, seeded
from lrphooks.models.weights import tensors_only

#: Of torchvision: they normalise their input themselves, but only when they are built with its weights.
_TRANSFORMS_INPUT = ("googlenet", "inception_v3")


class Zoo(Source):
    """A library of models with names."""

    library: str
    needs = "lrphooks[models]"

    @property
    def prefix(self) -> str:
        """What its names begin with."""
        return f"{self.library}:"

    def has(self, name: str) -> bool:
        return name.startswith(self.prefix)

    def missing(self) -> str | None:
        try:
            self._import()
        except MissingExtraError as error:
            return str(error)
        return None

    def _import(self) -> ModuleType:
        """Import the library, or say why it does not go."""
        try:
            return importlib.import_module(self.library)
        # Beside a torch that it was not built for, torchvision raises a RuntimeError; and timm with it.
        except (ImportError, RuntimeError, AttributeError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == self.library:
                raise MissingExtraError(
                    f"{self.prefix}NAME needs the Python package {self.library}, which is not installed. Install it: "
                    f"{install('models')}."
                ) from error
            raise MissingExtraError(
                f"{self.library} is installed, but cannot be imported: {type(error).__name__}: {error} "
                f"({_versions()}). {why_torchvision_fails(error)}"
            ) from error

    def _unknown(self, name: str, known: list[str]) -> UnknownModelError:
        close = [*difflib.get_close_matches(name, known, 3), *(other for other in known if name and name in other)]
        hint = f" Did you mean {', '.join(self.prefix + other for other in dict.fromkeys(close[:3]))}?" if close else ""
        return UnknownModelError(
            f"{self.library} has no classifier {name!r}.{hint} lrphooks models '{self.prefix}*' lists what there is."
        )

    def _fetch(self, name: str, build: Callable[[], nn.Module]) -> nn.Module:
        """Build a network with the library's own weights, which it downloads where it has not yet."""
        try:
            with tensors_only():
                return build()
        # Servers, hubs, caches and archives fail with exceptions of many libraries.
        except Exception as error:
            raise ModelError(
                f"the trained weights of {self.prefix}{name} could not be had: {type(error).__name__}: {error}. Give a "
                "file with --weights FILE, or --weights random for an untrained network."
            ) from error


@final
class Torchvision(Zoo):
    """The classifiers of torchvision."""

    library = "torchvision"
    form = "torchvision:NAME"
    about = "classifiers of torchvision"

    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{name}" for name in self._listed())

    def _listed(self) -> list[str]:
        self._import()
        models = importlib.import_module("torchvision.models")
        listed: list[str] = models.list_models(module=models)
        return listed

    def load(self, name: str, request: Request) -> PictureModel:
        short = name.removeprefix(self.prefix)
        if short not in self._listed():
            raise self._unknown(short, self._listed())
        models = importlib.import_module("torchvision.models")
        weights = _weights_of(models.get_model_weights(short), request)
        categories = tuple(weights.meta["categories"])
        if request.own_weights:
            if request.classes not in (None, len(categories)):
                raise _no_trained_head(name, request)
            network = self._fetch(short, lambda: models.get_model(short, weights=weights, progress=False))
            notes: tuple[str, ...] = (str(weights),)
        else:
            options: dict[str, Any] = {} if request.classes is None else {"num_classes": request.classes}
            if short in _TRANSFORMS_INPUT:
                options |= {"transform_input": _is_of(weights, request), "init_weights": True}
            with seeded():
                network = models.get_model(short, weights=None, **options)
            notes = request.fill(network)
        if request.classes not in (None, len(categories)):
            categories = ()
        return PictureModel(name, network.eval(), _of_torchvision(weights.transforms()), categories, notes=notes)


@final
class Timm(Zoo):
    """The classifiers of timm."""

    library = "timm"
    form = "timm:NAME"
    about = "classifiers of timm"

    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{name}" for name in self._import().list_models())

    def load(self, name: str, request: Request) -> PictureModel:
        timm = self._import()
        short = name.removeprefix(self.prefix)
        if not timm.is_model(short):
            raise self._unknown(short, timm.list_models())
        options: dict[str, Any] = {} if request.classes is None else {"num_classes": request.classes}
        if request.own_weights:
            if not timm.models.is_model_pretrained(short):
                raise ModelError(
                    f"timm has no trained weights of {short}: give a file with --weights FILE, or --weights random for "
                    "an untrained network."
                )
            network: Any = self._fetch(short, lambda: timm.create_model(short, pretrained=True))
            notes: tuple[str, ...] = (f"timm's {network.pretrained_cfg.get('hf_hub_id') or short}",)
            if request.classes not in (None, network.num_classes):
                raise _no_trained_head(name, request)
        else:
            with seeded():
                network = timm.create_model(short, pretrained=False, **options)
            notes = request.fill(network)
        config = timm.data.resolve_model_data_config(network)
        return PictureModel(name, network.eval(), _of_timm(config, name), _names_of_timm(timm, network), notes=notes)


def _no_trained_head(name: str, request: Request) -> ModelError:
    return ModelError(
        f"the trained weights of {name} have another number of classes than {request.classes}. Give the file of a "
        "model that was trained on yours with --weights FILE."
    )


def _weights_of(members: Any, request: Request) -> Any:
    """Return the member whose file is given, or the library's first choice."""
    return next((member for member in members if _is_of(member, request)), members.DEFAULT)


def _is_of(member: Any, request: Request) -> bool:
    return request.weights is not None and str(member.url).rpartition("/")[2] == Path(request.weights).name


def _of_torchvision(transform: Any) -> Pixels:
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    interpolation = transform.interpolation.value
    return Pixels((crop, crop), resize, tuple(transform.mean), tuple(transform.std), interpolation)


def _of_timm(config: Mapping[str, Any], name: str) -> Pixels:
    _, height, width = config["input_size"]
    least = tuple(int(side / config["crop_pct"]) for side in (height, width))
    squeezed = config["crop_mode"] == "squash" or height != width
    if config["crop_mode"] not in ("center", "squash") or (height != width and config["crop_mode"] == "center"):
        raise ModelError(
            f"{name} crops its pictures by {config['crop_mode']!r} to {height} x {width}, which lrphooks does not know "
            "how to do. Give a factory that returns a PictureModel with a preparation of your own (MODULE:FACTORY)."
        )
    resize = (least[0], least[1]) if squeezed else least[0]
    return Pixels((height, width), resize, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _names_of_timm(timm: ModuleType, network: Any) -> tuple[str, ...]:
    """Return the first word for each class, where timm knows the data that the network was trained on."""
    labels = network.pretrained_cfg.get("label_names")
    if labels:
        return tuple(labels)
    subset = timm.data.infer_imagenet_subset(network)
    if subset is None:
        return ()
    descriptions = timm.data.ImageNetInfo(subset).label_descriptions()
    return tuple(text.split(",")[0] for text in descriptions)


def _versions() -> str:
    return ", ".join(f"{package} {_version(package)}" for package in ("torch", "torchvision", "timm"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def search(source: Source, pattern: str) -> tuple[str, ...]:
    """Return the names of a source that a pattern such as ``*resnet*`` matches, with or without the prefix."""
    return tuple(name for name in source.names() if fnmatch(name, pattern) or fnmatch(name.partition(":")[2], pattern))
