"""Files, places and programs that are not as they should be: one clear line, the right status, and the rest goes on."""

import json
import os
import shutil
import socket
import stat
import sys
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin, Image

from lrphooks.cli import files, main, memory, output, pictures
from lrphooks.cli.explaining import Explainer
from lrphooks.digits import images, load_network

TWO, SEVEN = (next(path for path in images() if path.stem == f"digit-{digit}") for digit in (2, 7))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """A folder of two digits, which are first and last by their names."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    shutil.copy(TWO, "in/a.png")
    shutil.copy(SEVEN, "in/z.png")


def run(*arguments, capsys):
    """The status, the records, and the lines of standard error of a run in JSON."""
    status = main(["explain", *arguments, "--json"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err.splitlines()


def packed(path):
    """PostScript under the name of a PNG."""
    Image.new("RGB", (30, 30)).save("x.eps")
    Path("x.eps").rename(path)


def bound(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "m.png is a pipe, not a picture."),
        (bound, "m.png is a socket, not a picture."),
        (lambda path: Path(path).symlink_to("/dev/zero"), "m.png is a device, not a picture."),
        (
            lambda path: Path(path).symlink_to("nowhere.png"),
            "m.png is a link to a file that is not there: nowhere.png.",
        ),
        (
            lambda path: Path(path).symlink_to("m.png"),
            "m.png could not be read as a picture: too many levels of symbolic",
        ),
        (lambda path: Path(path).write_bytes(b""), "m.png could not be read as a picture: the file is empty"),
        (lambda path: Path(path).write_bytes(b"%PDF-1.4 text"), "what is in it is no picture that Pillow knows"),
        (packed, "what is in it is PostScript, a program, which is not run"),
    ],
)
def test_one_file_of_another_kind_does_not_stop_the_others(make, message, monkeypatch, capsys):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    make("in/m.png")
    status, records, errors = run("in", "--output", "out", capsys=capsys)
    assert status == 1
    assert [record["status"] for record in records] == ["explained", "failed", "explained"]
    assert message in records[1]["error"]
    assert len(errors) == 1
    assert errors[0] == f"lrphooks: error: {records[1]['error']}"
    assert sorted(path.name for path in Path("out").iterdir()) == ["a-relevance.png", "z-relevance.png"]


@pytest.mark.parametrize("command", ["audit", "compare", "evaluate"])
def test_a_pipe_is_not_waited_for_by_any_command(command, capsys):
    os.mkfifo("pipe.png")
    assert main([command, "pipe.png"]) == 1
    assert capsys.readouterr().err == "lrphooks: error: pipe.png is a pipe, not a picture.\n"


@pytest.mark.parametrize("name", ["m" * 240 + ".png", "é" * 125 + ".png", "m" * 251 + ".png"])
def test_a_name_without_room_for_the_result(name, capsys):
    shutil.copy(TWO, f"in/{name}")
    status, records, errors = run("in", "--output", "out", capsys=capsys)
    assert status == 1
    assert sorted(record["status"] for record in records) == ["explained", "explained", "failed"]
    assert len(errors) == 1
    assert errors[0].endswith("-relevance.png: File name too long. Choose another place with --output.")
    assert sorted(path.name for path in Path("out").iterdir()) == ["a-relevance.png", "z-relevance.png"]
    # The way out.
    assert main(["explain", f"in/{name}", "--output", "short.png"]) == 0


@pytest.mark.parametrize(
    "name", ["line\nbreak.png", "\x1b[2Jclear.png", "-dash.png", "sur\udcffrogate.png", "ü ?*[.png"]
)
def test_odd_names_are_explained_and_printed_as_one_line(name, capsys):
    shutil.copy(TWO, f"in/{name}")
    Path(f"in/{name[:-4]}-broken.png").write_bytes(b"")
    status, records, errors = run("in", "--output", "out", capsys=capsys)
    assert status == 1
    found = {record["picture"]: record["status"] for record in records}
    assert found[f"in/{name}"] == "explained"
    assert found[f"in/{name[:-4]}-broken.png"] == "failed"
    assert len(errors) == 1
    assert main(["explain", f"in/{name}", "in/a.png", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert sum("in/" in line for line in printed.splitlines()) == 2
    os.chdir("in")
    assert main(["explain", "--output", "../again", "--", name]) == 0


def test_texts_for_terminals():
    assert output.printable("a\nb\x1b\udcff\u2028 é Σ\xa0") == "a\\nb\\x1b\\udcff\\u2028 é Σ\xa0"


def test_a_picture_that_vanishes_while_it_is_read(monkeypatch, capsys):
    check = pictures.check

    def checked(path):
        check(path)
        if path.name == "a.png":
            path.unlink()

    monkeypatch.setattr(pictures, "check", checked)
    status, records, _ = run("in", "--output", "out", "--model", "digits", capsys=capsys)
    assert status == 1
    assert [record["status"] for record in records] == ["failed", "explained"]
    assert "No such file or directory" in records[0]["error"]


def test_a_picture_that_vanishes_after_it_was_read_is_explained(monkeypatch, capsys):
    explain = Explainer.explain
    monkeypatch.setattr(
        Explainer, "explain", lambda self, x: (shutil.rmtree("in", ignore_errors=True), explain(self, x))[1]
    )
    status, records, _ = run("in", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records]) == (0, ["explained"] * 2)


def test_a_folder_that_cannot_be_looked_through_fails_by_itself(monkeypatch, capsys):
    Path("in/closed").mkdir()
    scandir, listdir = os.scandir, os.listdir

    def refusing(real):
        def found(path):
            if Path(os.fspath(path)).name == "closed":
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return real(path)

        return found

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    status, records, errors = run("in", "--output", "out", capsys=capsys)
    assert status == 1
    assert sorted(record["status"] for record in records) == ["explained", "explained", "failed"]
    assert errors == [
        "lrphooks: error: in/closed is a folder, not a picture. It could not be looked through: permission denied."
    ]


@pytest.mark.parametrize(
    ("place", "status", "message"),
    [
        ("file", 1, "--output file is a file, neither a folder nor a name that ends in .png"),
        ("file/under", 1, "--output file/under cannot be a folder: file is no folder."),
        ("file/under/two", 1, "file is no folder."),
        ("n" * 300, 1, "cannot be a folder: File name too long"),
        ("in/a.png/under", 1, "in/a.png is no folder"),
        ("loop", 1, "cannot be a folder: Too many levels of symbolic links"),
        ("nothing/under", 1, "nothing is no folder"),
        ("/proc/x", 1, "the heatmap could not be written: /proc/x: No such file or directory"),
        ("pipe", 2, "--output pipe is a pipe, neither a folder nor a PNG"),
        ("pipe.png", 2, "--output pipe.png is a pipe, neither a folder nor a PNG"),
        ("/dev/null", 2, "--output /dev/null is a device"),
        ("null.png", 2, "--output null.png is a device"),
        ("picture.jpg", 2, "must end in .png, or be a folder"),
    ],
)
def test_places_that_cannot_be_written_to(place, status, message, capsys):
    Path("file").write_text("mine")
    os.mkfifo("pipe")
    os.mkfifo("pipe.png")
    Path("null.png").symlink_to("/dev/null")
    Path("loop").symlink_to("loop")
    Path("nothing").symlink_to("nowhere")
    before = sorted(Path().iterdir())
    found, records, errors = run("in", "--output", place, capsys=capsys)
    assert found == status
    assert all(record["status"] == "failed" for record in records)
    assert errors
    assert all(message in line for line in errors)
    assert sorted(Path().iterdir()) == before
    assert Path("file").read_text() == "mine"
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    if status == 2 or "/" not in place:
        # What looks at one picture writes there no better.
        assert main(["compare", "in/a.png", "--output", place]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: Path(path).symlink_to("nowhere")])
def test_a_name_of_a_result_that_is_taken(make, capsys):
    Path("out").mkdir()
    make("out/a-relevance.png")
    status, records, _ = run("in", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records]) == (1, ["failed", "explained"])
    assert "is there already, and is no result of lrphooks explain" in records[0]["error"]


def test_the_folder_is_full(monkeypatch, capsys):
    real = os.fdopen

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        os, "fdopen", lambda n, mode, **more: Full(real(n, mode)) if mode == "w+b" else real(n, mode, **more)
    )
    status, records, _ = run("in", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records]) == (1, ["failed"] * 2)
    assert not list(Path("out").iterdir())


# --- what killed runs leave ---


def left_by_a_killed_run(name):
    """The system closes the files of what it kills, and so unlocks them."""
    part, file = files.claim(Path(f"out/.{name}.0123abcd.part"))
    file.write(b"half of")
    file.close()
    return part


def test_what_a_killed_run_left_is_removed(capsys):
    Path("out").mkdir()
    files.begin()
    left = [left_by_a_killed_run(name) for name in ("a-relevance.png", "other-relevance.png")]
    alive, file = files.claim(Path("out/.z-relevance.png.fedc3210.part"))
    others = [
        ".x.part",
        ".notes.txt.0123abcd.part",
        ".a.png.0123.part",
        "a.png.0123abcd.part",
        ".a.png.0123abcd.part.gz",
    ]
    for other in others:
        Path("out", other).write_bytes(b"of another program")
    Path("out/.link.png.0123abcd.part").symlink_to("../in/a.png")
    with file:
        assert run("in", "--output", "out", capsys=capsys)[0] == 0
        assert not any(path.exists() for path in left)
        assert alive.exists()
    assert all(Path("out", other).exists() for other in others)
    assert Path("out/.link.png.0123abcd.part").is_symlink()
    # The other run ends, or is killed, and the next one removes it, though every result is there already.
    assert run("in", "--output", "out", capsys=capsys)[0] == 0
    assert not alive.exists()
    assert len(list(Path("out").glob("*-relevance.png"))) == 2


def test_what_another_user_left_stays(monkeypatch, capsys):
    Path("out").mkdir()
    left = left_by_a_killed_run("a-relevance.png")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert run("in", "--output", "out", capsys=capsys)[0] == 0
    assert left.exists()


def test_a_part_that_another_run_removes_before_it_is_locked_is_made_again(monkeypatch):
    Path("out").mkdir()
    locked, calls = files._locked, []

    def late(number):
        calls.append(number)
        if len(calls) == 1:
            Path("out/.a.png.0123abcd.part").unlink()
        return locked(number)

    monkeypatch.setattr(files, "_locked", late)
    part, file = files.claim(Path("out/.a.png.0123abcd.part"))
    with file:
        assert part.exists()
        assert part.name != ".a.png.0123abcd.part"


def test_results_of_evaluate_that_a_kill_cut_short_are_measured_again(capsys):
    command = ["evaluate", "in", "--steps", "3", "--composite", "EpsilonPlus"]
    assert main(command) == 0
    first = capsys.readouterr().out
    lines = Path("evaluation.jsonl").read_bytes()
    for cut in (1, len(lines) // 2 + 5, len(lines) - 3):
        Path("evaluation.jsonl").write_bytes(lines[:-cut])
        assert main(command) == 0
        assert capsys.readouterr().out == first


# --- memory ---


def test_a_size_that_no_memory_has_is_refused_first(monkeypatch, capsys):
    monkeypatch.setattr(memory, "available", lambda: 64 * 10**9)
    monkeypatch.setattr("lrphooks.cli.arguments.load", lambda *_, **__: pytest.fail("the model was made"))
    for command in ("explain", "audit", "compare", "evaluate"):
        assert main([command, "in/a.png", "--model", "torchvision:resnet18", "--size", "100000"]) == 1
        assert capsys.readouterr().err == (
            "lrphooks: error: --size 100000x100000, one picture, takes at least 630.0 GB of memory, and 64.0 GB is "
            "free: give a smaller --size.\n"
        )


def test_a_picture_that_does_not_fit_fails_by_itself(monkeypatch, capsys):
    Image.new("L", (4000, 4000)).save("in/m.png")
    monkeypatch.setattr(memory, "available", lambda: 10**7)
    status, records, _ = run("in", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records]) == (1, ["explained", "failed", "explained"])
    assert "m.png takes at least 0.0 GB of memory" in records[1]["error"]


def test_a_picture_that_is_too_narrow_to_be_resized_fails_by_itself(monkeypatch, capsys):
    Path("narrow.py").write_text(
        "from torch.nn import *\nmodel = Sequential(Conv2d(3, 2, 8), AdaptiveAvgPool2d(1), Flatten(), Linear(2, 3))\n"
    )
    Image.new("L", (1, 60_000)).save("in/m.png")
    status, records, _ = run("in", "--model", "narrow:model", "--size", "64", "--output", "out", capsys=capsys)
    monkeypatch.delitem(sys.modules, "narrow")
    assert (status, [record["status"] for record in records]) == (1, ["explained", "failed", "explained"])
    assert "as narrow as 1 x 60000 pixels would be resized to 64 x 3840000" in records[1]["error"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory: give a smaller --batch-size, or a smaller --size."),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 8 bytes. Error code 12"
            ),
            "a smaller --size. (DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes)",
        ),
        (KeyError("in\nlines"), "KeyError: 'in\\\\nlines'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_network_that_fails_when_it_is_explained(error, message, monkeypatch, capsys):
    class Failing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = load_network()

        def forward(self, x):
            if torch.is_grad_enabled():
                raise error
            return self.inner(x)

    monkeypatch.setattr("lrphooks.digits.load_network", Failing)
    status, records, errors = run("in", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records]) == (1, ["failed"] * 2)
    assert len(errors) == 2
    assert message.replace("\\\\", "\\") in records[0]["error"]
    assert main(["audit"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_nobody_foresaw_is_a_line_and_on_demand_a_traceback(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("lrphooks.cli.inputs.find", broken)
    assert main(["explain"]) == 1
    assert capsys.readouterr().err.startswith(
        "lrphooks: error: ZeroDivisionError: by zero (in test_cli_faults.py, line "
    )
    monkeypatch.setenv("LRPHOOKS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["explain"])


# --- weights and factories ---


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(3).to_sparse(), torch.ones(3, device="meta")])
def test_weights_that_do_not_fit_are_a_line(value, capsys):
    state = load_network().state_dict()
    state[next(iter(state))] = value
    torch.save(state, "odd.pth")
    assert main(["explain", "in/a.png", "--weights", "odd.pth"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("in/a-relevance.png").exists()


def test_weights_that_are_no_numbers_are_a_line(capsys):
    state = load_network().state_dict()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("nan"))
    torch.save(state, "nan.pth")
    status, records, errors = run("in", "--weights", "nan.pth", "--output", "out", capsys=capsys)
    assert (status, [record["status"] for record in records], len(errors)) == (1, ["failed"] * 2, 2)
    assert "NaN" in errors[0]


FACTORY = """
import sys
import torch
print("at import")
class Network(torch.nn.Sequential):
    def forward(self, x):
        print("in the network")
        return super().forward(x)
def model():
    print("in the factory")
    return Network(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))
def leaves():
    sys.exit(0)
def sparse():
    network = model()
    network.register_buffer("mask", torch.eye(3).to_sparse())
    return network
"""


@pytest.fixture
def module(tmp_path):
    name = f"faulty_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(FACTORY)
    return name


@pytest.mark.parametrize("factory", ["model", "sparse"])
def test_what_a_factory_prints_is_no_result(factory, module, capsys):
    assert main(["explain", "in", "--model", f"{module}:{factory}", "--size", "8", "--json", "--output", "out"]) == 0
    captured = capsys.readouterr()
    assert len([json.loads(line) for line in captured.out.splitlines()]) == 2
    for where in ("at import", "in the factory", "in the network"):
        assert where in captured.err


@pytest.mark.parametrize("command", ["explain", "audit", "compare", "evaluate"])
def test_a_factory_that_ends_the_program_is_an_error(command, module, capsys):
    assert main([command, "in/a.png", "--model", f"{module}:leaves", "--size", "8"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"lrphooks: error: {module}:leaves() called sys.exit(0)")
