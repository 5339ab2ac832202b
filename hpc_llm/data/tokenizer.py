"""SentencePiece BPE: train a vocabulary, or use one that is brought.

Any UTF-8 text survives encode and decode, byte for byte, with one exception: U+2581 (▁) is SentencePiece's own
spelling of a space and comes back as one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig

_MAX_SENTENCE_BYTES = 4192  # SentencePiece drops longer ones without a word
_RESERVED = "\u2585"  # sentences that hold SentencePiece's own mark for unknown are dropped too
_NUM_THREADS = 2  # fixed: it is written into the model file


class Tokenizer:
    """Text ↔ token ids of one SentencePiece model; RuntimeError if it is none."""

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)  # unlike the constructor, it refuses an empty model
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()  # −1: the model has none

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without end of text."""
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; control tokens such as end of text give nothing."""
        return self._processor.decode(ids)


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece model of exactly `vocab_size` pieces; the same texts give the same bytes.

    InputError if the texts cannot fill the vocabulary, or it cannot hold their characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from None
    return model.getvalue()


def load(config: DataConfig) -> bytes:
    """The SentencePiece model at data.tokenizer.

    InputError unless it is one, has end of text and fits data.vocab_size.
    """
    path = Path(str(config.tokenizer)).expanduser()
    try:
        model = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"data.tokenizer={path}: cannot be read: {error.strerror}; give a SentencePiece model"
        ) from None
    try:
        tokenizer = Tokenizer(model)
    except RuntimeError:
        raise InputError(f"data.tokenizer={path}: is no SentencePiece model; null trains one") from None
    if tokenizer.eos_id < 0:
        raise InputError(f"data.tokenizer={path}: has no end-of-text piece (eos); give a model that has one")
    pieces = tokenizer.vocab_size
    if config.vocab_size is not None and config.vocab_size not in (pieces, padded_vocab(pieces)):
        raise InputError(
            f"data.vocab_size={config.vocab_size}: {path} has {pieces} pieces; "
            f"use model.vocab_size={padded_vocab(pieces)} (padded to a multiple of 128)"
        )
    return model


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Texts in stretches short enough for SentencePiece, cut between lines where that is possible.

    Not a line each: a sentence begins with a space that is not there, and lines of code do not begin with words.
    """
    for text in texts:
        lines: list[str] = []
        num_bytes = 0
        for line in _short_lines(text.replace(_RESERVED, " ")):
            size = len(line.encode())
            if lines and num_bytes + size > _MAX_SENTENCE_BYTES:
                yield "".join(lines)
                lines, num_bytes = [], 0
            lines.append(line)
            num_bytes += size
        if lines:
            yield "".join(lines)


def _short_lines(text: str) -> Iterator[str]:
    most = _MAX_SENTENCE_BYTES // 4  # characters; UTF-8 takes at most 4 bytes for one
    for line in text.splitlines(keepends=True):
        yield from (line[start : start + most] for start in range(0, len(line), most))


def _explained(error: RuntimeError, vocab_size: int) -> InputError:
    if match := re.search(r"value <= (\d+)", str(error)):
        return InputError(
            f"data.vocab_size={vocab_size}: the corpus can fill at most {match[1]} pieces; lower model.vocab_size to a "
            "multiple of 128 at or below that, give more text, or raise data.tokenizer_sample_mb"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return InputError(
            f"data.vocab_size={vocab_size}: the corpus needs at least {match[1]} pieces for its characters; "
            "raise model.vocab_size to a multiple of 128 above that"
        )
    return InputError(f"data.vocab_size={vocab_size}: SentencePiece cannot train on this corpus: {error}")
