"""The token ids of a long text, a part at a time.

Many tokenizers treat the beginning of a text in their own way: they put a space in front of it. The
ids of a later part are then those that follow the text before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from hpc_llm.text.documents import Rejected, cut_point

PART_CHARS = 4096
CONTEXT_CHARS = 128  # encoded again on either side of a cut: 9 % of the time
_TRIES = 8  # places for a cut, before a part is made twice as long
_LATIN = ("alpha", "beta", "gamma")
_CJK = ("\u6f22\u5b57", "\u4eee\u540d", "\u4e2d\u6587")

Encode = Callable[[str], list[int]]


def depends_on_place(encode: Encode, words: Iterable[str]) -> bool:
    """Whether words are encoded differently at the beginning or the end of a text, by trying.

    `words` are some that the tokenizer has; a few in two scripts are tried with every tokenizer.
    """
    for group in (_LATIN, _CJK, words):
        for first, second in itertools.pairwise(group):
            for between in ("", " ", "\n"):
                if _differs(encode, first, between, second):
                    return True
    return False


def encode_in_parts(
    encode: Encode,
    pieces: Iterable[str],
    part_chars: int = PART_CHARS,
    context_chars: int = CONTEXT_CHARS,
) -> Iterator[list[int]]:
    """The ids of the joined `pieces` as `encode` gives them for the whole, in parts.

    A text is cut where both sides, with what surrounds the cut, have the same ids: of BPE those of
    the whole, since it is valid if every two neighbours are. Text without such a place is encoded
    whole, and is in memory whole. Rejected if a cut turns out to be wrong later.
    """
    before = ""
    text = ""
    size = part_chars
    for piece in pieces:
        text += piece
        while len(text) > size + context_chars:
            end, ids = _first_part(encode, before, text, size, context_chars)
            if not end:
                size *= 2
                continue
            yield ids
            before = (before + text[:end])[-context_chars:]
            text = text[end:]
            size = part_chars
    last = _ids_after(encode, before, text)
    if last is None:
        raise Rejected("its tokens depend on text too far away; this tokenizer cannot encode it")
    yield last


def _differs(encode: Encode, first: str, between: str, second: str) -> bool:
    """Whether two texts, cut where long ones are, have other ids alone than together.

    Not if a token has parts of both, nor where an unknown character beside another one has no id at
    all.
    """
    if between == "\n":
        first += between
    elif between:
        second = between + second
    try:
        before = encode(first)
        after = encode(second)
        both = encode(first + second)
    except Exception:  # plain, from tokenizers, at characters that some models do not have
        return False
    rest = both[len(before) :]
    front = both[: max(0, len(both) - len(after))]
    after_changed = both[: len(before)] == before and rest not in ([], after)
    return after_changed or (both[len(front) :] == after and front not in ([], before))


def _first_part(
    encode: Encode, before: str, text: str, size: int, context_chars: int
) -> tuple[int, list[int]]:
    """The end of a part of at most `size` characters of `text`, and its ids; 0 if none is good."""
    for end in _ends(text, size):
        context = (before + text[:end])[-context_chars:]
        own = encode(context)
        if _ids_after(encode, context, text[end : end + context_chars]) is None:
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
        around = text[end - 1 : end + 1]
        if not around.isnumeric():  # some tokenizers take digits in threes, counted from the first
            yield end


def _ids_after(encode: Encode, before: str, text: str) -> list[int] | None:
    """The ids of `text` after `before`; None if it changes those of `before`."""
    own = encode(before) if before else []
    ids = encode(before + text)
    if ids[: len(own)] != own:
        return None
    return ids[len(own) :]
