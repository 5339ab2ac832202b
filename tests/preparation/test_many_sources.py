"""Preparation of several sources with everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import Table, parquet

from hpc_llm.data.manifest import Manifest, facts, read_manifest
from hpc_llm.prepare import main
from hpc_llm.text.tokenizer import open_tokenizer
from tests.configs import make_config

Content = Callable[[Path], dict[str, bytes]]
COMMON = [
    f"a sentence of words, number {number}, which is one document of several"
    for number in range(30)
]


def jsonl(path: Path, texts: list[Any], field: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({field: text, "id": number}) + "\n" for number, text in enumerate(texts))
    )


def documents(directory: Path, split: str, source: str) -> list[str]:
    """The texts of a source's shards."""
    made = read_manifest(directory)
    tokenizer = open_tokenizer((directory / made.tokenizer).read_bytes())
    own = [shard.file for shard in made.shards[split] if shard.source == source]
    ids = [token for file in own for token in np.fromfile(directory / file, "<u2").tolist()]
    texts = []
    start = 0
    for place, token in enumerate(ids):
        if token == made.eos_id:
            texts.append(tokenizer.decode(ids[start:place]))
            start = place + 1
    return texts


def prepared(tmp_path: Path, *overrides: str, out: str = "out", status: int = 0) -> Manifest:
    assert (
        main(
            [
                "data=files",
                f"data.source={tmp_path}",
                "model.vocab_size=512",
                f"data.out={tmp_path / out}",
                *overrides,
            ]
        )
        == status
    )
    return read_manifest(tmp_path / out)


def test_a_text_is_kept_once_over_all_sources_the_first_by_source_file_and_place(
    tmp_path: Path,
) -> None:
    jsonl(tmp_path / "b" / "x.jsonl", [*COMMON, "only in b", "only in b"])
    jsonl(tmp_path / "a" / "2.jsonl", COMMON[10:20])
    jsonl(tmp_path / "a" / "1.jsonl", [*COMMON[:15], "only in a"])
    overrides = [
        "data.sources.a.path=a",
        "data.sources.b.path=b",
        "data.heldout_fraction=0.2",
        "data.workers=1",
    ]
    made = prepared(tmp_path, *overrides)
    kept_a = {
        text for split in ("train", "heldout") for text in documents(tmp_path / "out", split, "a")
    }
    kept_b = {
        text for split in ("train", "heldout") for text in documents(tmp_path / "out", split, "b")
    }
    assert kept_a == {*COMMON[:20], "only in a"}
    assert kept_b == {*COMMON[20:], "only in b"}
    assert made.sources["a"].documents["duplicates"] == 5
    assert made.sources["b"].documents["duplicates"] == 21
    assert facts(tmp_path / "out").source_tokens == {
        name: made.sources[name].tokens["train"] for name in "ab"
    }

    whole = prepared(tmp_path, *overrides, "data.deduplicate=false", out="whole")
    assert whole.documents["duplicates"] == 0
    train = {text for name in "ab" for text in documents(tmp_path / "whole", "train", name)}
    heldout = {text for name in "ab" for text in documents(tmp_path / "whole", "heldout", name)}
    assert not train & heldout, "copies are on one side though all are kept"
    assert sum(whole.documents[split] for split in ("train", "heldout")) == 15 + 1 + 10 + 30 + 2


def test_every_bad_document_is_counted_and_said_where_it_stood(tmp_path: Path) -> None:
    jsonl(tmp_path / "good.jsonl", COMMON)
    (tmp_path / "lines.jsonl").write_bytes(
        b'{"text": "fine"}\n{"text": 3}\n{"other": 1}\n{"text": "  "}\n{"text": "\\ud800"}\n{'
    )
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "cut.jsonl.gz").write_bytes(
        gzip.compress((tmp_path / "good.jsonl").read_bytes())[:-40]
    )
    parquet.write_table(Table.from_pylist([{"text": "in a table"}]), tmp_path / "whole.parquet")
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-5])
    made = prepared(
        tmp_path,
        "data.max_reject_fraction=0.5",
        "data.workers=1",
        "data.id_field=id",
        "data.suffixes=[.txt,.jsonl,.parquet]",
    )
    rejects = [
        json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    reasons = {(line["file"], line["offset"]): line["reason"] for line in rejects}
    assert len(reasons) == len(rejects) == made.documents["rejects"]
    assert reasons.pop(("latin.txt", 0)) == "invalid UTF-8 at byte 3"
    assert reasons.pop(("nul.txt", 0)) == "holds NUL"
    assert reasons.pop(("empty.txt", 0)) == "empty"
    assert reasons.pop(("gone.txt", 0)) == "vanished"
    assert (
        reasons.pop(("lines.jsonl", 17))
        == reasons.pop(("lines.jsonl", 29))
        == "no text in field 'text'"
    )
    assert reasons.pop(("lines.jsonl", 42)) == "empty"
    assert reasons.pop(("lines.jsonl", 57)) == "half a surrogate pair at character 0"
    assert reasons.pop(("lines.jsonl", 76)).startswith("no JSON")
    assert reasons.pop(("broken.parquet", 0)).startswith("damaged")
    ((file, _),) = reasons
    assert file == "cut.jsonl.gz"
    assert {line["source"] for line in rejects} == {"files"}
    counts = made.documents
    assert (
        counts["in"]
        == counts["train"] + counts["heldout"] + counts["rejects"] + counts["duplicates"]
    )


def test_filters_leave_out_without_counting_as_bad(tmp_path: Path) -> None:
    rows = [
        {"text": text, "lang": "en" if number % 3 else "de"}
        for number, text in enumerate([*COMMON, "short"])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "long.txt").write_text("word " * 1000)
    made = prepared(
        tmp_path,
        "data.where={lang: en}",
        "data.min_chars=10",
        "data.max_reject_fraction=0",
        "data.workers=1",
    )
    (source,) = made.sources.values()
    assert made.documents["in"] == 20
    assert source.filtered == 10 + 1 + 1 + 0
    assert sum(source.lengths) == 20


@pytest.mark.parametrize("workers", [1, 3])
def test_the_mix_of_mpt_7b_needs_a_folder_of_ten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    sources = make_config("data=mpt-7b-mix").data.sources
    assert len(sources) == 10
    assert sum(source.weight for source in sources.values()) == pytest.approx(100)
    for number, (name, source) in enumerate(sources.items()):
        jsonl(
            tmp_path / "mix" / name / "part.jsonl",
            [f"{name}: {text}" for text in COMMON[number:]],
            source.text_field,
        )
    overrides = [
        "data=mpt-7b-mix",
        f"data.source={tmp_path / 'mix'}",
        "model.vocab_size=512",
        f"data.workers={workers}",
    ]
    (tmp_path / "mix" / "c4").rename(tmp_path / "c4")
    assert main([*overrides, f"data.out={tmp_path / 'out'}"]) == 2
    assert "data.sources.c4.path=" in capsys.readouterr().err
    assert (
        main(
            [*overrides, f"data.out={tmp_path / 'out'}", f"data.sources.c4.path={tmp_path / 'c4'}"]
        )
        == 0
    )
    made = read_manifest(tmp_path / "out")
    assert {name: source.documents["in"] for name, source in made.sources.items()} == {
        name: 30 - number for number, name in enumerate(sources)
    }
    shown = capsys.readouterr().out
    assert all(name in shown for name in sources)


def test_workers_and_interruptions_aside_the_bytes_are_those_of_the_corpus(
    tmp_path: Path, content: Content
) -> None:
    for name in "abc":
        jsonl(tmp_path / name / "x.jsonl", [f"{name} {text}" for text in COMMON])
    overrides = [f"data.sources.{name}.path={name}" for name in "abc"]
    prepared(tmp_path, *overrides, "data.workers=1", out="one")
    prepared(tmp_path, *overrides, "data.workers=3", out="three")
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_a_corpus_that_has_changed_is_begun_anew(tmp_path: Path, content: Content) -> None:
    jsonl(tmp_path / "x.jsonl", [*COMMON, None, None, None])
    overrides = ["data.workers=1", "data.suffixes=[.jsonl]", "data.max_reject_fraction=0.01"]
    assert (
        main(
            [
                "data=files",
                f"data.source={tmp_path}",
                "model.vocab_size=512",
                f"data.out={tmp_path / 'out'}",
                *overrides,
            ]
        )
        == 2
    )
    (left,) = tmp_path.glob("out.partial-*")
    jsonl(tmp_path / "x.jsonl", COMMON)
    made = prepared(tmp_path, *overrides)
    assert made.documents["in"] == 30
    assert not left.exists()
