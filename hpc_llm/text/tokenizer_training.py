"""SentencePiece BPE trained on a sample of text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator

import sentencepiece

from hpc_llm.config.errors import InputError

_MAX_SENTENCE_BYTES = 4192  # SentencePiece silently drops longer ones
_RESERVED = "\u2585"  # sentences with SentencePiece's own mark for unknown are dropped too
_NUM_THREADS = 2  # fixed: it is written into the model file


def train(
    texts: list[str], vocab_size: int, say: Callable[[str], None] = lambda line: None
) -> bytes:
    """A SentencePiece model of `vocab_size` pieces; the same texts give the same bytes.

    Texts that yield fewer pieces give a smaller model, which `say` reports. InputError if so few
    pieces cannot hold the characters of the texts.
    """
    try:
        return _train(texts, vocab_size)
    except RuntimeError as error:
        match = re.search(r"value <= (\d+)", str(error))
        if match is None:
            raise _explained(error, vocab_size) from None
    most = int(match[1])
    say(
        f"data.vocab_size={vocab_size}: the text yields only {most} pieces, so the tokenizer has "
        f"{most}"
    )
    try:
        return _train(texts, most)
    except RuntimeError as error:
        raise _explained(error, most) from None


def _train(texts: Iterable[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,  # pieces of a document are then tokenised as the whole is
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
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Texts in parts short enough for SentencePiece, cut between lines where that is possible.

    Not one line each: what follows a line's end, especially indentation, should be learned too.
    """
    for text in texts:
        lines: list[str] = []
        num_bytes = 0
        for line in _short_lines(text.replace(_RESERVED, " ")):
            size = len(line.encode())
            if lines and num_bytes + size > _MAX_SENTENCE_BYTES:
                yield "".join(lines)
                lines = []
                num_bytes = 0
            lines.append(line)
            num_bytes += size
        if lines:
            yield "".join(lines)


def _short_lines(text: str) -> Iterator[str]:
    most = _MAX_SENTENCE_BYTES // 4  # characters; UTF-8 takes at most 4 bytes for one
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), most):
            yield line[start : start + most]


def _explained(error: RuntimeError, vocab_size: int) -> InputError:
    if match := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return InputError(
            f"data.vocab_size={vocab_size}: the corpus needs at least {match[1]} pieces for its "
            "characters; raise model.vocab_size to a multiple of 128 above that"
        )
    return InputError(
        f"data.vocab_size={vocab_size}: SentencePiece cannot train on this corpus: {error}"
    )
