"""Coloured texts: HTML read back with a parser, and escape codes of terminals."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrphooks.visualization import MAPS, Text, highlight
from lrphooks.visualization.text import ink_on, terminal_colours

TOKENS = ["the", "film", "was", "not", "bor", "##ing", "!"]
RELEVANCE = [0.0, 0.1, 0.0, -1.0, 2.0, 1.0, 0.01]
CODE = re.compile("\x1b\\[([0-9;]*)m")


class Page(HTMLParser):
    """The spans with a title, and all text of the first inner division."""

    def __init__(self, html):
        super().__init__()
        self.spans, self.text, self.outer, self._open, self._depth = [], "", "", [], 0
        self.feed(html)
        self.close()
        assert not self._open, "a tag is left open"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if not self._open:
            self.outer = attributes["style"]
        self._open.append(tag)
        if "title" in attributes:
            self.spans.append([attributes["title"], attributes["style"], ""])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._depth += tag == "div"

    def handle_data(self, data):
        if self._depth == 0:
            self.text += data
        if self._open[-1] == "span" and self._depth == 0:
            self.spans[-1][2] += data


def rgb(style, name):
    return tuple(bytes.fromhex(re.search(rf"(?:^|;){name}:#([0-9a-f]{{6}})", style)[1]))


def luminance(colour):
    shares = np.asarray(colour) / 255
    return float(
        np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    )


def contrast(one, other):
    """WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_html_has_each_token_in_the_colour_of_its_relevance():
    page = Page(highlight(TOKENS, RELEVANCE).html())
    assert page.text == "the film was not boring!"
    assert [text for _, _, text in page.spans] == ["the", "film", "was", "not", "bor", "ing", "!"]
    assert [title for title, _, _ in page.spans] == [
        "the: 0",
        "film: +0.100",
        "was: 0",
        "not: −1.00",
        "bor: +2.00",
        "##ing: +1.00",
        "!: +0.0100",
    ]
    grounds = [rgb(style, "background") for _, style, _ in page.spans]
    # Control points of "red-blue": white, the full red, half of it, and half of the blue.
    assert (grounds[0], grounds[4], grounds[5], grounds[3]) == (
        (255, 255, 255),
        (135, 12, 30),
        (251, 107, 72),
        (79, 164, 241),
    )


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6), min_size=1, max_size=8)
)
def test_html_is_escaped(tokens):
    tokens = [token.strip() + "<b>&\"'" for token in tokens]
    page = Page(highlight(tokens, np.linspace(-1, 1, len(tokens)), join="verbatim").html(legend=False))
    assert page.text == "".join(tokens)


@pytest.mark.parametrize("name", MAPS)
def test_html_can_be_read_on_pages_dark_and_light(name):
    values = np.linspace(-1 if MAPS[name].diverging else 0, 1, 101)
    page = Page(highlight([f"w{index}" for index in range(101)], values, colours=name).html())
    for style in (page.outer, *(style for _, style, _ in page.spans)):
        assert contrast(rgb(style, "color"), rgb(style, "background")) >= 4.5
    # The ground is the text's own: the colour of no relevance.
    assert rgb(page.outer, "background") == MAPS[name].zero


def test_the_legend_tells_the_scale():
    plain = re.sub("<[^>]*>", "|", highlight(TOKENS, RELEVANCE).html())
    assert "−2.00" in plain
    assert "+2.00" in plain
    assert "and more" not in plain
    clipped = re.sub("<[^>]*>", "|", highlight(TOKENS, RELEVANCE, limit=1.5).html())
    assert re.search(r"−1\.50\|", clipped)
    assert "+1.50 and more" in clipped
    assert "2.00" not in re.sub("<[^>]*>", "", highlight(TOKENS, RELEVANCE).html(legend=False))


def test_a_notebook_shows_the_html():
    text = highlight(TOKENS, RELEVANCE)
    assert isinstance(text, Text)
    assert text._repr_html_() == text.html()
    assert str(text) == "the film was not boring!"


def test_a_picture_has_each_token_in_its_colour_and_breaks_between_words():
    drawn = np.asarray(highlight(TOKENS, RELEVANCE).image(width=640)).astype(int)

    def columns(part, colour):
        return np.nonzero((part == colour).all(axis=2).any(axis=0))[0]

    line = drawn[:, :640]
    red, half, blue = (columns(line, colour) for colour in ((135, 12, 30), (251, 107, 72), (79, 164, 241)))
    # "not", "bor" and "ing": the last two are one word, without a gap.
    assert blue.max() < red.min() < red.max() < half.max()
    assert half.min() - red.max() <= 3
    assert red.min() - blue.max() > 3
    narrow = np.asarray(highlight(TOKENS, RELEVANCE).image(width=90)).astype(int)
    assert narrow.shape[0] > drawn.shape[0]
    assert len(columns(narrow[:, 20:110], (135, 12, 30))) == len(red)
    two = highlight(["one", "Ċ", "two"], [1.0, 1.0, -1.0], join="bytes").image()
    rows = [
        np.nonzero((np.asarray(two)[:, :640] == colour).all(axis=2).any(axis=1))[0]
        for colour in ((135, 12, 30), (17, 63, 154))
    ]
    assert rows[0].max() < rows[1].min()


@pytest.mark.parametrize("colours", [2**24, 256, 16, 0])
def test_without_its_codes_a_terminal_shows_the_text(colours):
    text = highlight([*TOKENS, "Größe", "\x1b[2J"], [*RELEVANCE, 1.0, 2.0])
    coded = text.ansi(colours)
    assert CODE.sub("", coded) == "the film was not boring! Größe \\x1b[2J"
    codes = CODE.findall(coded)
    assert codes[1::2] == ["0"] * (len(codes) // 2)
    # "film" is at the least share that is coloured; "the", "was" and "!" are below it.
    assert len(codes) == (12 if colours else 0)


def test_the_codes_of_24_bits_are_the_colours():
    coded = highlight(["for", "against"], [1.0, -1.0]).ansi(2**24)
    assert (
        coded == "\x1b[38;2;255;255;255;48;2;135;12;30mfor\x1b[0m \x1b[38;2;255;255;255;48;2;17;63;154magainst\x1b[0m"
    )


def test_fewer_colours_are_the_nearest_of_the_terminal():
    text = highlight(["for", "against"], [1.0, -1.0])
    # 88 is (135, 0, 0) of the cube, 24 (0, 95, 135); 231 is white. Of the sixteen: dark red and dark blue, white ink.
    assert CODE.findall(text.ansi(256)) == ["38;5;231;48;5;88", "0", "38;5;231;48;5;24", "0"]
    assert CODE.findall(text.ansi(16)) == ["97;41", "0", "97;44", "0"]
    with pytest.raises(ValueError, match=r"colours=8: terminals have 2\*\*24, 256, 16 or 0 colours"):
        text.ansi(8)


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, 2**24),
        ({"COLORTERM": "24bit", "TERM": "screen"}, 2**24),
        ({"WT_SESSION": "1"}, 2**24),
        ({"TERM": "xterm-direct"}, 2**24),
        ({"TERM": "xterm-256color"}, 256),
        ({"TERM": "xterm"}, 16),
        ({"TERM": "dumb"}, 0),
        ({}, 0),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, 0),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, 256),
    ],
)
def test_the_environment_tells_how_many_colours_there_are(environment, colours, monkeypatch):
    assert terminal_colours(environment) == colours
    for name in ("TERM", "COLORTERM", "WT_SESSION", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = highlight(TOKENS, RELEVANCE)
    assert text.ansi() == text.ansi(colours)


def test_line_ends_are_visible_and_never_within_the_codes():
    text = highlight(["one", "Ċ", "Ġtwo"], [0.5, 1.0, -1.0])
    assert str(text) == "one\n two"
    assert CODE.sub("", text.ansi(256)) == "one↵\n two"
    for line in text.ansi(256).split("\n"):
        assert (CODE.findall(line) or ["0"])[-1] == "0"
    assert Page(text.html()).text == "one↵\n two"


def test_tokens_of_one_character_are_one_piece_with_the_sum():
    text = highlight(["na", "Ã", "¯", "ve"], [0.5, 1.0, 2.0, -0.25], join="bytes")
    assert str(text) == "naïve"
    assert text.relevance == (0.5, 3.0, -0.25)


@pytest.mark.parametrize(
    "relevance",
    [
        np.array(RELEVANCE),
        torch.tensor(RELEVANCE, requires_grad=True)[None],
        torch.tensor(RELEVANCE).double()[:, None] * torch.tensor([0.25, 0.75]),
        torch.tensor(RELEVANCE)[None, :, None] * torch.tensor([0.5, 0.5]),
    ],
)
def test_relevance_of_tokens_and_of_their_embeddings(relevance):
    np.testing.assert_allclose(highlight(TOKENS, relevance).relevance, RELEVANCE, rtol=1e-6)


def test_embeddings_are_pooled():
    values = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert highlight(["a", "b"], values, pooling="norm").relevance == (5.0, 0.0)
    assert highlight(["a"], values[:1]).relevance == (-1.0,)


@pytest.mark.parametrize("shape", [(6,), (2, 7), (7, 0), (1, 6), (2, 7, 4), ()])
def test_relevance_of_other_tokens_is_refused(shape):
    with pytest.raises(ValueError, match="does not belong to 7 tokens: it needs"):
        highlight(TOKENS, np.ones(shape))


def test_what_is_no_list_of_tokens_is_refused():
    with pytest.raises(TypeError, match="highlight takes the tokens of a text in a list, not the text 'the film'"):
        highlight("the film", np.ones(8))
    with pytest.raises(ValueError, match="does not belong to 0 tokens"):
        highlight([], np.ones(0))
    with pytest.raises(ValueError, match="1 of 2 relevance values are NaN"):
        highlight(["a", "b"], [1.0, float("nan")])


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_ink_has_contrast_on_every_ground(ground):
    assert contrast(ink_on(ground), ground) >= 4.5
