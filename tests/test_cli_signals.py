"""How the program ends: Ctrl-C and other signals, pipes that nobody reads, memory that is not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lrphooks
from lrphooks.cli import main, signals
from lrphooks.digits import images

SOURCE = str(Path(lrphooks.__file__).parents[1])
SEVEN = next(path for path in images() if path.stem == "digit-7")

#: Stands in for torch: the signal comes when its import has begun.
TORCH = """
import os, signal
signal.raise_signal(signal.{name})
os.write(1, b"went on")
os._exit(0)
"""


def default():
    """What a program starts with in the foreground, however the tests were started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def ignored():
    """What a shell starts a program with in the background, and nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def started(*arguments, start=default, path="", **more):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in (path, SOURCE) if each), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=env, preexec_fn=start, capture_output=True, text=True, check=False, **more
    )


@pytest.fixture(params=["module", "script"])
def program(request, tmp_path):
    """The program as Python runs the module, and as pip installs the command."""
    if request.param == "module":
        return ("-m", "lrphooks")
    (tmp_path / "lrphooks").write_text("import sys\nfrom lrphooks.cli import main\nsys.exit(main())\n")
    return (str(tmp_path / "lrphooks"),)


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "terminated")],
)
def test_a_signal_while_torch_is_imported_is_a_line(name, status, word, program, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "torch.py").write_text(TORCH.format(name=name))
    done = started(*program, "explain", path=str(tmp_path / "first"))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"lrphooks: {word}\n")


def test_what_is_ignored_from_the_start_stays_so(program, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "torch.py").write_text(TORCH.format(name="SIGINT"))
    done = started(*program, "explain", start=ignored, path=str(tmp_path / "first"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on", "")


def test_who_imports_lrphooks_keeps_its_signals(tmp_path):
    (tmp_path / "torch.py").write_text(TORCH.format(name="SIGINT"))
    done = started("-c", "import lrphooks; lrphooks.lrp", path=str(tmp_path))
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "original", "found"),
    [
        (["/usr/bin/lrphooks", "explain"], ["python", "/usr/bin/lrphooks", "explain"], True),
        (["C:/Scripts/lrphooks.exe"], ["C:/Scripts/lrphooks.exe"], True),
        (["-m", "explain"], ["python", "-X", "utf8", "-m", "lrphooks", "explain"], True),
        (["-m"], ["python", "-mlrphooks"], True),
        (["-m"], ["python", "-m", "training", "lrphooks"], False),
        (["-m"], ["python", "-m"], False),
        (["-c"], ["python", "-c", "import lrphooks"], False),
        (["train.py", "lrphooks"], ["python", "train.py", "lrphooks"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_whether_the_process_is_the_program(arguments, original, found, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert signals.is_program() == found


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_ends_the_program_as_the_system_does(name, handlers):
    number = getattr(signal, name)
    with pytest.raises(signals.Stopped) as stop, signals.stoppable():
        signal.raise_signal(number)
    assert signals.status_of(stop.value) == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_program_that_is_told_to_end_says_so(handlers, tmp_path, monkeypatch, capsys):
    """As Ctrl-C, but with the status of its signal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lrphooks", "audit"])
    # Else the output of this process would go elsewhere for good.
    monkeypatch.setattr("lrphooks.cli.output._private", lambda: None)
    monkeypatch.setattr("lrphooks.cli.memory.limit", lambda: None)
    monkeypatch.setattr("lrphooks.cli.subject.predict", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main() == 143
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "lrphooks: terminated\n")


def test_a_caller_in_python_keeps_its_signals(handlers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["composites"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


MODULE = """
import ctypes, os, torch
print("at import")
class Network(torch.nn.Sequential):
    def forward(self, x):
        os.write(1, b"raw\\n")
        ctypes.CDLL(None).printf(b"from C\\n")
        return super().forward(x)
def model():
    return Network(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the C library has another name")
def test_standard_output_has_results_alone_whoever_prints(tmp_path):
    (tmp_path / "printing.py").write_text(MODULE)
    shutil.copy(SEVEN, tmp_path / "seven.png")
    done = started(
        *("-m", "lrphooks", "explain", "seven.png", "--model", "printing:model", "--size", "8", "--json"), cwd=tmp_path
    )
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["status"] == "explained"
    for text in ("at import", "raw", "from C"):
        assert text in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_results_that_cannot_be_written_are_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lrphooks", "composites"],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "lrphooks: error: standard output could not be written: No space left on device.\n"


MEMORY = """
from lrphooks.cli import memory
import torch
free = memory.available()
memory.limit()
try:
    torch.empty(free + 2**28, dtype=torch.uint8)
except RuntimeError as error:
    print(error)
torch.ones(2**20).sum().item()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_more_memory_than_there_is_raises_an_error():
    done = started("-c", MEMORY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "can't allocate memory" in done.stdout
