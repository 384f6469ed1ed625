"""Models of pictures by name: from the package, torchvision, timm, a file of torch.export, or a person's own module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrphooks.models.errors import MissingExtraError, ModelError, UnknownModelError
from lrphooks.models.labels import read_labels
from lrphooks.models.own import Exported, Factory
from lrphooks.models.packaged import Digits, EfficientNetLite, digit_model, efficientnet_lite0
from lrphooks.models.picture_model import PictureModel
from lrphooks.models.preparation import Ink, Pixels, Preparation
from lrphooks.models.source import Request, Source
from lrphooks.models.zoos import Timm, Torchvision, search

__all__ = [
    "SOURCES",
    "Ink",
    "MissingExtraError",
    "ModelError",
    "PictureModel",
    "Pixels",
    "Preparation",
    "Request",
    "Source",
    "UnknownModelError",
    "digit_model",
    "efficientnet_lite0",
    "load",
    "search",
]

#: All sources of models; the first that a name belongs to has it.
SOURCES: tuple[Source, ...] = (Digits(), EfficientNetLite(), Torchvision(), Timm(), Exported(), Factory())


def load(name: str, request: Request | None = None, *, labels: Path | None = None) -> PictureModel:
    """Return the model of a name such as ``torchvision:resnet50``, ready to explain.

    Parameters
    ----------
    name
        One of the forms of :data:`SOURCES`.
    request
        The weights, the number of classes and the preparation, where they are not to be the model's own.
    labels
        A file with the names of the classes: a line each, or JSON.

    Raises
    ------
    UnknownModelError
        If there is no model of that name.
    ModelError, MissingExtraError
        If it cannot be loaded as asked for; the message says why, and the way out.

    Examples
    --------
    >>> model = load("torchvision:resnet50", Request(weights="resnet50.pth"))
    >>> relevance = lrp(model.network, model.prepare(picture))
    """
    request = Request() if request is None else request
    source = next((source for source in SOURCES if source.has(name)), None)
    if source is None:
        forms = ", ".join(source.form for source in SOURCES)
        raise UnknownModelError(f"there is no model {name!r}: a model is one of {forms}.")
    model = source.load(name, request)
    preparation = model.preparation.changed(request.size, request.mean, request.std)
    names = model.class_names if labels is None else read_labels(labels)
    return replace(model, preparation=preparation, class_names=names)
