"""Models of torchvision and timm by name, with random weights that the tests save."""

import importlib
import sys
import urllib.error

import pytest
import torch

import torchvision_shim  # noqa: F401
from lrphooks.models import SOURCES, MissingExtraError, ModelError, Request, UnknownModelError, load, search

timm, torchvision = importlib.import_module("timm"), importlib.import_module("torchvision")


#: A network of timm that comes without weights.
UNTRAINED = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))


def same(network, other):
    return all(torch.equal(network.state_dict()[name], value) for name, value in other.state_dict().items())


@pytest.fixture
def squeezenet(tmp_path):
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    return network, str(tmp_path / "squeezenet.pth")


def test_torchvision_with_weights_from_a_file(squeezenet):
    network, path = squeezenet
    model = load("torchvision:squeezenet1_1", Request(weights=path))
    assert same(model.network, network)
    assert not model.network.training
    assert model.notes == (path,)
    assert model.class_names == tuple(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"])
    x = model.preparation.prepare(torchvision.transforms.ToPILImage()(torch.rand(3, 300, 400)))
    assert model.network(x).shape == (1, 1000)


def test_a_file_with_the_name_of_published_weights_is_prepared_for_them(tmp_path):
    """The two published ResNet-50 were evaluated at 256 and at 232 pixels."""
    network = torchvision.models.resnet50(weights=None)
    members = torchvision.models.ResNet50_Weights
    for member, side in ((members.IMAGENET1K_V1, 256), (members.IMAGENET1K_V2, 232)):
        path = tmp_path / member.url.rpartition("/")[2]
        torch.save(network.state_dict(), path)
        assert load("torchvision:resnet50", Request(weights=str(path))).preparation.resize == side


def test_another_number_of_classes(tmp_path):
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=4)
    torch.save(network.state_dict(), tmp_path / "four.pth")
    labels = tmp_path / "labels.txt"
    labels.write_text("north\neast\nsouth\nwest\n")
    request = Request(weights=str(tmp_path / "four.pth"), classes=4)
    assert load("torchvision:squeezenet1_1", request).class_names == ()
    assert load("torchvision:squeezenet1_1", request, labels=labels).class_names == ("north", "east", "south", "west")
    with pytest.raises(ModelError, match=r"does not fit the model.*give --classes 4"):
        load("torchvision:squeezenet1_1", Request(weights=str(tmp_path / "four.pth")))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_0", "timm:test_resnet"])
def test_random_weights_are_the_same_every_time(name):
    before = torch.random.get_rng_state()
    first, second = (load(name, Request(weights="random")) for _ in range(2))
    assert same(first.network, second.network)
    assert first.notes == ("random, from seed 0",)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_normalise_by_themselves_do_so_with_published_weights_alone(name, tmp_path):
    assert not load(f"torchvision:{name}", Request(weights="random")).network.transform_input
    network = torchvision.models.get_model(name, weights=None, init_weights=False)
    path = tmp_path / torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    torch.save(network.state_dict(), path)
    assert load(f"torchvision:{name}", Request(weights=str(path))).network.transform_input


def test_trained_weights_are_read_as_tensors_alone(monkeypatch):
    asked = []

    def stored(url, *_, **__):
        asked.append((url, torch.serialization.os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]))
        return torchvision.models.squeezenet1_1(weights=None).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", stored)
    model = load("torchvision:squeezenet1_1")
    assert asked == [(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url, "1")]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in torch.serialization.os.environ
    assert model.notes == ("SqueezeNet1_1_Weights.IMAGENET1K_V1",)
    with pytest.raises(ModelError, match="another number of classes than 5"):
        load("torchvision:squeezenet1_1", Request(classes=5))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:resnet18"])
def test_a_download_that_fails_says_what_to_do(name, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ModelError, match=rf"{name} could not be had: URLError.*--weights FILE, or --weights random"):
        load(name)


def test_timm_with_weights_from_a_file(tmp_path):
    network = timm.create_model("test_vit", num_classes=7)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "vit.pth")
    model = load("timm:test_vit", Request(weights=str(tmp_path / "vit.pth"), classes=7))
    assert same(model.network, network)
    assert model.notes == (f"{tmp_path / 'vit.pth'}, its 'state_dict'",)
    assert model.class_names == ()


def test_timm_names_the_classes_of_imagenet():
    assert load("timm:test_resnet", Request(weights="random")).class_names[281:283] == ("tabby", "tiger cat")


def test_timm_without_trained_weights():
    with pytest.raises(ModelError, match=rf"timm has no trained weights of {UNTRAINED}: give a file with --weights"):
        load(f"timm:{UNTRAINED}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet51", r"torchvision has no classifier 'resnet51'\. Did you mean torchvision:resnet\d+"),
        ("torchvision:fcn_resnet50", "torchvision has no classifier 'fcn_resnet50'"),
        ("timm:resnt18", r"timm has no classifier 'resnt18'\. Did you mean timm:resnet18"),
        ("vgg16", "there is no model 'vgg16': a model is one of digits, efficientnet-lite0, torchvision:NAME"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(UnknownModelError, match=message):
        load(name)


def test_names_are_searched():
    (source,) = [source for source in SOURCES if source.form == "torchvision:NAME"]
    expected = tuple(f"torchvision:{name}" for name in torchvision.models.list_models() if name.startswith("vgg"))
    assert search(source, "vgg*") == search(source, "torchvision:vgg*") == expected
    assert "torchvision:vgg16" in expected


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_names_the_extra(library, monkeypatch):
    real = importlib.import_module

    def absent(name, *args):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match=rf"{library}, which is not installed.*lrphooks\[models\]"):
        load(f"{library}:resnet18")


def test_a_library_that_cannot_be_imported_tells_the_cause(monkeypatch):
    real = importlib.import_module

    def broken(name, *args):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args)

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(
        MissingExtraError,
        match=r"cannot be imported: RuntimeError: operator torchvision::nms does not exist .*torch 2.*another kind",
    ):
        load("torchvision:resnet18")
    assert sys.modules["torchvision"] is torchvision
