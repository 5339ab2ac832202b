"""Documents in rows: nothing lost, nothing twice, little padded.

The index is written once, and opened without being read.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm import prepare
from hpc_llm.config.errors import InputError
from hpc_llm.data import packs
from hpc_llm.data.manifest import read_manifest
from hpc_llm.data.packing import best_fit, pack
from hpc_llm.data.samples import IGNORED, BestFit
from hpc_llm.data.shards import ShardSet
from tests.small_data import EOS, write_data

LENGTHS = st.lists(st.integers(1, 60), max_size=60)


def offsets(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])


@given(lengths=LENGTHS, capacity=st.integers(1, 25), window=st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_every_token_but_a_documents_first_is_a_target_exactly_once(
    lengths: list[int], capacity: int, window: int
) -> None:
    packed = pack(offsets(lengths), capacity, window)
    targets = [
        place + 1
        for start, size in zip(packed.starts, packed.sizes, strict=True)
        for place in range(start, start + size)
    ]
    firsts = set(offsets(lengths)[:-1].tolist())
    assert sorted(targets) == [token for token in range(sum(lengths)) if token not in firsts]
    fills = (
        np.diff([0, *np.cumsum(packed.sizes)[packed.ends - 1]]) if len(packed.ends) else np.empty(0)
    )
    assert ((fills > 0) & (fills <= capacity)).all()
    assert len(packed.starts) == (packed.ends[-1] if len(packed.ends) else 0)


@given(lengths=LENGTHS, capacity=st.integers(1, 25))
@settings(max_examples=80, deadline=None)
def test_only_documents_longer_than_a_row_are_cut(lengths: list[int], capacity: int) -> None:
    packed = pack(offsets(lengths), capacity)
    wanted = sum(-(-(length - 1) // capacity) for length in lengths)
    assert len(packed.starts) == wanted


@given(sizes=st.lists(st.integers(1, 12), max_size=40))
@settings(max_examples=100, deadline=None)
def test_best_fit_is_the_plain_search_for_the_fullest_row_with_room(sizes: list[int]) -> None:
    capacity = 12
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(capacity - size)
    rows = best_fit(np.array(sizes, np.int64), capacity)
    assert sorted(capacity - sum(sizes[piece] for piece in row) for row in rows) == sorted(rooms)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))


def test_real_lengths_leave_next_to_nothing_empty() -> None:
    lengths = (
        np.random.default_rng(0).lognormal(6, 1.3, 20_000).astype(int) + 2
    )  # of web text: 400 tokens, long tail
    packed = pack(offsets(lengths.tolist()), 2048)
    assert 1 - packed.sizes.sum() / (2048 * len(packed.ends)) < 0.001


def documents(seed: int, count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, 128, rng.integers(1, longest)).tolist(), EOS] for _ in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(
        tmp_path, {"code": documents(1, 40, 30), "web": documents(2, 40, 9)}, shard_tokens=200
    )


def test_packed_rows_hold_whole_documents_apart(data: Path) -> None:
    packs.ensure(data, 16)
    samples = BestFit(ShardSet.open(data, "train"), 16)
    everything = samples.blank(samples.num_samples)
    samples.read(
        np.arange(samples.num_samples)[::-1], everything, np.arange(samples.num_samples)[::-1]
    )
    assert everything.documents is not None
    texts = []
    for tokens, targets, numbers in zip(
        everything.tokens, everything.targets, everything.documents, strict=True
    ):
        assert ((targets == IGNORED) == (numbers == 0)).all()
        assert (tokens[numbers == 0] == 0).all()
        assert (tokens[numbers > 0] != EOS).all(), "nothing follows the end of a document"
        for number in range(1, numbers.max() + 1):
            own = numbers == number
            assert (tokens[own][1:] == targets[own][:-1]).all()
            texts.append([int(tokens[own][0]), *targets[own].tolist()])
    whole = documents(1, 40, 30) + documents(2, 40, 9)
    pieces = [text[at : at + 17] for text in whole for at in range(0, len(text) - 1, 16)]
    assert sorted(texts) == sorted(pieces)


def test_the_index_is_written_once_and_says_what_is_padded(data: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    packs.ensure(data, 16, lambda *progress: seen.append(progress))
    assert seen[-1][1] == seen[-1][2] > 0
    manifest = read_manifest(data)
    kept = {path: path.stat().st_mtime_ns for path in data.glob("*.pack-16")}
    assert len(kept) == sum(map(len, manifest.shards.values()))
    packs.ensure(data, 16, lambda *_: pytest.fail("nothing to do"))
    assert {path: path.stat().st_mtime_ns for path in data.glob("*.pack-16")} == kept
    samples = BestFit(ShardSet.open(data, "train"), 16)
    everything = samples.blank(samples.num_samples)
    samples.read(np.arange(samples.num_samples), everything, np.arange(samples.num_samples))
    assert packs.wasted(data, manifest, "train", 16) == pytest.approx(
        (everything.targets == IGNORED).mean()
    )


def test_a_damaged_index_is_refused_and_packed_again(data: Path) -> None:
    packs.ensure(data, 16)
    path = sorted(data.glob("train-*.pack-16"))[0]
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:20], b"", whole[:16] + bytes(8) + whole[24:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pack-16: missing or damaged; pack again"):
            BestFit(ShardSet.open(data, "train"), 16)
        packs.ensure(data, 16)
        assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(packs, "write_atomic", refuse)
    with pytest.raises(
        InputError, match=r"data\.packing=best_fit: .* cannot be written \(Permission denied\)"
    ):
        packs.ensure(data, 16)


def test_prepare_packs_and_says_what_is_wasted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "data=files",
        f"data.source={corpus}",
        f"data.out={tmp_path / 'data'}",
        "data.workers=1",
    ]
    overrides += ["model.vocab_size=512", "train.seq_len=64", "data.packing=best_fit"]
    assert prepare.main(overrides) == 0
    percentage = re.search(
        r"rows of 64 tokens, ([0-9.]+)% of their positions padding", capsys.readouterr().out
    )
    assert percentage is not None
    assert 0 < float(percentage[1]) < 5
