"""The commands `lrphooks explain` and `lrphooks audit`, in this process and as programs of their own."""

import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lrphooks
from lrphooks import Composite, composites
from lrphooks.audit.report import LayerRow, OperationRow, Report, worth_reading
from lrphooks.cli import main
from lrphooks.cli.arguments import SAMPLE
from lrphooks.cli.methods import PRESETS
from lrphooks.digits import images, load_image, load_network
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon

PACKAGED = next(path for path in images() if path.name == SAMPLE)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fields(text):
    """What the command printed, as a dictionary."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def check_picture(path):
    """The file is a PNG with a picture, a heatmap and its colours."""
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > drawn.height > 250
        colours = np.asarray(drawn.convert("RGB")).astype(int).reshape(-1, 3)
    red, blue = colours[:, 0] - colours[:, 2], colours[:, 2] - colours[:, 0]
    assert (red > 100).sum() > 200
    assert (blue > 100).sum() > 200


def test_without_arguments_a_packaged_digit_is_explained(tmp_path, capsys):
    assert main(["explain"]) == 0
    printed = fields(capsys.readouterr().out)

    network, x = load_network(), load_image(PACKAGED)
    logits = network(x)[0].detach()
    relevance = lrphooks.lrp(network, x, target=7, composite=composites.EpsilonPlus())
    output, total = float(logits[7]), float(relevance.double().sum())
    assert printed["picture"] == "digit-7.png (comes with the package)"
    assert printed["prediction"] == f"7, probability {float(logits.softmax(0)[7]):.4f}"
    assert printed["explained"] == "7"
    assert printed["composite"] == f"EpsilonPlus: {composites.EpsilonPlus()!r}"
    assert float(printed["f(x)"]) == pytest.approx(output, rel=1e-5)
    assert float(printed["Σ R"]) == pytest.approx(total, rel=1e-4)
    absorbed, share = re.fullmatch(r"(\S+) \((\S+)% of f\(x\)\)", printed["absorbed"]).groups()
    assert float(absorbed) == pytest.approx(output - total, rel=1e-3, abs=1e-4)
    assert float(share) == pytest.approx(100 * (output - total) / output, abs=0.01)
    assert printed["written"] == "digit-7-relevance.png"
    assert [path.name for path in tmp_path.iterdir()] == ["digit-7-relevance.png"]
    check_picture(tmp_path / "digit-7-relevance.png")


def test_a_program_of_its_own(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "lrphooks", "explain"], cwd=tmp_path, capture_output=True, check=False, encoding="utf-8"
    )
    assert (result.returncode, result.stderr) == (0, "")
    label, probability = fields(result.stdout)["prediction"].split(", probability ")
    assert label == "7"
    assert float(probability) > 0.99
    check_picture(tmp_path / "digit-7-relevance.png")


def test_an_output_that_cannot_show_sigma_is_no_error(tmp_path):
    result = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "lrphooks", "explain"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        encoding="ascii",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "? R  " in result.stdout


def test_the_heatmap_of_a_picture_is_written_beside_it(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = folder / "two.png"
    picture.write_bytes((PACKAGED.parent / "digit-2.png").read_bytes())
    assert main(["explain", str(picture)]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["picture"] == str(picture)
    assert printed["prediction"].startswith("2, ")
    assert printed["written"] == str(folder / "two-relevance.png")
    check_picture(folder / "two-relevance.png")


def test_another_class_and_another_place(tmp_path, capsys):
    assert main(["explain", "--target", "2", "--output", "other.PNG"]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["prediction"].startswith("7, ")
    assert printed["explained"] == "2"
    assert float(printed["f(x)"]) == pytest.approx(load_network()(load_image(PACKAGED))[0, 2].item(), rel=1e-5)
    assert (tmp_path / "other.PNG").stat().st_size > 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_chosen(name, capsys):
    assert main(["explain", "--composite", name]) == 0
    printed = fields(capsys.readouterr().out)
    assert re.match(rf"{name}: (Composite\(|\d+ entries, )\[", printed["composite"])
    assert np.isfinite(float(printed["Σ R"]))


def test_the_box_has_the_bounds_of_the_input(capsys):
    assert main(["explain", "--composite", "EpsilonGammaBox"]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["composite"] == f"EpsilonGammaBox: {composites.EpsilonGammaBox(low=0.0, high=1.0)!r}"


def test_of_many_entries_the_first_and_the_last_are_shown(capsys):
    assert main(["explain", "--composite", "GammaDecay(sums=2)"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("composite")]
    assert line.startswith("composite   GammaDecay(sums=2): 13 entries, [(First(Convolution), ZBox(low=0.0, high=1.0, ")
    assert "), (Sum, Gamma(gamma=2.0, stabilizer=1e-06)), ('stem', Gamma(gamma=1.0, " in line
    assert line.endswith("), ..., (Linear, Epsilon(epsilon=1e-06))]")


def test_every_preset_of_the_package_is_offered():
    presets = {
        name
        for name, preset in vars(composites).items()
        if inspect.isfunction(preset) and preset.__module__ == composites.__name__ and not name.startswith("_")
    }
    assert set(PRESETS) == presets


def test_the_sum_agrees_with_gradient_times_input(capsys):
    """Epsilon on every layer of a ReLU network is the gradient times the input, but for its stabilizer."""
    assert main(["explain", "--composite", "AttnLRP"]) == 0
    x = load_image(PACKAGED).requires_grad_()
    load_network()(x)[0, 7].backward()
    total = float(fields(capsys.readouterr().out)["Σ R"])
    assert total == pytest.approx((x.grad * x).sum().item(), rel=0.01)


@pytest.mark.parametrize("name", ["GuidedBackprop", "DeconvNet"])
def test_a_modified_gradient_absorbs_nothing_that_could_be_told(name, capsys):
    assert main(["explain", "--composite", name]) == 0
    assert fields(capsys.readouterr().out)["absorbed"].startswith("undefined: this composite gives a modified gradient")


def test_a_photograph_is_turned_upright(tmp_path, capsys):
    turned = Image.open(PACKAGED).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    turned.save(tmp_path / "turned.png", exif=exif)
    assert main(["explain", "turned.png"]) == 0
    printed = fields(capsys.readouterr().out)
    main(["explain"])
    assert printed["f(x)"] == fields(capsys.readouterr().out)["f(x)"]


def failure(arguments, capsys):
    """The exit status and the message of a call that fails, which must leave no file behind."""
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return status, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["explain", "--composite", "Nonsense"], r"no composite 'Nonsense'.*EpsilonPlus"),
        (["explain", "x.png", "--model", "vgg"], r"there is no model 'vgg'.*efficientnet-lite0"),
        (["explain", "--target", "seven"], "--target seven: digits has no class of that name"),
        (["explain", "--target", "10"], r"--target 10 is out of range: the classes of digits are 0 to 9\. Leave"),
        (["explain", "--target", "-1"], r"--target -1 is out of range"),
        (["explain", "--output", "map.jpg"], r"--output map\.jpg must end in \.png"),
        (["explain", "--model", "efficientnet-lite0"], "needs a photograph: lrphooks explain IMAGE"),
        (["audit", "--model", "efficientnet-lite0"], "needs a photograph: lrphooks audit IMAGE"),
        (["audit", "--target", "10"], r"--target 10 is out of range"),
        (["audit", "--tolerance", "nan"], "nan is no tolerance"),
        (["audit", "--tolerance", "-1"], "-1 is no tolerance"),
        (["audit", "--tolerance", "small"], "small is no tolerance"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, message, tmp_path, capsys):
    status, error = failure(arguments, capsys)
    assert status == 2
    assert "error: " in error
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_the_picture_itself_is_not_overwritten(tmp_path, capsys):
    data = PACKAGED.read_bytes()
    (tmp_path / "mine.png").write_bytes(data)
    status, error = failure(["explain", "mine.png", "--output", str(tmp_path / "mine.png")], capsys)
    assert status == 2
    assert "would overwrite the picture itself" in error
    assert (tmp_path / "mine.png").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "lrphooks: error: there is no picture file missing.png"),
        (".", None, "the folder . has no picture"),
        ("text.png", b"this is no picture", "text.png could not be read as a picture"),
        ("half.png", PACKAGED.read_bytes()[:150], "half.png could not be read as a picture"),
        ("empty.png", b"", "empty.png could not be read as a picture"),
    ],
)
def test_a_picture_that_cannot_be_read_exits_with_1(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, error = failure(["explain", name], capsys)
    assert status == 1
    assert message in error


def test_a_blank_picture_exits_with_1(tmp_path, capsys):
    Image.new("RGB", (60, 60), "white").save(tmp_path / "blank.png")
    status, error = failure(["explain", "blank.png"], capsys)
    assert status == 1
    assert "lrphooks: error: blank.png: the picture shows no digit" in error


def test_a_picture_with_16_bits_is_scaled(tmp_path, capsys):
    with Image.open(PACKAGED) as digit:
        Image.fromarray(np.asarray(digit).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert main(["explain", "deep.png"]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["read as"] == "16 bits a pixel as 8"
    output = load_network()(load_image(PACKAGED))[0, 7].item()
    assert float(printed["f(x)"]) == pytest.approx(output, rel=1e-5)


def test_an_output_folder_that_is_not_there_exits_with_1(capsys):
    status, error = failure(["explain", "--output", "nowhere/map.png"], capsys)
    assert status == 1
    assert "the heatmap could not be written: nowhere/map.png: No such file or directory" in error
    assert "--output" in error


def test_what_the_engine_refuses_exits_with_1(monkeypatch, capsys):
    def broken():
        network = load_network()
        with torch.no_grad():
            network.head.bias.fill_(float("nan"))
        return network

    monkeypatch.setattr("lrphooks.digits.load_network", broken)
    status, error = failure(["explain"], capsys)
    assert status == 1
    assert error.startswith("lrphooks: error: ")
    assert "NaN" in error


# --- lrphooks audit ---


def test_without_arguments_the_books_of_a_packaged_digit_are_printed(tmp_path, capsys):
    assert main(["audit"]) == 0
    printed = capsys.readouterr().out
    report = lrphooks.audit(load_network(), load_image(PACKAGED), 7)
    assert printed.startswith(
        "picture     digit-7.png (comes with the package)\nmodel       digits, which comes with the package\n"
    )
    assert printed.endswith(f"\n\n{report}\n")
    share = report.relevance / report.output
    assert re.search(rf"^f\(x\) +{report.output:.3f}  100\.00%$", printed, re.MULTILINE)
    assert re.search(rf"^relevance of the inputs +{report.relevance:.3f} +{share:.2%}$", printed, re.MULTILINE)
    assert max(map(len, printed.splitlines())) <= 120
    assert not list(tmp_path.iterdir())


def test_the_audit_as_json(capsys):
    assert main(["audit", "--json", "--composite", "AttnLRP", "--target", "2"]) == 0
    report = lrphooks.audit(load_network(), load_image(PACKAGED), 2, composites.AttnLRP())
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report.to_dict()))


def test_books_that_do_not_balance_exit_with_1(monkeypatch, capsys):
    assert main(["audit", "--tolerance", "0"]) == 1
    captured = capsys.readouterr()
    assert "relevance of the inputs" in captured.out
    assert re.fullmatch(
        r"lrphooks: error: \S+ of the largest amount in the books is unexplained, above the tolerance of 0\.\n",
        captured.err,
    )
    monkeypatch.setattr("lrphooks.cli.audit.audit", lambda *_: Report(1.0, float("nan"), {}, (), (), {}, ()))
    assert main(["audit"]) == 1


def test_a_program_of_its_own_says_whether_the_books_balance():
    for arguments, status in (([], 0), (["--tolerance", "0"], 1)):
        command = [sys.executable, "-m", "lrphooks", "audit", *arguments]
        assert subprocess.run(command, capture_output=True, check=False).returncode == status


@pytest.mark.parametrize("arguments", [["--composite", "GuidedBackprop"], ["--composite", "DeconvNet", "--json"]])
def test_a_modified_gradient_has_no_books(arguments, capsys):
    status, error = failure(["audit", *arguments], capsys)
    assert status == 1
    assert "no books to balance" in error


class Deep(torch.nn.Module):
    """Thirty layers, of which the fifth has by far the largest bias; the model itself adds a constant."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(30))
        with torch.no_grad():
            for block in self.blocks:
                block[0].weight.copy_(torch.eye(2))
                block[0].bias.fill_(0.01)
            self.blocks[5][0].bias.fill_(10.0)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x + 100.0


def test_of_many_calls_those_that_absorbed_most_are_shown():
    report = lrphooks.audit(Deep(), torch.ones(1, 2), 0, Composite([(AnyLinear, Epsilon(0))]))
    shown = worth_reading(report.layers)
    assert len(report.layers) == 61
    assert len(shown) == 16
    assert [row.name for row in shown] == [row.name for row in report.layers if row in shown]
    names = [row.name for row in shown]
    # The constant is the model's own; a container that only holds a layer absorbed nothing itself.
    assert "" in names
    assert "blocks.5.0" in names
    assert not any(re.fullmatch(r"blocks\.\d+", name) for name in names)
    assert "These 16 of 61 calls of modules absorbed most." in str(report)
    everything = report.text(everything=True)
    assert all(re.search(rf"^blocks\.{i}\.0 ", everything, re.MULTILINE) for i in range(30))
    assert "absorbed most" not in everything


def test_long_names_and_small_amounts_are_readable():
    rows = tuple(
        LayerRow("encoder." * 10 + f"layer.{i}", "Linear", "Gradient(), " * 9, 1.0, 0.5, -4e-9 if i else 0.5)
        for i in range(2)
    )
    operations = (*(OperationRow(f"operation_{i}", "Gradient()", 3) for i in range(40)),)
    lines = str(Report(-2.0, -1.5, {"bias": -0.5, "stabilizer": 3e-9}, rows, operations, {}, ())).splitlines()
    assert max(map(len, lines)) <= 140
    assert lines[0] == "f(x)                     -2.0000  100.00%"
    assert lines[2] == "absorbed: bias           -0.5000   25.00%"
    assert lines[3] == "absorbed: stabilizer       3e-09    0.00%"
    assert lines[4] == "unexplained              1.5e-09 of the largest amount"
    assert re.search(r"^\.\.\.\S+layer\.0  Gradient\(\), .*\.\.\.  +1\.0000 +0\.5000 +0\.5000$", lines[8])
    assert lines[9].endswith(" -4e-09")
    assert sum(line.count("(3)") for line in lines) == 40


def test_books_of_nothing_can_be_printed():
    text = str(Report(0.0, 0.0, {}, (), (), {}, ()))
    assert re.search(r"^f\(x\) +0$", text, re.MULTILINE)
    assert "unexplained              0.0e+00" in text
