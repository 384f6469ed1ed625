"""Programs of torch.export and functions of modules as models."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks.composites import CPLRP, AttnLRP, EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from lrphooks.digits import images, load_image, load_network
from lrphooks.models import ModelError, PictureModel, Pixels, Request, UnknownModelError, load

X = load_image(images()[0])


class Transformer(nn.Module):
    """Patches, attention, LayerNorm, GELU: what exported programs have to hand on as well as convolutions."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        h = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(h)).reshape(len(h), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        return self.head((h + self.mlp(h)).mean(1))


def exported(path, network, x, dynamic=None):
    shapes = None if dynamic is None else ({dim: torch.export.Dim(f"d{dim}", min=4) for dim in dynamic},)
    torch.export.save(torch.export.export(network.eval(), (x,), dynamic_shapes=shapes), path)
    return str(path)


@pytest.mark.parametrize("network", ["digits", "transformer"])
def test_a_program_has_the_relevance_of_the_model_that_it_was_made_from(network, tmp_path, close):
    model, x = (load_network(), X) if network == "digits" else (Transformer().eval(), torch.randn(1, 3, 32, 32))
    model, x = model.double(), x.double()
    program = load(exported(tmp_path / "model.pt2", model, x)).network
    target = int(model(x).argmax())
    for composite in (EpsilonPlus(), EpsilonPlusFlat(), AttnLRP(), CPLRP(), EpsilonGammaBox(-3, 3)):
        relevance = lrphooks.lrp(model, x, target, composite)
        close(lrphooks.lrp(program, x, target, composite), relevance)
        assert lrphooks.audit(program, x, target, composite).unexplained < 1e-10


def test_a_program_knows_its_input(tmp_path):
    model = load(exported(tmp_path / "one.pt2", load_network(), X))
    assert (model.rows, model.preparation) == (1, Pixels((28, 28), 28, (0.0,), (1.0,)))
    model = load(exported(tmp_path / "many.pt2", load_network(), X.repeat(4, 1, 1, 1), dynamic=[0]))
    assert (model.rows, model.preparation.size) == (None, (28, 28))
    path = exported(tmp_path / "any.pt2", nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                    torch.randn(4, 3, 32, 32), dynamic=[0, 2, 3])  # fmt: skip
    with pytest.raises(ModelError, match="does not say how large its input is: give --size"):
        load(path)
    assert load(path, Request(size=(40, 50), mean=(0.5,))).preparation == Pixels((40, 50), (40, 50), (0.5,) * 3)


def test_what_a_program_cannot_be_asked(tmp_path):
    path = exported(tmp_path / "one.pt2", load_network(), X)
    with pytest.raises(ModelError, match="exported for inputs of 28 x 28 pixels, and takes no other --size"):
        load(path, Request(size=(32, 32)))
    with pytest.raises(ModelError, match="holds its weights"):
        load(path, Request(weights="random"))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
def test_programs_that_cannot_be_explained_are_refused(tmp_path):
    program = torch.export.export(load_network(), (X,)).run_decompositions()
    torch.export.save(program, tmp_path / "core.pt2")
    with pytest.raises(ModelError, match=r"decomposed into core operations \(aten\.convolution\.default\)"):
        load(str(tmp_path / "core.pt2"))
    path = exported(tmp_path / "table.pt2", nn.Linear(4, 2), torch.randn(1, 4))
    with pytest.raises(ModelError, match=r"takes inputs of shape \(1, 4\), not one batch of pictures"):
        load(path)


def test_files_that_are_no_programs(tmp_path):
    with pytest.raises(UnknownModelError, match=r"there is no program .*none\.pt2"):
        load(str(tmp_path / "none.pt2"))
    (tmp_path / "text.pt2").write_text("nothing of the kind")
    with pytest.raises(ModelError, match=r"text\.pt2 is no whole program of torch\.export"):
        load(str(tmp_path / "text.pt2"))
    torch.save({}, tmp_path / "weights.pt2")
    with pytest.raises(ModelError, match=r"weights\.pt2 could not be read as a program of torch\.export"):
        load(str(tmp_path / "weights.pt2"))
    with zipfile.ZipFile(tmp_path / "opaque.pt2", "w") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", b"")
    with pytest.raises(ModelError, match="is refused: it holds pickled objects"):
        load(str(tmp_path / "opaque.pt2"))


MODULE = """
import torch
from lrphooks.models import PictureModel, Pixels

def network():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.LazyLinear(3))

def picture_model():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    return PictureModel("mine", net, Pixels((4, 4), 4), ("cat", "dog"))

instance = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten())
number = 3

def lazy():
    return torch.nn.Sequential(torch.nn.LazyConv2d(2, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))

def many():
    return torch.nn.Conv2d(7, 2, 1)

def broken():
    return torch.nn.Linear("four", 2)

def wrong():
    return "a network"

def leaves():
    raise SystemExit(0)

def reads_the_command_line():
    import argparse
    argparse.ArgumentParser().parse_args(["--nothing-of-the-kind"])

def in_lines():
    raise RuntimeError("one\\ntwo")

def empty():
    return torch.nn.Conv2d(1, 2, 3, device="meta")

class Hidden(type):
    @property
    def factory(cls):
        raise OSError("no")

class Odd(metaclass=Hidden):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current directory, of a name that no other test imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    name = f"mine_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MODULE)
    Path(f"{name}_faulty.py").write_text("import nothing_of_that_name\n")
    return name


def test_a_function_of_the_current_directory(mine):
    model = load(f"{mine}:network", Request(size=(12, 12), std=(0.5,)))
    assert model.preparation == Pixels((12, 12), 12, (0.0,), (0.5,))
    assert not model.network.training
    assert model.network(model.prepare(__import__("PIL.Image").Image.new("L", (20, 30)))).shape == (1, 3)
    for name in ("instance", "lazy"):
        assert load(f"{mine}:{name}", Request(size=(8, 8))).preparation.mean == (0.0, 0.0, 0.0)


def test_a_picture_model_knows_how_to_prepare(mine, tmp_path):
    model = load(f"{mine}:picture_model")
    assert isinstance(model, PictureModel)
    assert (model.preparation, model.class_names, model.network.training) == (Pixels((4, 4), 4), ("cat", "dog"), False)
    state = {name: torch.full_like(value, 0.25) for name, value in model.network.state_dict().items()}
    torch.save(state, tmp_path / "quarter.pth")
    filled = load(f"{mine}:picture_model", Request(weights=str(tmp_path / "quarter.pth")))
    assert all((value == 0.25).all() for value in filled.network.state_dict().values())


@pytest.mark.parametrize(
    ("attribute", "kind", "message"),
    [
        ("network", ModelError, "does not say how large its input is: give --size"),
        ("number", ModelError, "is a int, not a function that returns a network"),
        ("wrong", ModelError, "returned a str: it must return a torch.nn.Module, or a lrphooks.models.PictureModel"),
        ("broken", ModelError, r"broken\(\) raised TypeError: .*\(in \w+\.py, line \d+\)"),
        ("missing", UnknownModelError, "has no 'missing' for the model"),
        (
            "leaves",
            ModelError,
            r"leaves\(\) called sys\.exit\(0\) \(in \w+\.py, line \d+\), as a program does that reads",
        ),
        ("reads_the_command_line", ModelError, r"reads_the_command_line\(\) called sys\.exit\(2\)"),
        ("in_lines", ModelError, r"in_lines\(\) raised RuntimeError: one two \(in"),
        ("empty", ModelError, "a network whose weight is on the meta device, and so has no values"),
        ("Odd.factory", ModelError, r"Odd\.factory raised OSError: no"),
    ],
)
def test_what_goes_wrong_in_a_module_of_ones_own(attribute, kind, message, mine):
    with pytest.raises(kind, match=message):
        load(f"{mine}:{attribute}")


def test_other_channels_than_pictures_have(mine):
    with pytest.raises(ModelError, match="takes 7 channels: pictures have 1"):
        load(f"{mine}:many", Request(size=(8, 8)))


def test_modules_that_cannot_be_imported(mine):
    with pytest.raises(UnknownModelError, match="there is no Python module 'nowhere_to_be_found'"):
        load("nowhere_to_be_found:model")
    with pytest.raises(ModelError, match=r"importing \w+_faulty raised ModuleNotFoundError: .*nothing_of_that_name"):
        load(f"{mine}_faulty:model")


@pytest.mark.parametrize("code", ["", "0", "3", "'a reason'"])
def test_a_module_that_ends_the_program_is_an_error(code, mine):
    name = f"{mine}_exits_{abs(hash(code))}"
    Path(f"{name}.py").write_text(f"import sys\nsys.exit({code})\n")
    with pytest.raises(ModelError, match=rf"importing \w+ called sys\.exit\({code}\) \(in {name}\.py, line 2\)"):
        load(f"{name}:model")


def test_ctrl_c_in_a_factory_is_no_error_of_the_factory(mine):
    name = f"{mine}_stopped"
    Path(f"{name}.py").write_text("def model():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(f"{name}:model")
