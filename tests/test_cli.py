"""The command `lrphooks explain`, in this process and as a program of its own."""

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lrphooks
from lrphooks import composites
from lrphooks.cli import COMPOSITES, SAMPLE, main
from lrphooks.digits import images, load_image, load_network

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


@pytest.mark.parametrize("name", COMPOSITES)
def test_every_preset_can_be_chosen(name, capsys):
    assert main(["explain", "--composite", name]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["composite"].startswith(f"{name}: Composite(")
    assert np.isfinite(float(printed["Σ R"]))


def test_the_box_has_the_bounds_of_the_input(capsys):
    assert main(["explain", "--composite", "EpsilonGammaBox"]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["composite"] == f"EpsilonGammaBox: {composites.EpsilonGammaBox(low=0.0, high=1.0)!r}"


def test_every_preset_of_the_package_is_offered():
    presets = {
        name
        for name, preset in vars(composites).items()
        if inspect.isfunction(preset) and preset.__module__ == composites.__name__ and not name.startswith("_")
    }
    assert set(COMPOSITES) == presets


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
        (["explain", "--composite", "Nonsense"], r"invalid choice: '?Nonsense'?.*EpsilonPlus"),
        (["explain", "--model", "vgg"], r"invalid choice: '?vgg'?.*efficientnet-lite0"),
        (["explain", "--target", "seven"], "invalid int value: 'seven'"),
        (["explain", "--target", "10"], r"--target 10 is out of range: the classes of digits are 0 to 9\. Leave"),
        (["explain", "--target", "-1"], r"--target -1 is out of range"),
        (["explain", "--output", "map.jpg"], r"--output map\.jpg must end in \.png"),
        (["explain", "--model", "efficientnet-lite0"], "needs a photograph: lrphooks explain IMAGE"),
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
        (".", None, "there is no picture file ."),
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


def test_a_picture_with_16_bits_exits_with_1(tmp_path, capsys):
    Image.fromarray(np.full((28, 28), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    status, error = failure(["explain", "deep.png"], capsys)
    assert status == 1
    assert "more than 8 bits per pixel" in error


def test_an_output_folder_that_is_not_there_exits_with_1(capsys):
    status, error = failure(["explain", "--output", "nowhere/map.png"], capsys)
    assert status == 1
    assert "the heatmap could not be written" in error
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
