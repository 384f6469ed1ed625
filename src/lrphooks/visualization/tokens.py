"""Tokens as the text that they stand for: pieces of words joined, bytes decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final, get_args

Join: TypeAlias = Literal["auto", "words", "sentencepiece", "bytes", "verbatim"]

_CONTINUES = "##"
_SPACE, _BYTE = "▁", re.compile("<0x([0-9A-F]{2})>")
_CLOSING, _OPENING = frozenset(".,;:!?%)]}…”’»"), frozenset("([{“‘«")

# Byte-level vocabularies write each byte as a printable character: itself, or the next one from 256 on.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(_OTHERS)}
_BYTE_SPACE, _BYTE_NEWLINE = "Ġ", "Ċ"


@final
@dataclass(frozen=True)
class Piece:
    """A token, or several that make one character together, and what it adds to the text.

    count: of how many tokens it was made.
    """

    token: str
    text: str
    count: int = 1


def pieces(tokens: Sequence[str], join: Join = "auto") -> list[Piece]:
    """Return the pieces of a text.

    Parameters
    ----------
    tokens
        The tokens as the tokenizer names them.
    join
        "words": a space between tokens, none before ``##ing`` and closing punctuation; "sentencepiece": ``▁`` is a
        space, ``<0xC3>`` a byte; "bytes": the byte-level alphabet of GPT-2, where ``Ġ`` is a space; "verbatim": tokens
        as they are, with the spaces that they hold; "auto": what the tokens look like.

    Raises
    ------
    TypeError, ValueError
        If a token is no string, or there is no such way to join.

    """
    for index, token in enumerate(tokens):
        if not isinstance(token, str):
            raise TypeError(
                f"token {index} is {token!r}, not a string. Names of tokens are wanted, not their numbers: "
                "tokenizer.convert_ids_to_tokens(ids)."
            )
    if join not in get_args(Join):
        raise ValueError(f"there is no way {join!r} to join tokens: there are {', '.join(get_args(Join))}.")
    match _kind(tokens) if join == "auto" else join:
        case "verbatim":
            return [Piece(token, token) for token in tokens]
        case "sentencepiece":
            found = list(_decoded(tokens, _sentencepiece_bytes))
        case "bytes":
            found = list(_decoded(tokens, _byte_level_bytes))
        case _:
            return list(_words(tokens))
    # The space before the first word belongs to the vocabulary, not to the text.
    return [Piece(found[0].token, found[0].text.removeprefix(" "), found[0].count), *found[1:]] if found else []


def _kind(tokens: Sequence[str]) -> Join:
    if any(token.startswith(_SPACE) for token in tokens):
        return "sentencepiece"
    if any(token.startswith((_BYTE_SPACE, _BYTE_NEWLINE)) for token in tokens):
        return "bytes"
    return "verbatim" if any(token != token.strip() for token in tokens) else "words"


def _words(tokens: Sequence[str]) -> Iterator[Piece]:
    before = ""
    for token in tokens:
        continues = token.startswith(_CONTINUES) and len(token) > len(_CONTINUES)
        text = token.removeprefix(_CONTINUES) if continues else token
        attached = continues or not before or before in _OPENING or text in _CLOSING
        yield Piece(token, text if attached else f" {text}")
        before = text


def _decoded(tokens: Sequence[str], to_bytes: Callable[[str], bytes]) -> Iterator[Piece]:
    """Decode the bytes of tokens; tokens that end within a character are joined with the next."""
    held: list[str] = []
    data = b""
    for index, token in enumerate(tokens):
        held.append(token)
        data += to_bytes(token)
        if index + 1 < len(tokens) and _ends_within(data):
            continue
        yield Piece("".join(held), data.decode(errors="replace"), len(held))
        held, data = [], b""


def _ends_within(data: bytes) -> bool:
    """Whether the last character lacks bytes."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def _byte_level_bytes(token: str) -> bytes:
    """Special tokens may hold other characters than the alphabet's: they stand for themselves."""
    return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()
