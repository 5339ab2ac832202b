from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.data import loader
from hpc_llm.data.loader import Batches, Passes, Share, heldout_batches
from hpc_llm.data.mixture import heldout_rows
from hpc_llm.data.order import sample_ids
from hpc_llm.data.samples import IGNORED, Concatenated
from hpc_llm.data.shards import ShardSet
from hpc_llm.data.stream import Heldout
from hpc_llm.planning.mixture import Source
from tests.small_data import gathered, one_source

SEQ_LEN = 32


@pytest.fixture(scope="module")
def train(prepared: Path) -> ShardSet:
    return ShardSet.open(prepared, "train")


@pytest.fixture(scope="module")
def heldout(prepared: Path) -> ShardSet:
    return ShardSet.open(prepared, "heldout")


def real_rows(passes: list[Passes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of all ranks and passes in order, without the padding.

    Tokens, targets: [rows, seq_len] each.
    """
    tokens = torch.cat([part for rank in passes for part, _ in rank])
    targets = torch.cat([part for rank in passes for _, part in rank])
    padding = (targets == IGNORED).all(dim=1)
    assert not tokens[padding].any()
    assert not (targets[~padding] == IGNORED).any()
    return tokens[~padding], targets[~padding]


@given(
    world_size=st.integers(1, 3),
    micro_batch=st.integers(1, 6),
    global_batch=st.integers(3, 9),
    step=st.integers(0, 500),
)
@settings(max_examples=40, deadline=None)
def test_ranks_and_micro_batches_do_not_change_a_step(
    train: ShardSet, world_size: int, micro_batch: int, global_batch: int, step: int
) -> None:
    ranks = []
    for rank in range(world_size):
        stream = one_source(train, 17, SEQ_LEN, global_batch)
        with Batches(stream, Share(rank, world_size, global_batch, micro_batch)) as batches:
            ranks.append(batches.step(step))
    assert len({len(passes) for passes in ranks}) == 1, "every rank makes as many passes"
    assert all(
        tokens.shape == (micro_batch, SEQ_LEN)
        for passes in ranks
        for pair in passes
        for tokens in pair
    )
    tokens, targets = real_rows(ranks)
    ids = sample_ids(17, step * global_batch, global_batch, train.num_samples(SEQ_LEN), "corpus")
    expected = torch.from_numpy(gathered(train, ids, SEQ_LEN))
    assert torch.equal(tokens, expected[:, :-1])
    assert torch.equal(targets, expected[:, 1:])


def test_resuming_at_any_step_gives_the_same_bits(train: ShardSet) -> None:
    share = Share(0, 1, 6, 2)
    stream = one_source(train, 17, SEQ_LEN, 6)
    with Batches(stream, share) as batches:
        through = [batches.step(step) for step in range(12)]
    for start in (0, 1, 7):
        with Batches(one_source(train, 17, SEQ_LEN, 6), share) as batches:
            for step in range(start, 12):
                for pair, before in zip(batches.step(step), through[step], strict=True):
                    assert all(
                        torch.equal(one, other) for one, other in zip(pair, before, strict=True)
                    )


def test_steps_may_be_asked_for_in_any_order(train: ShardSet) -> None:
    with Batches(one_source(train, 17, SEQ_LEN, 4), Share(0, 1, 4, 4)) as batches:
        late = batches.step(9)
        early = batches.step(2)
        again = batches.step(9)
    assert torch.equal(late[0][0], again[0][0])
    assert not torch.equal(late[0][0], early[0][0])


def test_for_a_gpu_every_tensor_is_whole_and_pinned(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinning itself needs a GPU.

    A view into a larger buffer would be copied once more on its way there.
    """
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    pinned: list[torch.Tensor] = []
    with Batches(one_source(train, 17, SEQ_LEN, 4), Share(0, 1, 4, 2), pinned=True) as batches:
        passes = batches.step(0)
    assert all(tensor.is_contiguous() for tensor in pinned)
    homes = {tensor.untyped_storage().data_ptr() for tensor in pinned}
    assert {part.untyped_storage().data_ptr() for parts in passes for part in parts} <= homes


def test_a_batch_that_is_long_in_coming_is_told_of(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait has a limit of its own then; no step of a hundred seconds is taken for a hang."""
    monkeypatch.setattr(loader, "_LONG_S", 0.0)
    read = threading.Event()
    told = []

    def tell() -> None:
        told.append(True)
        read.set()

    reading = loader._read
    monkeypatch.setattr(loader, "_read", lambda *given: (read.wait(), reading(*given))[1])
    with Batches(one_source(train, 17, SEQ_LEN, 4), Share(0, 1, 4, 2)) as batches:
        batches.step(3, tell)
    assert told == [True]


def test_closing_ends_the_thread(train: ShardSet) -> None:
    before = threading.active_count()
    batches = Batches(one_source(train, 17, SEQ_LEN, 4), Share(0, 1, 4, 4))
    batches.step(0)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_an_error_while_reading_ahead_reaches_the_caller(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Batches(one_source(train, 17, SEQ_LEN, 4), Share(0, 1, 4, 4)) as batches:
        monkeypatch.setattr(train, "gather_into", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batches.step(0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("most", [10, 10**6])
def test_held_out_rows_come_once_and_in_order(
    heldout: ShardSet, world_size: int, micro_batch: int, most: int
) -> None:
    samples = Concatenated(heldout, SEQ_LEN)
    rows = heldout_rows([Source("corpus", samples.num_samples)], {"corpus": 1.0}, most)
    global_batch = 7
    ranks = [
        list(
            heldout_batches(
                Heldout(rows, [samples]), Share(rank, world_size, global_batch, micro_batch)
            )
        )
        for rank in range(world_size)
    ]
    assert all(
        len(batches) == -(-min(most, samples.num_samples) // global_batch) for batches in ranks
    )
    targets = torch.cat(
        [real_rows([rank[number] for rank in ranks])[1] for number in range(len(ranks[0]))]
    )
    expected = torch.from_numpy(gathered(heldout, rows.samples, SEQ_LEN))
    assert torch.equal(targets, expected[:, 1:])
