"""Videos that the tests write themselves are explained frame after frame."""

import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lrphooks.cli import main
from lrphooks.digits import images

FRAMES = 5


@pytest.fixture
def video(tmp_path):
    """Five frames of a digit that wanders, as a video of lossless frames."""
    path = tmp_path / "seven.avi"
    digit = np.asarray(Image.open(next(p for p in images() if p.name == "digit-7.png")).convert("RGB"))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (60, 60))
    for step in range(FRAMES):
        frame = np.zeros((60, 60, 3), dtype=np.uint8)
        frame[10 : 10 + 28, 2 * step : 2 * step + 28] = digit
        writer.write(frame[..., ::-1])
    writer.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while (read := capture.read())[0]:
        found.append(read[1])
    return found, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("name", ["out.avi", "out.mp4"])
def test_a_video_becomes_a_video_of_explanations(name, video, tmp_path, capsys):
    assert main(["stream", str(video), "--output", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^frame 1: 7, probability [01]\.\d+; \S+ frames per second$", printed, re.MULTILINE)
    assert re.search(rf"^{FRAMES} frames, \S+ frames per second$", printed, re.MULTILINE)
    frames, rate = frames_of(tmp_path / name)
    assert len(frames) == FRAMES
    assert rate == 10.0
    height, width = frames[0].shape[:2]
    assert width > height
    # The picture is grey; red and blue are on the side of the relevance.
    colour = np.ptp(frames[0].astype(int), axis=2)
    assert (colour[:, : width // 2] < 60).all()
    assert (colour[:, width // 2 :] > 100).sum() > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "seven.avi"])


def test_a_video_becomes_pictures(video, tmp_path, capsys):
    folder = tmp_path / "frames"
    assert main(["stream", str(video), "--output", str(folder), "--frames", "2", "--target", "2"]) == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["frame-000001.png", "frame-000002.png"]
    assert "2 frames, " in capsys.readouterr().out


def test_a_frame_that_cannot_be_explained_does_not_end_the_stream(tmp_path, capsys):
    path = tmp_path / "blank.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (60, 60))
    for _ in range(2):
        writer.write(np.zeros((60, 60, 3), dtype=np.uint8))
    writer.release()
    assert main(["stream", str(path)]) == 1
    captured = capsys.readouterr()
    assert "frame 1: the picture shows no digit" in captured.err
    assert "frame 2: the picture shows no digit" in captured.err


def test_an_interrupted_stream_keeps_what_it_has(video, tmp_path, monkeypatch, capsys):
    from lrphooks.cli.explaining import Explainer

    explain, seen = Explainer.explain, []

    def interrupted(self, inputs):
        seen.append(inputs)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return explain(self, inputs)

    monkeypatch.setattr(Explainer, "explain", interrupted)
    assert main(["stream", str(video), "--output", str(tmp_path / "out.avi")]) == 0
    assert "what was written until now is kept" in capsys.readouterr().err
    assert len(frames_of(tmp_path / "out.avi")[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["missing.mp4"], 1, "there is no video missing.mp4"),
        (["text.mp4"], 1, "text.mp4 could not be opened as a video"),
        (["97"], 1, "camera 97 could not be opened"),
        (["text.mp4", "--output", "out.mkv"], 2, "--output out.mkv must end in .mp4 or .avi, or be a folder"),
    ],
)
def test_what_is_no_video(arguments, status, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("this is no video")
    assert main(["stream", *arguments]) == status
    assert message in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


@pytest.mark.parametrize(
    ("make", "arguments", "status", "message"),
    [
        (os.mkfifo, ["m.mp4"], 1, "m.mp4 is a pipe, not a video file."),
        (os.mkdir, ["m.mp4"], 1, "m.mp4 is a folder, not a video file."),
        (os.mkfifo, ["seven.avi", "--output", "m.mp4"], 2, "--output m.mp4 is a pipe, not a video or a folder"),
        (os.mkfifo, ["seven.avi", "--output", "m"], 2, "--output m is a pipe, not a video or a folder"),
        (
            lambda path: Path(path).touch(),
            ["seven.avi", "--output", "m/x"],
            1,
            "could not be written: m/x: Not a directory",
        ),
        (
            lambda path: Path(path).touch(),
            ["seven.avi", "--output", "m/x.mp4"],
            1,
            "m/x.mp4 could not be written: Not a",
        ),
        (os.mkdir, ["seven.avi", "--output", "m/" + "n" * 251 + ".mp4"], 1, ".mp4 could not be written: File name too"),
    ],
)
def test_places_that_are_no_videos(make, arguments, status, message, video, monkeypatch, capfd):
    monkeypatch.chdir(video.parent)
    make("m.mp4" if "m.mp4" in arguments else "m")
    before = sorted(Path().rglob("*"))
    assert main(["stream", *arguments]) == status
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def test_what_a_killed_run_left_is_removed(video, tmp_path):
    from lrphooks.cli import files

    left, file = files.claim(tmp_path / ".out.0123abcd.part.mp4")
    file.close()
    assert left.exists()
    assert main(["stream", str(video), "--output", str(tmp_path / "out.mp4"), "--frames", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "seven.avi"]


def test_a_missing_package_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["stream", "0"]) == 1
    assert re.search(r"needs the Python package opencv.*lrphooks\[video\]", capsys.readouterr().err)
