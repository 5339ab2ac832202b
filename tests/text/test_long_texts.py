from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hpc_llm.text.documents import Rejected, cut
from hpc_llm.text.long_texts import PART_CHARS, depends_on_place, encode_in_parts
from hpc_llm.text.tokenizer import open_tokenizer

HANZI = [chr(0x4E00 + 7 * number) for number in range(200)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def hanzi(num_chars: int) -> str:
    return "".join(random.Random(0).choices(HANZI, k=num_chars))


def llama2(texts: list[str]) -> bytes:
    """A tokenizer.json laid out as that of Llama 2.

    A space is put in front, and spaces are part of words.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "</s>", *BYTES],
        limit_alphabet=300,
        show_progress=False,
    )
    made.train_from_iterator([word for text in texts for word in text.split(" ")], trainer)
    parts = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    made.decoder = decoders.Sequence(parts)
    return str(made.to_str()).encode()


def metaspace(texts: list[str], scheme: str) -> bytes:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme == "always")
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>"], max_token_length=9, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str()).encode()


def byte_level(texts: list[str], space: bool) -> bytes:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return str(made.to_str()).encode()


def word_piece(texts: list[str]) -> bytes:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str()).encode()


def sentence_piece(texts: list[str], **given: Any) -> bytes:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "vocab_size": 900,
        "minloglevel": 2,
        **given,
    }
    lines = [line for text in texts for line in text.splitlines() if len(line) < 1000]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
PLACED: dict[str, Callable[[list[str]], bytes]] = {
    "llama2": llama2,
    "metaspace first": lambda texts: metaspace(texts, "first"),
    "metaspace always": lambda texts: metaspace(texts, "always"),
    "byte level": lambda texts: byte_level(texts, space=True),
    "word piece": word_piece,
    "dummy prefix": lambda texts: sentence_piece(texts, **IDENTITY),
    "dummy prefix, normalised": sentence_piece,
    "dummy suffix": lambda texts: sentence_piece(
        texts, treat_whitespace_as_suffix=True, **IDENTITY
    ),
}
FREE: dict[str, Callable[[list[str]], bytes]] = {
    "metaspace never": lambda texts: metaspace(texts, "never"),
    "byte level": lambda texts: byte_level(texts, space=False),
    "no dummy prefix": lambda texts: sentence_piece(texts, add_dummy_prefix=False, **IDENTITY),
}


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    read = [path.read_text(encoding="utf-8") for path in sorted(corpus.rglob("*.py"))[:12]]
    chinese = hanzi(4000)
    return [*read, *(chinese[start : start + 40] for start in range(0, 4000, 40))]


@pytest.fixture(scope="module", params=PLACED)
def placed(request: pytest.FixtureRequest, texts: list[str]) -> bytes:
    return PLACED[request.param](texts)


def whole(content: bytes) -> Callable[[str], list[int]]:
    """What the library itself gives for a text."""
    if content[:1] == b"{":
        made = Tokenizer.from_buffer(content)
        return lambda text: list(made.encode(text, add_special_tokens=False).ids)
    return sentencepiece.SentencePieceProcessor(model_proto=content).encode


def joined(parts: Any) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def texts_that_are_long(texts: list[str]) -> dict[str, str]:
    code = "".join(texts)[:200_000]
    return {
        "code": code,
        "one word a line": "\n".join(code.split()),
        "no space": "".join(code.split())[:40_000],
        "Chinese": hanzi(20_000),
        "digits": "0123456789" * 1000,
        "runs": "-" * 9001 + "\n" * 5001 + " " * 6001 + "x",
    }


def test_a_long_text_has_the_ids_that_the_whole_has(placed: bytes, texts: list[str]) -> None:
    opened = open_tokenizer(placed)
    encode = whole(placed)
    for name, text in texts_that_are_long(texts).items():
        assert joined(opened.encode(cut(text))) == encode(text), name


PARTS = st.one_of(
    st.sampled_from(
        [
            " the",
            " self",
            "import",
            " return",
            "\n",
            "\n\n    ",
            "  ",
            "0123",
            "----",
            "\u2581",
            "=" * 40,
        ]
    ),
    st.text(st.sampled_from(HANZI), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)


@given(parts=st.lists(PARTS, max_size=120), size=st.sampled_from([40, 100]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_wherever_a_text_is_cut_its_ids_are_those_of_the_whole(
    placed: bytes, parts: list[str], size: int, data: st.DataObject
) -> None:
    text = "".join(parts)
    encode = whole(placed)
    places = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3))), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert joined(encode_in_parts(encode, pieces, size, context_chars=32)) == encode(text)


@pytest.mark.parametrize("name", ["llama2", "dummy prefix"])
def test_no_space_comes_into_a_long_text(name: str, texts: list[str]) -> None:
    opened = open_tokenizer(PLACED[name](texts))
    for text in ("alpha beta gamma delta" * 1000, "alpha\nbeta\n" * 2000, hanzi(20_000)):
        assert opened.decode(joined(opened.encode([text]))) == text


@pytest.mark.parametrize("name", FREE)
def test_a_tokenizer_to_which_a_place_is_nothing_encodes_every_part_alone(
    name: str, texts: list[str]
) -> None:
    content = FREE[name](texts)
    opened = open_tokenizer(content)
    encode = whole(content)
    for text in texts_that_are_long(texts).values():
        alone = (encode(part) for piece in cut(text) for part in cut(piece, PART_CHARS))
        assert joined(opened.encode(cut(text))) == joined(alone)


def test_an_unknown_character_does_not_make_a_tokenizer_depend_on_the_place() -> None:
    made = Tokenizer(models.BPE({"<unk>": 0, "x": 1}, [], unk_token="<unk>", fuse_unk=True))
    assert not depends_on_place(lambda text: list(made.encode(text).ids), ["x"])


@pytest.mark.parametrize("space", [False, True])
def test_a_tokenizer_that_refuses_unknown_characters_is_tried_with_its_own_words(
    space: bool,
) -> None:
    made = Tokenizer(models.Unigram([("\u2581", -1.0), ("x", -1.0), ("xy", -1.5), ("\n", -1.0)]))
    with pytest.raises(Exception, match="unknown token"):
        made.encode("z")
    made.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="always" if space else "never", split=False
    )
    opened = open_tokenizer(str(made.to_str()).encode())
    text = "xy\nx x\n" * 2000
    assert joined(opened.encode(cut(text))) == made.encode(text).ids


def test_a_text_that_can_be_cut_nowhere_is_encoded_whole() -> None:
    longest = []

    def encode(text: str) -> list[int]:
        longest.append(len(text))
        return [len(text)] * len(text)

    parts = encode_in_parts(encode, ["ab " * 1000] * 3, part_chars=64)
    assert joined(parts) == [9000] * 9000
    assert max(longest) == 9000
    assert len(longest) < 200, "its length is doubled until the text ends"


def test_a_text_is_rejected_if_its_end_changes_what_is_written_already() -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) + 1000 * text.endswith("!") for letter in text]

    parts = encode_in_parts(encode, ["one two " * 4000, "!"])
    assert len(next(parts)) > 1000
    with pytest.raises(Rejected, match="depend on text too far away"):
        list(parts)
