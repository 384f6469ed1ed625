"""The program as a whole: the other commands, the options of models, and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lrphooks
from lrphooks.baselines import InputXGradient
from lrphooks.cli import main
from lrphooks.cli.methods import METHODS
from lrphooks.cli.program import COMMANDS
from lrphooks.cli.progress import Bar, Line, Silent, progress
from lrphooks.digits import images, load_image, load_network
from lrphooks.models import SOURCES

SEVEN = next(path for path in images() if path.stem == "digit-7")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fields(text):
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)


def test_every_command_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command.name, "--help"])
        assert stopped.value.code == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"lrphooks {lrphooks.__version__}\n"


def test_compare_draws_one_picture_by_several_methods(capsys):
    assert main(["compare", "--composite", "AttnLRP(epsilon=0.1)", "--composite", "InputXGradient"]) == 0
    printed = capsys.readouterr().out
    network, x = load_network(), load_image(SEVEN)
    sums = [
        lrphooks.lrp(network, x, 7, lrphooks.composites.AttnLRP(0.1)).double().sum().item(),
        lrphooks.lrp(network, x, 7, InputXGradient()).double().sum().item(),
    ]
    found = re.search(
        r"^AttnLRP\(epsilon=0\.1\) +(\S+) +(\S+)\nInputXGradient +(\S+) +undefined$", printed, re.MULTILINE
    )
    assert float(found[1]) == pytest.approx(sums[0], rel=1e-3)
    assert float(found[1]) + float(found[2]) == pytest.approx(network(x)[0, 7].item(), rel=1e-3)
    assert float(found[3]) == pytest.approx(sums[1], rel=1e-3)
    with Image.open("digit-7-comparison.png") as drawn:
        # Three panels beside each other, or one below.
        assert min(drawn.size) > 240
        colours = np.asarray(drawn.convert("RGB")).astype(int)
    assert ((colours[..., 0] - colours[..., 2]) > 100).sum() > 400


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--target", "2,7"], 2, "--target 2,7 names 2 classes, and compare takes one"),
        (["--output", "x.jpg"], 2, "must end in .png"),
        (["missing.png"], 1, "there is no picture file missing.png"),
    ],
)
def test_what_cannot_be_compared(arguments, status, message, capsys):
    assert main(["compare", *arguments]) == status
    assert message in capsys.readouterr().err


def test_several_targets_in_one_picture(capsys):
    assert main(["explain", "--target", "7,2,1", "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    network, x = load_network(), load_image(SEVEN)
    for target, explained in zip((7, 2, 1), record["explained"], strict=True):
        assert explained["target"] == target
        assert explained["output"] == pytest.approx(network(x)[0, target].item(), rel=1e-5)
        relevance = lrphooks.lrp(network, x, target, lrphooks.composites.EpsilonPlus()).double().sum().item()
        assert explained["relevance"] == pytest.approx(relevance, rel=1e-3)
    with Image.open("digit-7-relevance.png") as drawn:
        assert drawn.width > 480
        assert drawn.height > 480


def test_a_baseline_is_no_rule(capsys):
    assert main(["explain", "--composite", "InputXGradient"]) == 0
    assert fields(capsys.readouterr().out)["absorbed"] == "undefined: this is no rule of LRP, and need not sum to f(x)"
    assert main(["audit", "--composite", "InputXGradient"]) == 1
    assert "InputXGradient is no composite of rules, so there are no books to balance" in capsys.readouterr().err


def test_sources_of_models_are_listed(capsys, monkeypatch):
    monkeypatch.setattr("importlib.import_module", _without("torchvision"))
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for source in SOURCES:
        assert re.search(rf"^{re.escape(source.form)} ", printed, re.MULTILINE)
    assert re.search(r"^torchvision:NAME .* no$", printed, re.MULTILINE)
    assert re.search(r"^digits .* yes$", printed, re.MULTILINE)
    assert "pip install timm torchvision torch==" in " ".join(printed.split())
    assert main(["models", "--json"]) == 0
    assert [each["form"] for each in json.loads(capsys.readouterr().out)] == [source.form for source in SOURCES]


def _without(library):
    import importlib

    real = importlib.import_module

    def absent(name, *args):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    return absent


def test_models_are_searched(capsys):
    assert main(["models", "dig*"]) == 0
    assert capsys.readouterr().out == "digits\n"
    assert main(["models", "nothing-of-the-kind"]) == 1
    assert "no model's name matches nothing-of-the-kind: try '*nothing-of-the-kind*'" in capsys.readouterr().err


def test_composites_are_listed(capsys):
    assert main(["composites"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 82
    for name in METHODS:
        assert re.search(rf"^{name}\b", printed, re.MULTILINE)
    assert main(["composites", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == list(METHODS)
    assert all(each["paper"] for each in listed)


TORCHVISION = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import torchvision_shim
from lrphooks.cli import main
sys.exit(main())
"""


def test_a_model_of_torchvision_as_a_program(tmp_path):
    """Random weights that the test saves; a program of its own, as a person runs it."""
    import importlib

    import torchvision_shim  # noqa: F401  (before torchvision)

    torchvision = importlib.import_module("torchvision")
    torch.manual_seed(3)
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=3).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "weights.pth")
    Path("labels.json").write_text('{"0": ["n1", "north"], "1": ["n2", "east"], "2": ["n3", "west"]}')
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    picture.save("noise.png")
    arguments = ["explain", "noise.png", "--model", "torchvision:squeezenet1_1", "--weights", "weights.pth"]
    arguments += ["--classes", "3", "--labels", "labels.json", "--size", "64", "--target", "west"]
    done = subprocess.run(
        [sys.executable, "-c", TORCHVISION, str(ROOT / "tests"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = fields(done.stdout)
    assert printed["weights"] == "weights.pth, its 'state_dict', cut 'module.' off 52 names"
    assert printed["prepared"].startswith("shorter side to 73, centre 64 x 64, bilinear, mean 0.485 0.456 0.406")
    transform = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms(crop_size=64, resize_size=73)
    assert printed["explained"] == "west (class 2)"
    assert float(printed["f(x)"]) == pytest.approx(network(transform(picture)[None])[0, 2].item(), rel=1e-4)


def test_an_exported_program_takes_its_number_of_rows(capsys):
    shutil.copy(SEVEN, "seven.png")
    shutil.copy(next(path for path in images() if path.stem == "digit-2"), "two.png")
    program = torch.export.export(load_network(), (load_image(SEVEN).repeat(3, 1, 1, 1),))
    torch.export.save(program, "three.pt2")
    assert main(["explain", "seven.png", "two.png", "--model", "three.pt2", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["explained"][0]["target"] for record in records] == [7, 2]
    for path, record in zip(("seven.png", "two.png"), records, strict=True):
        logits = load_network()(load_image(path))[0]
        assert record["explained"][0]["output"] == pytest.approx(logits.max().item(), rel=1e-4)
    assert main(["audit", "seven.png", "--model", "three.pt2"]) == 1
    assert "takes 3 pictures at once and no other number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--device", "nowhere"], 2, "--device nowhere cannot be used here"),
        (["--weights", "none.pth"], 1, "there is no file of weights none.pth"),
        (["--labels", "none.txt"], 1, "the file of labels could not be read"),
        (["--labels", "two.txt"], 1, "digits has 10 classes, and 2 names for them"),
        (["--labels", "gaps.json"], 1, "gaps.json holds no names of classes"),
        (["--labels", "empty.txt"], 1, "empty.txt holds no names of classes"),
        (["--size", "28"], 1, "takes no --size"),
        (["--classes", "10"], 1, "digits has its own number of classes"),
        (["--size", "0"], 2, "0 is no size"),
        (["--size", "3x4x5"], 2, "3x4x5 is no size"),
        (["--mean", "a,b"], 2, "a,b are no numbers"),
        (["--batch-size", "0"], 2, "0 is no whole number of at least 1"),
    ],
)
def test_options_that_do_not_fit(arguments, status, message, capsys):
    Path("two.txt").write_text("one\ntwo\n")
    Path("empty.txt").write_text("\n")
    Path("gaps.json").write_text('{"0": "a", "2": "b"}')
    try:
        found = main(["explain", *arguments])
    except SystemExit as stopped:
        found = stopped.code
    assert found == status
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*.png"))


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lrphooks.cli.subject.predict", interrupted)
    assert main(["audit"]) == 130
    assert capsys.readouterr().err == "lrphooks: interrupted\n"


def test_progress_is_for_terminals(monkeypatch, capsys):
    assert isinstance(progress(5), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress(1), Silent)
    with progress(3) as bar:
        assert isinstance(bar, Bar)
        bar.advance()
        bar.print("a result")
        bar.print("a failure", error=True)
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "1/3" in captured.err
    assert "a failure" in captured.err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress(3) as line:
        assert isinstance(line, Line)
        line.print("a result")
        line.advance()
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert re.search(r"1 of 3, about \S+ s left", captured.err)
