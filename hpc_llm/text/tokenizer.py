"""Text ↔ token ids: a SentencePiece model, or a Hugging Face tokenizer.json.

With a model trained here, any UTF-8 text survives encode and decode byte for byte. Long texts are
encoded in short parts, since SentencePiece's time grows faster than the text (4 kB at a time
5.7 MB/s, whole documents 4.9, 256 kB 3.4; benchmarks/data.md). They are cut where tokenizers split
anyway, or, without such a place, perhaps within a token. Where the tokenizer treats a text's
beginning in its own way, the ids are those of the whole text (long_texts.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import sentencepiece

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig
from hpc_llm.text.documents import Rejected, cut
from hpc_llm.text.long_texts import PART_CHARS, depends_on_place, encode_in_parts

_TRIED = 64  # pieces of a vocabulary
_SPACE = "\u2581"  # SentencePiece's spelling of a space; in text it is spelled in bytes
_USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


class Tokenizer(Protocol):
    """What `open_tokenizer` returns."""

    vocab_size: int  # ids are below it
    eos_id: int  # end of text; −1: the model has none
    library: str  # with its version

    def encode(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """Token ids of one document, which comes and goes in pieces, without end of text."""

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; control tokens such as end of text give nothing."""


def open_tokenizer(content: bytes, eos_token: str | None = None) -> Tokenizer:
    """The tokenizer in a file's content. ValueError if it is not one that can be read."""
    if content.lstrip()[:1] == b"{":
        return _HuggingFace(content, eos_token)
    return _SentencePiece(content, eos_token)


def load(config: DataConfig) -> bytes:
    """The content of the tokenizer at data.tokenizer.

    InputError unless it is one, has end of text and fits data.vocab_size.
    """
    path = Path(str(config.tokenizer)).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"data.tokenizer={path}: cannot be read: {error.strerror}; give a SentencePiece "
            "model or a tokenizer.json"
        ) from None
    if content.lstrip()[:1] == b"{" and importlib.util.find_spec("tokenizers") is None:
        raise InputError(
            f"data.tokenizer={path}: needs tokenizers; type: pip install 'hpc_llm[tokenizers]'"
        )
    try:
        tokenizer = open_tokenizer(content, config.eos_token)
    except ValueError:
        raise InputError(
            f"data.tokenizer={path}: is neither a SentencePiece model nor a tokenizer.json; null "
            "trains one"
        ) from None
    _check(tokenizer, config, path)
    return content


def _check(tokenizer: Tokenizer, config: DataConfig, path: Path) -> None:
    if tokenizer.eos_id < 0:
        raise InputError(
            f"data.eos_token={config.eos_token or 'null'}: {path} has no such end-of-text piece; "
            "name one that it has with data.eos_token=…"
        )
    pieces = tokenizer.vocab_size
    if config.vocab_size is not None and config.vocab_size < pieces:
        raise InputError(
            f"data.vocab_size={config.vocab_size}: {path} has {pieces} pieces; "
            f"use model.vocab_size={padded_vocab(pieces)} (padded to a multiple of 128), or more"
        )


class _SentencePiece:
    def __init__(self, model: bytes, eos_token: str | None) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            # Unlike the constructor, this refuses an empty model.
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id() if eos_token is None else self._id(eos_token)
        self.library = f"sentencepiece {sentencepiece.__version__}"
        some_words = _some_words(self._processor.id_to_piece, self.vocab_size)
        self._placed = depends_on_place(self._processor.encode, some_words)
        mark = [self._id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._mark = mark if min(mark) >= 0 and not self._placed else None

    def encode(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        if self._placed:
            return encode_in_parts(self._processor.encode, pieces)
        return (self._encode(part) for part in _parts(pieces))

    def decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))

    def _encode(self, text: str) -> list[int]:
        if self._mark is None or _SPACE not in text:
            return list(self._processor.encode(text))
        first, *others = text.split(_SPACE)
        ids = list(self._processor.encode(first))
        for other in others:
            ids += self._mark
            ids += self._processor.encode(other)
        return ids

    def _id(self, piece: str) -> int:
        """Its id; −1 if there is no such piece."""
        number = self._processor.piece_to_id(piece)
        return number if self._processor.id_to_piece(number) == piece else -1


class _HuggingFace:
    def __init__(self, content: bytes, eos_token: str | None) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.eos_id = self._first_id(_USUAL_EOS if eos_token is None else (eos_token,))
        self.library = f"tokenizers {version('tokenizers')}"
        self._placed = depends_on_place(
            self._encode, _some_words(self._tokenizer.id_to_token, self.vocab_size)
        )

    def encode(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        if self._placed:
            return encode_in_parts(self._encode, pieces)
        return (self._encode(part) for part in _parts(pieces))

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def _encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the library raises plain Exception, as for unknown characters
            raise Rejected(f"the tokenizer cannot encode it: {error}") from None

    def _first_id(self, tokens: Iterable[str]) -> int:
        """The id of the first of `tokens` that there is; −1 if there is none."""
        for token in tokens:
            number: int | None = self._tokenizer.token_to_id(token)
            if number is not None:
                return number
        return -1


def _parts(pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        yield from cut(piece, PART_CHARS)


def _some_words(piece_of: Callable[[int], str | None], vocab_size: int) -> list[str]:
    """Some of a vocabulary's pieces that are words."""
    words = []
    for number in range(0, vocab_size, max(1, vocab_size // _TRIED)):
        word = (piece_of(number) or "").strip(_SPACE)
        if word.isalpha():
            words.append(word)
    return words
