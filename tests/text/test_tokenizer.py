from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.text import tokenizer
from hpc_llm.text.documents import cut
from hpc_llm.text.tokenizer import Tokenizer, open_tokenizer
from hpc_llm.text.tokenizer_training import train
from tests.small_data import data_config


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(corpus.rglob("*.py"))[:12]]


@pytest.fixture(scope="module")
def model(texts: list[str]) -> bytes:
    return train(texts, 512)


def ids(opened: Tokenizer, *pieces: str) -> list[int]:
    return [number for part in opened.encode(pieces) for number in part]


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_a_round_trip(model: bytes, text: str) -> None:
    trained = open_tokenizer(model)
    assert trained.decode(ids(trained, text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n  \n",
        "\ta\r\n",
        "</s><unk><0x0A>",
        "\u2585",
        "naïve 😀 漢字",
        "\ufeffa",
        "a\u2581b \u2581\u2581",
    ],
)
def test_awkward_text_survives_a_round_trip(model: bytes, text: str) -> None:
    trained = open_tokenizer(model)
    encoded = ids(trained, text)
    assert trained.decode(encoded) == text
    assert trained.eos_id not in encoded


def test_real_text_survives_a_round_trip(model: bytes, texts: list[str]) -> None:
    trained = open_tokenizer(model)
    for text in texts:
        assert trained.decode([*ids(trained, text), trained.eos_id]) == text


def test_training_twice_gives_the_same_bytes(model: bytes, texts: list[str]) -> None:
    assert train(texts, 512) == model


def test_vocabulary_is_exactly_what_was_asked_for(model: bytes) -> None:
    assert open_tokenizer(model).vocab_size == 512


def test_a_line_longer_than_sentencepiece_takes_is_not_dropped() -> None:
    line = "all on one line " * 400 + "tokenizer " * 200
    trained = open_tokenizer(train([line], 290))
    assert len(ids(trained, " tokenizer")) == 1


def test_vocabulary_that_the_corpus_cannot_fill_is_lowered_to_what_it_can_and_said(
    texts: list[str],
) -> None:
    lines: list[str] = []
    trained = open_tokenizer(train(texts[:1], 50000, lines.append))
    assert 300 < trained.vocab_size < 50000
    assert lines == [
        f"data.vocab_size=50000: the text yields only {trained.vocab_size} pieces, so the "
        f"tokenizer has {trained.vocab_size}"
    ]
    assert trained.decode(ids(trained, texts[1])) == texts[1]


def test_vocabulary_too_small_for_the_characters_names_what_they_need(texts: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"data\.vocab_size=260: the corpus needs at least \d+ pieces"
    ):
        train(texts, 260)


def test_brought_model_must_fit_the_vocabulary(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.model"
    path.write_bytes(model)
    assert tokenizer.load(data_config(tokenizer=str(path), vocab_size=512)) == model
    assert tokenizer.load(data_config(tokenizer=str(path), vocab_size=None)) == model
    # more rows than pieces, as the published MPT has
    assert tokenizer.load(data_config(tokenizer=str(path), vocab_size=1024)) == model
    with pytest.raises(
        InputError, match=r"data\.vocab_size=256: .* has 512 pieces; use model\.vocab_size=512"
    ):
        tokenizer.load(data_config(tokenizer=str(path), vocab_size=256))


def test_brought_model_may_be_padded(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.model"
    path.write_bytes(train(texts, 500))
    assert tokenizer.load(data_config(tokenizer=str(path), vocab_size=512))


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.model"
    with pytest.raises(InputError, match=r"data\.tokenizer=.*mine\.model: cannot be read"):
        tokenizer.load(data_config(tokenizer=str(path)))
    for content in (b"", b"not a model"):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"is neither a SentencePiece model nor a tokenizer\.json"
        ):
            tokenizer.load(data_config(tokenizer=str(path)))


@pytest.fixture(scope="module")
def brought(texts: list[str]) -> bytes:
    """A tokenizer.json of byte-level BPE with an end of text, as GPT-2 has it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str()).encode()


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
)
@settings(max_examples=100, deadline=None)
def test_any_text_survives_a_brought_tokenizer_json(brought: bytes, text: str) -> None:
    opened = open_tokenizer(brought)
    encoded = ids(opened, text + "<|endoftext|>")
    assert opened.decode(encoded) == text + "<|endoftext|>"
    assert opened.eos_id not in encoded, "its name in a text is text"
    assert opened.vocab_size == 500


@pytest.mark.parametrize("kind", ["model", "brought"])
def test_a_long_text_has_the_same_ids_in_pieces(
    kind: str, texts: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_tokenizer(request.getfixturevalue(kind))
    text = "".join(texts)[:200_000]
    short = ids(opened, *cut(text, 1000))
    monkeypatch.setattr(tokenizer, "PART_CHARS", len(text))
    assert short == ids(opened, text)


def test_end_of_text_of_a_tokenizer_json_is_its_usual_name_or_the_one_given(
    brought: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(brought)
    assert tokenizer.load(data_config(tokenizer=str(path), vocab_size=500)) == brought
    assert open_tokenizer(brought, "th").eos_id == ids(open_tokenizer(brought), "th")[0]
    with pytest.raises(
        InputError, match=r"data\.eos_token=<end>: .* has no such end-of-text piece"
    ):
        tokenizer.load(data_config(tokenizer=str(path), vocab_size=500, eos_token="<end>"))
