"""Tokens of every vocabulary become the text that they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lrphooks.visualization.tokens import Piece, pieces


def text(tokens, join="auto"):
    return "".join(piece.text for piece in pieces(tokens, join))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["the", "film", "was", "bor", "##ing"], "the film was boring"),
        (["[CLS]", "well", ",", "yes", "(", "no", ")", "!", "[SEP]"], "[CLS] well, yes (no)! [SEP]"),
        (["##ing"], "ing"),
        (["a", "##", "b"], "a ## b"),
        (["The", "Ġcat", "Ġs", "at", ".", "Ċ", "Ġ", "Ġno"], "The cat sat.\n  no"),
        (["▁The", "▁cat", "s", "▁▁", "x"], "The cats  x"),
        (["<s>", "▁Hi"], "<s> Hi"),
        ([" Hello", " wor", "ld\n"], " Hello world\n"),
        ([], ""),
    ],
)
def test_tokens_are_joined_as_their_look_tells(tokens, expected):
    assert text(tokens) == expected


def test_the_way_to_join_can_be_told():
    assert text(["Ġa", "##b"], "words") == "Ġab"
    assert text(["a", "b"], "verbatim") == "ab"
    assert text(["Ã", "¼"], "bytes") == "ü"


def bytes_of(words):
    """Single bytes as a byte-level vocabulary names them, by transformers' own table."""
    table = bytes_to_unicode()
    return [table[byte] for byte in words.encode()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_bytes_are_decoded_and_those_of_one_character_are_joined(words):
    found = pieces(bytes_of(words), "bytes")
    # A space at the very start belongs to the vocabulary.
    assert "".join(piece.text for piece in found) == words.removeprefix(" ")
    assert [piece.count for piece in found] == [len(character.encode()) for character in words]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_bytes_of_sentencepiece(words):
    tokens = [f"<0x{byte:02X}>" for byte in words.encode()]
    assert text(["▁", *tokens], "sentencepiece") == words


def test_broken_bytes_are_visible_and_end_with_the_text():
    assert pieces(["aÃ", "b"], "bytes") == [Piece("aÃb", "a\ufffdb", 2)]
    assert pieces(["a", "Ã"], "bytes") == [Piece("a", "a"), Piece("Ã", "\ufffd")]


def test_special_tokens_stand_for_themselves():
    assert text(["<｜begin｜>", "Ġa", "<|end|>"]) == "<｜begin｜> a<|end|>"


def test_what_is_no_token_is_refused():
    with pytest.raises(TypeError, match=r"token 1 is 7, not a string\. .*convert_ids_to_tokens"):
        pieces(["a", 7])
    with pytest.raises(ValueError, match="no way 'bpe' to join tokens: there are auto, words, sentencepiece, bytes"):
        pieces(["a"], "bpe")
