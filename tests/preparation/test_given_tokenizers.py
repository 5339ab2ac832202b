"""What a given tokenizer does to a text is looked at: a document that it spoils is a reject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hpc_llm.data.manifest import read_manifest
from hpc_llm.preparation.pipeline import prepare
from tests.configs import make_config

DOCUMENTS = [f"document {number} tells of rivers, stones and boats" for number in range(40)]


def unigram() -> dict[str, Any]:
    """Without a token for what is unknown."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=["</s>"], show_progress=False)
    made.train_from_iterator(DOCUMENTS, trainer)
    return dict(json.loads(made.to_str()))


def bpe() -> dict[str, Any]:
    """Drops what is unknown, and knows its end of text in a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["</s>"], show_progress=False)
    made.train_from_iterator(DOCUMENTS, trainer)
    plain = dict(json.loads(made.to_str()))
    plain["added_tokens"][0]["special"] = False
    return plain


@pytest.mark.parametrize(
    ("tokenizer", "text", "reason"),
    [
        (unigram, "a river of \u6f22\u5b57", "the tokenizer cannot encode it"),
        (bpe, "\u6f22\u5b57", "the tokenizer leaves nothing of it but end of text"),
        (bpe, "a line ends in </s> here", "the tokenizer makes end of text of words in it"),
    ],
)
def test_a_document_that_it_spoils_is_a_reject_with_its_place(
    tmp_path: Path, tokenizer: Any, text: str, reason: str
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(tokenizer()))
    lines = [json.dumps({"text": each}) for each in (*DOCUMENTS, text)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    words = ["data=files", f"data.source={tmp_path / 'a.jsonl'}", "data.workers=1"]
    words += [f"data.tokenizer={tmp_path / 't.json'}", "model.vocab_size=128"]
    prepare(make_config(*words, "data.max_reject_fraction=0.1"), tmp_path / "out")
    counts = read_manifest(tmp_path / "out").documents
    assert (counts["in"], counts["rejects"]) == (41, 1)
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["reason"].startswith(reason)
    assert reject["offset"] == sum(len(line) + 1 for line in lines[:-1])
