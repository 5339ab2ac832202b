from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.data.manifest import FORMAT_VERSION, Manifest, SourceFacts, facts, read_manifest
from hpc_llm.data.order import sample_ids
from hpc_llm.data.shards import ShardSet, dtype_for
from tests.small_data import gathered, write_shards

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), min_size=1, max_size=20)


def write(
    directory: Path, documents: list[list[int]], vocab_size: int = 100, shard_tokens: int = 64
) -> ShardSet:
    shards = write_shards(directory, "train", "a", documents, vocab_size, shard_tokens)
    tokens = {"train": sum(len(document) for document in documents), "heldout": 0}
    counts = {
        "in": len(documents),
        "train": len(documents),
        "heldout": 0,
        "rejects": 0,
        "duplicates": 0,
    }
    manifest = Manifest(
        version=FORMAT_VERSION,
        dtype=dtype_for(vocab_size).name,
        vocab_size=vocab_size,
        padded_vocab_size=128,
        eos_id=1,
        tokenizer="",
        tokenizer_sha256="",
        documents=counts,
        tokens=tokens,
        bytes_per_token=1.0,
        unigram_entropy=1.0,
        recipe={},
        library="",
        sources={"a": SourceFacts(counts, 0, tokens, tokens["train"], [])},
        shards={"train": shards, "heldout": []},
    )
    (directory / "manifest.json").write_text(manifest.to_json())
    return ShardSet.open(directory, "train")


@given(documents=DOCUMENTS, seq_len=st.integers(1, 12), shard_tokens=st.integers(8, 200))
@settings(max_examples=40, deadline=None)
def test_samples_are_the_windows_of_each_shard(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    seq_len: int,
    shard_tokens: int,
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    shards = write(directory, documents, shard_tokens=shard_tokens)
    expected = []
    for shard in shards.manifest.shards["train"]:
        tokens = np.fromfile(directory / shard.file, "<u2").tolist()
        starts = range(0, len(tokens) - seq_len, seq_len)
        expected += [tokens[start : start + seq_len + 1] for start in starts]
    assert shards.num_samples(seq_len) == len(expected)
    order = np.arange(len(expected))[::-1]
    assert gathered(shards, order, seq_len).tolist() == expected[::-1]


@given(documents=DOCUMENTS, shard_tokens=st.integers(8, 200))
@settings(max_examples=40, deadline=None)
def test_documents_come_back_whole_through_the_index(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    read = []
    for shard in write(directory, documents, shard_tokens=shard_tokens).manifest.shards["train"]:
        tokens = np.fromfile(directory / shard.file, "<u2").tolist()
        offsets = np.fromfile(directory / shard.file.replace(".bin", ".idx"), "<u8").tolist()
        assert len(tokens) <= max(shard_tokens, *(len(document) for document in documents))
        read += [tokens[start:end] for start, end in itertools.pairwise(offsets)]
    assert read == documents


def test_a_vocabulary_above_two_bytes_takes_four(tmp_path: Path) -> None:
    assert dtype_for(65536).itemsize == 2
    shards = write(tmp_path, [[0, 65536, 69999]], vocab_size=70000)
    assert shards.manifest.dtype == "uint32"
    assert gathered(shards, np.array([0]), 2).tolist() == [[0, 65536, 69999]]


def test_text_shorter_than_a_sample_has_none(tmp_path: Path) -> None:
    assert write(tmp_path, [[1, 2, 3]]).num_samples(3) == 0


def test_opening_reads_no_token(tmp_path: Path) -> None:
    """A sparse file of 20 GB opens as fast as a small one."""
    shards = write(tmp_path, [[1, 2, 3]])
    tokens = 10_000_000_000
    with (tmp_path / "train-a-00000.bin").open("r+b") as file:
        file.truncate(2 * tokens)
    shard = dataclasses.replace(shards.manifest.shards["train"][0], tokens=tokens)
    manifest = dataclasses.replace(
        shards.manifest,
        tokens={"train": tokens, "heldout": 0},
        sources={
            "a": dataclasses.replace(
                shards.manifest.sources["a"], tokens={"train": tokens, "heldout": 0}
            )
        },
        shards={"train": [shard], "heldout": []},
    )
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    before = resident_bytes()
    large = ShardSet.open(tmp_path, "train")
    ids = sample_ids(1, 10**9, 64, large.num_samples(2048))
    assert gathered(large, ids, 2048).sum() == 0
    last = np.array([large.num_samples(2048) - 1])
    assert gathered(large, last, 2048).sum() == 0
    assert resident_bytes() - before < 65 * 16 * 4096 + 8e6, (
        "65 samples, each with the pages around it, and no more"
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_folder_without_a_manifest_says_how_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest\.json: No such file.*-m hpc_llm\.prepare"):
        ShardSet.open(tmp_path, "train")


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 99}', "\x00"]
)
def test_damaged_manifest_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match=r"manifest\.json(: damaged| has format)"):
        read_manifest(tmp_path)


def test_counts_that_do_not_add_up_are_damage(prepared: Path, tmp_path: Path) -> None:
    values = json.loads((prepared / "manifest.json").read_text())
    values["documents"]["in"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="damaged"):
        facts(tmp_path)


def test_shard_of_a_wrong_size_is_named(prepared: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(prepared, tmp_path / "copy")
    shard = copy / "train-files-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(
        InputError, match=r"train-files-00000\.bin: has \d+ bytes, its manifest says \d+"
    ):
        ShardSet.open(copy, "train")
    shard.unlink()
    with pytest.raises(InputError, match=r"train-files-00000\.bin: No such file"):
        ShardSet.open(copy, "train")
