"""Files of weights: what is read, unwrapped and refused. The files are made here."""

import argparse
import os
import pickle
import re
import sys
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from lrphooks.models.errors import MissingExtraError, ModelError
from lrphooks.models.weights import load_weights


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def trained():
    """A network whose weights are told apart from those of a new one."""
    torch.manual_seed(1)
    return network()


def assert_loaded(path, trained, *notes):
    torch.manual_seed(2)
    fresh = network()
    (told,) = load_weights(fresh, path)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert told.startswith(str(path))
    for note in notes:
        assert note in told
    if not notes:
        assert told == str(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved(name, zipped, trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert_loaded(tmp_path / name, trained)


def test_safetensors(trained, tmp_path):
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    assert_loaded(tmp_path / "weights.safetensors", trained)


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, ["its 'state_dict' (not epoch)"]),
        (lambda state: {"model": state}, ["its 'model'"]),
        (lambda state: {"epoch": 1, "net": {"state_dict": state}}, ["its 'net' (not epoch)", "its 'state_dict'"]),
        (lambda state: {f"module.{k}": v for k, v in state.items()}, ["cut 'module.' off 9 names"]),
        (
            lambda state: {"state_dict": {f"module.model.{k}": v for k, v in state.items()}},
            ["its 'state_dict'", "cut 'module.model.' off 9 names"],
        ),
    ],
)
def test_what_training_programs_wrap_is_unwrapped_and_told(wrap, notes, trained, tmp_path):
    torch.save(wrap(trained.state_dict()), tmp_path / "checkpoint.pth")
    assert_loaded(tmp_path / "checkpoint.pth", trained, *notes)


class Planted:
    """What a file of weights must not be able to do."""

    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda trained: {"state_dict": trained.state_dict(), "x": Planted()}, "_pytest|fail"),
        (lambda trained: trained, r"torch\.nn\.modules\.container\.Sequential"),
        (lambda trained: {"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=0.1)}, r"Namespace"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_more_is_refused_with_the_reason(content, reason, zipped, trained, tmp_path):
    torch.save(content(trained), tmp_path / "more.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"more\.pth is refused: it holds more than tensors") as caught:
        load_weights(network(), tmp_path / "more.pth")
    assert re.search(reason, str(caught.value))
    assert "could run code of the file's own" in str(caught.value)
    assert "model.state_dict()" in str(caught.value)


def test_a_bare_pickle_is_refused(trained, tmp_path):
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(ModelError, match=r"bare\.pth"):
        load_weights(network(), tmp_path / "bare.pth")


def written(content):
    def write(path, trained):
        path.write_bytes(content)

    return write


def half(path, trained):
    torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])


def script(path, trained):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # newer releases of torch deprecate it
        torch.jit.save(torch.jit.script(trained), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (written(b""), "no whole file of weights|no file of weights"),
        (written(b"this is text"), "no whole file of weights|no file of weights"),
        (half, "no whole file of weights"),
        (script, "is a TorchScript program"),
        (lambda path, _: torch.save([torch.ones(2)], path), "holds a list, not tensors by name"),
        (lambda path, _: torch.save({}, path), "holds nothing, not tensors by name"),
        (lambda path, _: torch.save({"epoch": 3, "lr": 0.1}, path), "holds no tensors by name, but {'epoch': int"),
    ],
)
def test_what_is_no_file_of_weights(write, message, trained, tmp_path):
    write(tmp_path / "wrong.pth", trained)
    with pytest.raises(ModelError, match=message):
        load_weights(network(), tmp_path / "wrong.pth")


def test_broken_safetensors(tmp_path):
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"wrong\.safetensors is no whole file of safetensors"):
        load_weights(network(), tmp_path / "wrong.safetensors")


def test_a_missing_package_names_the_extra(trained, tmp_path, monkeypatch):
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtraError, match=r"needs the Python package safetensors.*lrphooks\[cli\]"):
        load_weights(network(), tmp_path / "weights.safetensors")


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file of weights .*none\.pth"):
        load_weights(network(), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("3.bias"), r"does not fit the model: 1 missing \(3\.bias\)\. Is it the file of another model"),
        (lambda s: s.update(extra=torch.ones(1)), r"does not fit the model: 1 not of the model \(extra\)\."),
        (
            lambda s: s.update({"3.weight": torch.ones(5, 8), "3.bias": torch.ones(5)}),
            r"3\.weight is \(5, 8\) where the model has \(3, 8\); 3\.bias is \(5,\) where .*give --classes 5\.",
        ),
        (lambda s: s.update({"0.weight": torch.ones(2, 3, 3, 3)}), r"0\.weight is \(2, 3, 3, 3\) where [^?]*$"),
    ],
)
def test_weights_of_another_model_are_refused(change, message, trained, tmp_path):
    state = trained.state_dict()
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=message):
        load_weights(network(), tmp_path / "other.pth")


WEIGHT = "3.weight"


def quantised(state):
    return torch.quantize_per_tensor(state[WEIGHT], 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:.*quantize:DeprecationWarning", "ignore:.*quantize:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: torch.tensor(1.0), r"3\.weight is \(\) where the model has \(3, 8\)\.$"),
        (lambda s: torch.empty(0), r"3\.weight is \(0,\) where the model has \(3, 8\)\.$"),
        (
            lambda s: s[WEIGHT].to_sparse(),
            r"holds sparse numbers \(torch\.sparse_coo\) where the model has real numbers",
        ),
        (lambda s: s[WEIGHT].to_sparse_csr(), r"holds sparse numbers \(torch\.sparse_csr\)"),
        (quantised, r"holds quantised numbers \(torch\.qint8\) where the model has real numbers"),
        (lambda s: s[WEIGHT].to("meta"), r"holds no values \(meta tensor\) where the model has real numbers"),
        (lambda s: s[WEIGHT].to(torch.complex64), "holds complex numbers where the model has real numbers"),
        (lambda s: s[WEIGHT].to(torch.int8), "holds integers where the model has real numbers"),
        (lambda s: s[WEIGHT] > 0, "holds truth values where the model has real numbers"),
        (lambda s: s[WEIGHT].double() * 1e60, r"holds numbers beyond the range of the model's torch\.float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*CSR:UserWarning")
def test_numbers_that_the_network_cannot_hold_are_refused(change, message, trained, tmp_path):
    state = trained.state_dict()
    state[WEIGHT] = change(state)
    torch.save(state, tmp_path / "odd.pth")
    fresh = network()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(fresh, tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_refused(trained, tmp_path):
    state = trained.state_dict()
    state[WEIGHT] = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save(state, tmp_path / "nested.pth")
    with pytest.raises(ModelError, match=r"nested\.pth"):
        load_weights(network(), tmp_path / "nested.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_rounded_is_told(name, trained, tmp_path):
    """A third is no number of float64 that float32 has; what float16 has, float32 has."""
    state = {k: v.double() / 3 if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    state["0.bias"] = state["0.bias"].half()
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    fresh = network()
    (told,) = load_weights(fresh, tmp_path / name)
    assert told == f"{tmp_path / name}, rounded 7 tensors from float64 to float32"
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in fresh.state_dict().items())


def test_a_count_of_batches_may_be_an_average(trained, tmp_path):
    state = trained.state_dict()
    state["1.num_batches_tracked"] = torch.tensor(12.5)
    torch.save(state, tmp_path / "average.pth")
    assert load_weights(network(), tmp_path / "average.pth") == (str(tmp_path / "average.pth"),)


def test_lazy_layers_take_the_shape_of_their_weights(tmp_path):
    state = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).state_dict()
    torch.save(state, tmp_path / "lazy.pth")
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    load_weights(lazy, tmp_path / "lazy.pth")
    assert torch.equal(lazy[1].weight, state["1.weight"])


def test_a_checkpoint_that_holds_itself(tmp_path):
    checkpoint = {"epoch": 1}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "ring.pth")
    with pytest.raises(ModelError, match="holds no tensors by name"):
        load_weights(network(), tmp_path / "ring.pth")


def test_what_a_network_of_ones_own_raises_is_told(trained, tmp_path):
    class Particular(nn.Sequential):
        def load_state_dict(self, *args, **kwargs):
            raise KeyError("not\nwanted")

    torch.save(trained.state_dict(), tmp_path / "fine.pth")
    with pytest.raises(ModelError, match=r"fine\.pth does not fit the model: KeyError: 'not\\nwanted'"):
        load_weights(Particular(*network()), tmp_path / "fine.pth")


def test_a_pipe_of_weights_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ModelError, match=r"pipe\.pth is no ordinary file"):
        load_weights(network(), tmp_path / "pipe.pth")
