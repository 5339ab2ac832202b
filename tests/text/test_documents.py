from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.text.documents import PIECE_CHARS, Rejected, cut, decoded

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


def fragments(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@given(text=TEXT, size=st.integers(1, 40))
def test_pieces_are_the_text_and_none_is_longer_than_asked_for(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_a_piece_ends_before_a_single_space_between_words_or_after_a_line() -> None:
    assert list(cut("one two  three\n  four", 12)) == ["one", " two  three\n", "  four"]
    assert list(cut("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]


@given(text=TEXT, size=st.integers(1, 7))
@settings(max_examples=50)
def test_text_is_decoded_whatever_the_size_of_fragments(text: str, size: int) -> None:
    content = (text + " word" * 20_000).encode()
    pieces = list(decoded(fragments(content, size * 10_007)))
    assert "".join(pieces) == content.decode()
    assert pieces == list(decoded([content]))
    assert max(map(len, pieces)) <= PIECE_CHARS


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "invalid UTF-8 at byte 3"),
        (b"ab\xe2\x96", "invalid UTF-8 at byte 2"),
        (b"ab\xe2\x96xy", "invalid UTF-8 at byte 2"),
        (b"\xed\xa0\x80", "invalid UTF-8 at byte 0"),
        (b"a\0b", "holds NUL"),
    ],
)
def test_what_is_no_text_says_where(content: bytes, reason: str, size: int) -> None:
    with pytest.raises(Rejected, match=reason):
        list(decoded(fragments(content, size)))
