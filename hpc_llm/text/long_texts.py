"""A long text's token ids, a stretch at a time, where a tokenizer treats the beginning of a text in
its own way.

Many put a space in front of a text. Of later stretches the ids are then those that follow the text
before them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from hpc_llm.text.documents import Rejected, cut_point

STRETCH_CHARS = 4096
_CONTEXT_CHARS = 128  # encoded again on either side of a cut: 9 % of the time
_TRIES = 8  # places for a cut, before a stretch is made twice as long
_LATIN = ("alpha", "beta", "gamma")
_CJK = ("\u6f22\u5b57", "\u4eee\u540d", "\u4e2d\u6587")

Encode = Callable[[str], list[int]]


def depends_on_place(encode: Encode, words: Iterable[str]) -> bool:
    """Whether words are encoded in another way at the beginning or the end of a text than within
    it, by trying.

    `words` are some that the tokenizer has; a few in two scripts are tried with every one.
    """
    pairs = [pair for group in (_LATIN, _CJK, words) for pair in itertools.pairwise(group)]
    return any(
        _differs(encode, first, between, second)
        for first, second in pairs
        for between in ("", " ", "\n")
    )


def encode_in_parts(encode: Encode, pieces: Iterable[str]) -> Iterator[list[int]]:
    """The ids of the joined `pieces` as `encode` gives them for the whole, in parts.

    A text is cut where both sides, with what surrounds the cut, have the same ids: of BPE those of
    the whole, since it is valid if every two neighbours are. Text without such a place is encoded
    whole, and is in memory whole. Rejected if a cut turns out to be wrong later.
    """
    before = ""
    text = ""
    size = STRETCH_CHARS
    for piece in pieces:
        text += piece
        while len(text) > size + _CONTEXT_CHARS:
            end, ids = _stretch(encode, before, text, size)
            if not end:
                size *= 2
                continue
            yield ids
            before = (before + text[:end])[-_CONTEXT_CHARS:]
            text = text[end:]
            size = STRETCH_CHARS
    last = _ids_after(encode, before, text)
    if last is None:
        raise Rejected("its tokens depend on text too far away; this tokenizer cannot encode it")
    yield last


def _differs(encode: Encode, first: str, between: str, second: str) -> bool:
    """Whether two texts, cut where long ones are, have other ids alone than together; not if a
    token has parts of both.

    What is left of an unknown character beside another one is no id at all.
    """
    if between == "\n":
        first += between
    elif between:
        second = between + second
    try:
        before = encode(first)
        after = encode(second)
        both = encode(first + second)
    except (
        Exception
    ):  # tokenizers raises plain Exception at characters that some models do not have
        return False
    rest = both[len(before) :]
    front = both[: max(0, len(both) - len(after))]
    after_changed = both[: len(before)] == before and rest not in ([], after)
    return after_changed or (both[len(front) :] == after and front not in ([], before))


def _stretch(encode: Encode, before: str, text: str, size: int) -> tuple[int, list[int]]:
    """The end of a stretch of at most `size` characters of `text`, and its ids; 0 if there is no
    good place.
    """
    for end in _ends(text, size):
        context = (before + text[:end])[-_CONTEXT_CHARS:]
        own = encode(context)
        if _ids_after(encode, context, text[end : end + _CONTEXT_CHARS]) is None:
            continue
        ids = _ids_after(encode, before, text[:end])
        agreed = (len(own) + 1) // 2
        if ids is not None and agreed and ids[-agreed:] == own[-agreed:]:
            return end, ids
    return 0, []


def _ends(text: str, size: int) -> Iterator[int]:
    end = size + 1
    for _ in range(_TRIES):
        end = cut_point(text, size // 2, end - 1)
        if not text[
            end - 1 : end + 1
        ].isnumeric():  # some take digits in threes, counted from the first
            yield end


def _ids_after(encode: Encode, before: str, text: str) -> list[int] | None:
    """The ids of `text` after `before`; None if it changes those of `before`."""
    own = encode(before) if before else []
    ids = encode(before + text)
    return ids[len(own) :] if ids[: len(own)] == own else None
