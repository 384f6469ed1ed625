"""Many pictures: folders and patterns, failures among them, what is kept, and what Ctrl-C leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import lrphooks
from lrphooks.cli import main
from lrphooks.cli.command import CommandError
from lrphooks.cli.explaining import Explainer
from lrphooks.composites import EpsilonPlus
from lrphooks.digits import images, load_image, load_network

DIGITS = {path.stem: path for path in images() if path.stem in ("digit-0", "digit-2", "digit-7")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """All packaged digits, one in a folder of its own, in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("pictures/more").mkdir(parents=True)
    for index, (name, path) in enumerate(DIGITS.items()):
        shutil.copy(path, f"pictures/{'more/' if index == 0 else ''}{name}.png")
    return Path("pictures")


def records(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def files(place):
    return sorted(path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file())


def stamps(place):
    return {path: path.stat().st_mtime_ns for path in Path(place).rglob("*.png")}


def test_a_folder_is_explained_with_all_folders_in_it(folder, capsys):
    assert main(["explain", "pictures", "--output", "out", "--json", "--batch-size", "2"]) == 0
    found = records(capsys)
    assert len(found) == len(DIGITS)
    network = load_network()
    for record in found:
        stem = Path(record["picture"]).stem
        x = load_image(DIGITS[stem])
        logits = network(x)[0].detach()
        target = int(logits.argmax())
        relevance = lrphooks.lrp(network, x, target, EpsilonPlus()).double().sum().item()
        (explained,) = record["explained"]
        assert record["status"] == "explained"
        assert explained["target"] == target == int(stem[-1])
        assert explained["output"] == pytest.approx(logits[target].item(), rel=1e-5)
        assert explained["relevance"] == pytest.approx(relevance, rel=1e-4)
        assert record["classes"][0]["probability"] == pytest.approx(logits.softmax(0).max().item(), rel=1e-5)
        assert Path(record["written"]).is_file()
    first, *others = DIGITS
    assert files("out") == sorted([f"more/{first}-relevance.png", *(f"{name}-relevance.png" for name in others)])


def test_a_pattern_in_quotes_and_results_beside_the_pictures(folder, capsys):
    assert main(["explain", "pictures/**/digit-[27].png"]) == 0
    printed = capsys.readouterr().out
    assert "pictures    2\n" in printed
    assert re.search(r"^pictures/digit-7\.png: 7, probability [01]\.\d+; f\(x\) \S+$", printed, re.MULTILINE)
    assert printed.endswith("\n\n2 explained\n")
    assert "pictures/digit-7-relevance.png" in files(".")
    # The results are no pictures to explain.
    assert main(["explain", "pictures"]) == 0
    printed = capsys.readouterr().out
    assert f"pictures    {len(DIGITS)}, and 2 other files left out" in printed
    assert printed.endswith(f"\n{len(DIGITS) - 2} explained, 2 kept\n")


def test_what_fails_does_not_stop_the_others(folder, capsys):
    Path("pictures/bad.png").write_bytes(b"no picture")
    Path("pictures/empty.jpg").write_bytes(b"")
    Image.new("L", (50, 50)).save("pictures/blank.png")
    assert main(["explain", "pictures", "missing.png", "--output", "out", "--json"]) == 1
    captured = capsys.readouterr()
    found = {Path(r["picture"]).name: r for r in map(json.loads, captured.out.splitlines())}
    failed = {name: record["error"] for name, record in found.items() if record["status"] == "failed"}
    assert sorted(failed) == ["bad.png", "blank.png", "empty.jpg", "missing.png"]
    assert "no picture that Pillow knows" in failed["bad.png"]
    assert "shows no digit" in failed["blank.png"]
    assert "the file is empty" in failed["empty.jpg"]
    assert "there is no picture file missing.png" in failed["missing.png"]
    assert captured.err.count("lrphooks: error: ") == 4
    assert len(found) == len(DIGITS) + 4
    assert len(files("out")) == len(DIGITS)


def test_a_picture_that_the_network_cannot_explain_does_not_spoil_its_batch(folder, monkeypatch, capsys):
    class Particular(torch.nn.Module):
        """Has no finite answer to the two."""

        def __init__(self):
            super().__init__()
            self.inner = load_network()
            self.register_buffer("two", load_image(DIGITS["digit-2"]))

        def forward(self, x):
            two = (x == self.two).flatten(1).all(1)
            return self.inner(x) / (~two).float().unsqueeze(1)

    monkeypatch.setattr("lrphooks.digits.load_network", Particular)
    assert main(["explain", "pictures", "--output", "out", "--json"]) == 1
    found = {Path(r["picture"]).stem: r for r in records(capsys)}
    assert [name for name, record in found.items() if record["status"] == "failed"] == ["digit-2"]
    assert "NaN or infinite" in found["digit-2"]["error"]


def count_explained(monkeypatch):
    explain, seen = Explainer.explain, []

    def counted(self, inputs):
        seen.extend(inputs)
        return explain(self, inputs)

    monkeypatch.setattr(Explainer, "explain", counted)
    return seen


def test_what_is_finished_is_not_done_again(folder, monkeypatch, capsys):
    command = ["explain", "pictures", "--output", "out", "--json"]
    assert main(command) == 0
    first, before = records(capsys), stamps("out")
    seen = count_explained(monkeypatch)
    assert main(command) == 0
    second = records(capsys)
    assert not seen
    assert stamps("out") == before
    assert [record.pop("status") for record in second] == ["kept"] * len(DIGITS)
    assert second == [{k: v for k, v in record.items() if k != "status"} for record in first]
    assert main([*command, "--again"]) == 0
    assert len(seen) == len(DIGITS)
    assert all(stamp > before[path] for path, stamp in stamps("out").items())


@pytest.mark.parametrize(
    "changed",
    [
        ["--target", "3"],
        ["--composite", "AttnLRP"],
        ["--composite", "EpsilonPlus(epsilon=0.1)"],
        ["--weights", "random"],
        ["--labels", "labels.txt"],
    ],
)
def test_changed_settings_are_done_again(changed, folder, monkeypatch, capsys):
    Path("labels.txt").write_text("\n".join(f"number {digit}" for digit in range(10)))
    command = ["explain", "pictures", "--output", "out", "--json"]
    assert main(command) == 0
    seen = count_explained(monkeypatch)
    assert main([*command, *changed]) == 0
    assert len(seen) == len(DIGITS)
    assert main([*command, *changed]) == 0
    assert len(seen) == len(DIGITS)


def test_a_changed_picture_is_done_again(folder, monkeypatch, capsys):
    command = ["explain", "pictures", "--output", "out", "--json"]
    assert main(command) == 0
    shutil.copy(DIGITS["digit-2"], "pictures/digit-7.png")
    capsys.readouterr()
    seen = count_explained(monkeypatch)
    assert main(command) == 0
    assert len(seen) == 1
    changed = next(record for record in records(capsys) if record["status"] == "explained")
    assert (changed["picture"], changed["explained"][0]["target"]) == ("pictures/digit-7.png", 2)


def test_pictures_of_one_name_have_results_of_their_own(folder, capsys):
    for place in ("a", "b"):
        Path(place).mkdir()
    shutil.copy(DIGITS["digit-2"], "a/x.png")
    shutil.copy(DIGITS["digit-7"], "b/x.png")
    shutil.copy(DIGITS["digit-7"], "b/X.bmp")
    assert main(["explain", "a/x.png", "b/x.png", "b/X.bmp", "--output", "out", "--json"]) == 0
    found = {record["picture"]: record for record in records(capsys)}
    assert len({record["written"] for record in found.values()}) == 3
    assert files("out") == ["X.bmp-relevance.png", "a/x.png-relevance.png", "b/x.png-relevance.png"]
    assert found["a/x.png"]["explained"][0]["target"] == 2
    assert found["b/x.png"]["explained"][0]["target"] == 7


@pytest.mark.parametrize("many", [False, True])
def test_the_result_of_another_picture_is_not_overwritten(many, folder, capsys):
    Path("a").mkdir()
    shutil.copy(DIGITS["digit-2"], "a/digit-7.png")
    more = ["pictures/digit-2.png"] if many else []
    assert main(["explain", "pictures/digit-7.png", *more, "--output", "out"]) == 0
    before = stamps("out")
    capsys.readouterr()
    assert main(["explain", "a/digit-7.png", *more, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"out/digit-7-relevance\.png is the result of another picture, \.\./pictures/digit-7\.png", error)
    assert stamps("out") == before
    assert main(["explain", "a/digit-7.png", *more, "--output", "out", "--overwrite"]) == 0


def test_a_file_that_is_no_result_is_not_overwritten(folder, capsys):
    shutil.copy(DIGITS["digit-2"], "pictures/digit-7-relevance.png")
    before = Path("pictures/digit-7-relevance.png").read_bytes()
    assert main(["explain", "pictures/digit-7.png"]) == 1
    assert "is there already, and is no result of lrphooks explain" in capsys.readouterr().err
    assert Path("pictures/digit-7-relevance.png").read_bytes() == before


def test_results_may_be_moved_with_their_pictures(folder, monkeypatch, capsys):
    assert main(["explain", "pictures", "--output", "pictures/out"]) == 0
    folder.rename("moved")
    seen = count_explained(monkeypatch)
    assert main(["explain", "moved", "--output", "moved/out"]) == 0
    assert not seen
    # Results tell nothing of the machine.
    for path in Path("moved/out").rglob("*.png"):
        assert os.fspath(Path.cwd()).encode() not in path.read_bytes()


def test_several_pictures_need_a_folder(folder, capsys):
    assert main(["explain", "pictures", "--output", "one.png"]) == 2
    assert "several pictures need a folder: --output one.png is the name of one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "the folder empty has no picture"),
        (["pictures/*.jpg"], r"the pattern pictures/\*\.jpg has no picture"),
    ],
)
def test_nothing_to_explain_is_an_error(arguments, message, folder, capsys):
    Path("empty").mkdir()
    assert main(["explain", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_target_that_no_picture_has_stops_at_once(folder, monkeypatch, capsys):
    seen = count_explained(monkeypatch)
    assert main(["explain", "pictures", "--target", "12", "--batch-size", "1", "--output", "out"]) == 2
    assert "--target 12 is out of range" in capsys.readouterr().err
    assert len(seen) == 1
    assert not Path("out").exists()


INTERRUPTED = """
import signal, sys
from lrphooks.cli import files, main

# A run in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
replace, done = files.Path.replace, []

def counted(part, output):
    # The third result is on the disk in part when Ctrl-C comes: in this thread, so that nothing happens in between.
    if len(done) == 2 and part.suffix == ".part":
        signal.raise_signal(signal.SIGINT)
    done.append(output)
    return replace(part, output)

files.Path.replace = counted
sys.exit(main(["explain", "pictures", "--output", "out", "--batch-size", "1"]))
"""


def ignored():
    """What a program of a shell's background, and of nohup, starts with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("start", [None, ignored])
def test_ctrl_c_leaves_whole_results_and_the_same_command_goes_on(start, folder, monkeypatch, capsys):
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, preexec_fn=start
    )
    assert stopped.returncode == 130
    assert f"interrupted: 2 of {len(DIGITS)} pictures are done. The same command goes on from there." in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(files("out")) == 2  # no part of a file
    for path in Path("out").rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    seen = count_explained(monkeypatch)
    assert main(["explain", "pictures", "--output", "out", "--json"]) == 0
    assert len(seen) == len(DIGITS) - 2
    assert [record["status"] for record in records(capsys)].count("kept") == 2


def test_a_disk_that_is_full_leaves_no_part_of_a_file(folder, monkeypatch, capsys):
    save = Image.Image.save

    def full(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["explain", "pictures", "--output", "out"]) == 1
    assert capsys.readouterr().err.count("relevance.png: No space left on device.") == len(DIGITS)
    assert not files("out")


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m lrphooks composites | head -1"
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert shell.stdout == "EpsilonPlus(epsilon=1e-06, stabilizer=1e-06, bias='absorb')\n"
    assert shell.stderr == ""


def test_what_cannot_be_written_is_printed_all_the_same(folder, monkeypatch, capsys):
    def refused(path, content, what, option):
        raise CommandError(f"{what} could not be written: {path}: Read-only file system.")

    monkeypatch.setattr("lrphooks.cli.files.write", refused)
    assert main(["explain", "pictures", "--output", "out", "--json"]) == 1
    found = records(capsys)
    assert [record["status"] for record in found] == ["failed"] * len(DIGITS)
    assert {record["prediction"][0] for record in found} == {name[-1] for name in DIGITS}
    assert all(record["explained"] and record["written"] is None for record in found)
    assert all("Read-only file system" in record["error"] for record in found)


def test_compare_makes_the_folder_for_its_picture(folder):
    assert main(["compare", str(DIGITS["digit-7"]), "--composite", "AttnLRP", "--output", "new/folder"]) == 0
    assert Path("new/folder/digit-7-comparison.png").exists()
