"""Letters: numbers as they are typeset, fonts that have the glyphs, lines that fit."""

import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lrphooks.visualization import lettering
from lrphooks.visualization.lettering import Lettering, number, wrapped

FACE = Lettering(32)


def ink(text, face=FACE):
    """What a line darkens, as rows of columns."""
    canvas = Image.new("RGB", (900, 60), "white")
    face.draw(ImageDraw.Draw(canvas), (10, 30), text, (0, 0, 0))
    return 255 - np.asarray(canvas.convert("L")).astype(int)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.2034, "+0.203"),
        (-0.2034, "−0.203"),
        (-1.0, "−1.00"),
        (13.249, "+13.2"),
        (0.00123456, "+0.00123"),
        (9.999, "+10.0"),
        (4567, "+4570"),
        (2.07e-7, "+2.07·10⁻⁷"),
        (-1.5e12, "−1.50·10¹²"),
        (9.9999e-5, "+1.00·10⁻⁴"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text
    assert number(abs(value), signed=False) == text.lstrip("+−")


def test_a_minus_is_as_high_as_the_bar_of_a_plus():
    minus, plus = (ink(sign) > 128 for sign in "−+")
    (widest,) = np.nonzero(plus.sum(axis=1) > plus.sum(axis=1).max() / 2)
    (rows,) = np.nonzero(minus.any(axis=1))
    assert rows.min() >= widest.min() - 1
    assert rows.max() <= widest.max() + 1
    assert minus.any(axis=0).sum() > 0.7 * plus.any(axis=0).sum()


def test_exponents_are_raised_and_small():
    plain, raised = np.nonzero(ink("7") > 128)[0], np.nonzero(ink("⁷") > 128)[0]
    assert raised.max() < plain.max() - 5
    assert np.ptp(raised) < 0.8 * np.ptp(plain)


@pytest.mark.parametrize("text", ["Größe", "Σ R = γ", "naïve", "жук", "déjà vu"])
def test_letters_that_pillow_lacks_are_taken_from_another_font(text):
    default = ImageFont.load_default(32)
    boxes = [np.asarray(default.getmask(letter)).tobytes() for letter in ("\U0010ffff", *text)]
    assert boxes[0] in boxes[1:], "Pillow's own font has these letters: this case tests nothing"
    drawn = {letter: ink(letter).tobytes() for letter in text if letter.isalpha()}
    assert len(set(drawn.values())) == len(drawn)
    assert ink("\ue123").tobytes() not in drawn.values()


def test_a_line_is_of_one_font_where_one_has_it_all():
    # "M" of a line with an umlaut is not Pillow's own M.
    assert not np.array_equal(ink("Mü")[:, :30], ink("M")[:, :30])
    assert np.array_equal(ink("M−5")[:, :30], ink("M")[:, :30])


@pytest.mark.parametrize(
    ("text", "shown"), [("a\ue123b", "a\\ue123b"), ("a\x1bb", "a\\x1bb"), ("\U000f0000", "\\U000f0000")]
)
def test_what_no_font_has_is_written_as_its_escape(text, shown):
    np.testing.assert_array_equal(ink(text), ink(shown))


def test_without_other_fonts_letters_are_escapes_and_no_boxes(monkeypatch):
    monkeypatch.setattr(lettering, "_installed", lambda _: "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    caches = (lettering._font_files, lettering._has, lettering._font, lettering._best)
    for cache in caches:
        cache.cache_clear()
    try:
        np.testing.assert_array_equal(ink("γ"), ink("\\u03b3"))
        assert number(-2e-7) == "−2.00·10⁻⁷"
        assert ink("−10⁻⁷").max() == 255
    finally:
        for cache in caches:
            cache.cache_clear()


def test_the_font_of_matplotlib_is_found_without_importing_it():
    assert any("DejaVuSans.ttf" in file for file in lettering._font_files())
    assert isinstance(importlib.util.find_spec("matplotlib"), importlib.machinery.ModuleSpec)


def test_long_lines_are_wrapped_and_cut_within_the_width():
    text = "a title of many words that goes on and on"
    assert wrapped(text, 10_000, 3, FACE.width) == [text]
    (short,) = wrapped(text, 200, 1, FACE.width)
    assert short.endswith("…")
    assert text.startswith(short[:-1].rstrip())
    assert 150 < FACE.width(short) <= 200
    lines = wrapped(text, 300, 10, FACE.width)
    assert " ".join(lines) == text
    assert max(map(FACE.width, lines)) <= 300
    two = wrapped(f"{text} and on", 300, 2, FACE.width)
    assert len(two) == 2
    assert two[1].endswith("…")
    assert max(map(FACE.width, two)) <= 300
    assert wrapped("one\ntwo", 300, 3, FACE.width) == ["one", "two"]
    assert wrapped("Donaudampfschifffahrt", 100, 1, FACE.width)[0].startswith("Dona")
    assert wrapped("", 300, 2, FACE.width) == wrapped(" \n", 300, 2, FACE.width) == []
    # However narrow it is, there is an end.
    assert len(wrapped("WWW WWW", 0.5, 2, FACE.width)) == 2


def test_a_line_for_others_is_in_a_font_that_is_a_file():
    file, line = Lettering(20, own=False).font("f(x) = −2·10⁻⁷ \ue123")
    assert Path(file).is_file()
    assert line == "f(x) = −2·10⁻⁷ \\ue123"
