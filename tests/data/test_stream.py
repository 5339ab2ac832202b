"""A run's stream: machine and worker settings change nothing that is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import packs, recipe, stream
from hpc_llm.data.loader import Batches, Share, heldout_batches
from hpc_llm.data.manifest import facts
from hpc_llm.data.samples import IGNORED, BestFit, Concatenated
from hpc_llm.data.shards import ShardSet
from hpc_llm.planning.lengths import lengths
from hpc_llm.planning.mixture import Phase
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.submission import examine
from tests.data.test_packing import documents
from tests.small_data import EOS, run_config, write_data

SOURCES = {
    "books": {"path": "b", "weight": 0.2, "max_epochs": 1.5},
    "code": {"path": "c", "weight": 0.3},
    "web": {"path": "w", "weight": 0.5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    texts = {
        "books": documents(1, 20, 60),
        "code": documents(2, 60, 30),
        "web": documents(3, 200, 20),
    }
    packs.ensure(write_data(folder, texts, 900, {name: texts[name][:30] for name in texts}), 16)
    return folder


def run(
    data: Path,
    global_batch: int = 8,
    packing: str = "concatenated",
    boundaries: bool = False,
    warmup: bool = False,
) -> tuple[RunConfig, RunPlan]:
    config = run_config(
        sources=SOURCES,
        out=str(data),
        mixture={"20steps": {"code": 3, "web": 1}},
        packing=packing,
        mask_boundaries=boundaries,
    )
    lengths = {"4": "5steps", "8": "7steps"} if warmup else {}
    train = dataclasses.replace(
        config.train,
        seq_len=16,
        global_batch=global_batch,
        duration="40steps",
        seq_len_warmup=lengths,
    )
    config = dataclasses.replace(config, train=train)
    return config, make_plan(config, facts(data))


def whole_step(
    config: RunConfig, plan: RunPlan, step: int, world_size: int, micro_batch: int
) -> list[torch.Tensor]:
    """The real rows of all ranks and passes of a step: tokens, targets, documents.

    They are cut as the loader cuts them.
    """
    shared = stream.training(config, plan, Path(plan.data_directory))
    passes = []
    for rank in range(world_size):
        share = Share(rank, world_size, config.train.global_batch, micro_batch)
        with Batches(shared, share) as batches:
            passes += batches.step(step)
    rows = [torch.cat(part) for part in zip(*passes, strict=True)]
    real = (rows[1] != IGNORED).view(-1, config.train.seq_len).any(1)
    real = real.repeat_interleave(config.train.seq_len // rows[0].shape[1])
    return [part[real] for part in rows]


@given(
    world_size=st.integers(1, 4),
    micro_batch=st.integers(1, 9),
    global_batch=st.integers(4, 13),
    step=st.integers(0, 39),
    packing=st.sampled_from(["concatenated", "best_fit"]),
    boundaries=st.booleans(),
    warmup=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_machine_changes_nothing_in_any_step_of_any_kind_of_run(
    data: Path,
    world_size: int,
    micro_batch: int,
    global_batch: int,
    step: int,
    packing: str,
    boundaries: bool,
    warmup: bool,
) -> None:
    boundaries = boundaries and packing == "concatenated"
    config, plan = run(data, global_batch, packing, boundaries, warmup)
    alone = whole_step(config, plan, step, 1, global_batch)
    for one, other in zip(
        whole_step(config, plan, step, world_size, micro_batch), alone, strict=True
    ):
        assert torch.equal(one, other)


def test_every_step_has_the_shares_of_its_phase(data: Path) -> None:
    mixture = stream.training(*run(data, global_batch=10), data).mixture
    for step in range(10):
        assert np.bincount(mixture.step(step).sources, minlength=3).tolist() == [2, 3, 5]
    counted = np.bincount(
        np.concatenate([mixture.step(step).sources for step in range(20, 40)]), minlength=3
    )
    assert counted.tolist() == [0, 150, 50]


def test_rows_come_from_the_source_that_the_mixture_names(data: Path) -> None:
    config, plan = run(data)
    made = stream.training(config, plan, Path(plan.data_directory))
    with Batches(made, Share(0, 1, 8, 8)) as batches:
        for step in (0, 25, 3):
            ((tokens, targets),) = batches.step(step)
            rows = made.mixture.step(step)
            for row, (source, sample) in enumerate(zip(rows.sources, rows.samples, strict=True)):
                arrays = made.samples[source].blank(1)
                made.samples[source].read(np.array([sample]), arrays, np.array([0]))
                assert tokens[row].tolist() == arrays.tokens[0].tolist()
                assert targets[row].tolist() == arrays.targets[0].tolist()


def test_shorter_sequences_at_first_are_the_same_tokens_in_the_same_step(data: Path) -> None:
    full = run(data)
    warm = run(data, warmup=True)
    assert warm[1].seq_lens == [(0, 4), (5, 8), (12, 16)]
    assert warm[1].tokens_per_step == full[1].tokens_per_step
    for step, length in ((0, 4), (4, 4), (5, 8), (11, 8), (12, 16), (39, 16)):
        long, short = (whole_step(*each, step, 2, 3) for each in (full, warm))
        assert short[0].shape == (8 * 16 // length, length)
        assert all(
            torch.equal(one.flatten(), other.flatten())
            for one, other in zip(long, short, strict=True)
        )


def test_a_documents_first_token_is_no_target_where_boundaries_are_masked(data: Path) -> None:
    plain, masked = (whole_step(*run(data, boundaries=masked), 7, 1, 8) for masked in (False, True))
    ends = plain[0] == EOS
    assert ends.any()
    assert torch.equal(masked[1], torch.where(ends, IGNORED, plain[1]))


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_held_out_text_is_packed_like_the_rest(data: Path, packing: str) -> None:
    config, plan = run(data, packing=packing)
    heldout = stream.heldout(config, plan, data)
    batches = list(heldout_batches(heldout, Share(0, 1, 8, 8)))
    assert len(batches) == -(-len(heldout.rows.samples) // 8)
    assert len(batches[0][0]) == (3 if packing == "best_fit" else 2)


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_the_sources_of_the_last_phase_are_evaluated_in_its_proportions(
    data: Path, packing: str
) -> None:
    config, plan = run(data, packing=packing)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_batches=2))
    heldout = stream.heldout(config, plan, data)
    code, web = (ShardSet.open(data, "heldout", name) for name in ("code", "web"))
    kind = BestFit if packing == "best_fit" else Concatenated
    assert [each.num_samples for each in heldout.samples] == [
        kind(shards, 16).num_samples for shards in (code, web)
    ]
    assert np.bincount(heldout.rows.sources).tolist() == [12, 4]
    assert np.any(np.diff(heldout.rows.samples[heldout.rows.sources == 0]) < 0), "not in file order"


def test_neither_seed_nor_how_the_batch_is_cut_changes_what_is_evaluated(data: Path) -> None:
    def evaluated(seed: int, global_batch: int, eval_batches: int) -> list[list[int]]:
        config, plan = run(data, global_batch)
        config = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, seed=seed),
            train=dataclasses.replace(config.train, eval_batches=eval_batches),
        )
        heldout = stream.heldout(config, plan, data)
        passes = [
            each
            for batch in heldout_batches(heldout, Share(0, 1, global_batch, global_batch))
            for each in batch
        ]
        targets = torch.cat([targets for _, targets in passes])
        rows: list[list[int]] = targets[(targets != IGNORED).any(1)].tolist()
        return rows

    assert evaluated(1, 8, 3) == evaluated(2, 24, 1) == evaluated(1, 4, 6)
    assert evaluated(1, 4, 3) == evaluated(1, 8, 3)[:12]


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_a_plan_counts_the_samples_that_the_ranks_count(
    data: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cap on both sources of the last phase, they refuse the same durations.

    And epochs are exact.
    """
    monkeypatch.setattr(recipe, "check_recipe", lambda *_: None)
    config, _ = run(data, packing=packing)
    capped = {name: {**SOURCES[name], "max_epochs": 1} for name in ("code", "web")}
    config = dataclasses.replace(
        config, data=run_config(**vars(config.data) | {"sources": SOURCES | capped}).data
    )
    known = examine.known_data(config)
    assert known is not None
    longest = 0
    for steps in range(21, 60):
        asked = dataclasses.replace(
            config, train=dataclasses.replace(config.train, duration=f"{steps}steps")
        )
        try:
            plan = make_plan(asked, known)
        except InputError as error:
            assert "reached its max_epochs" in str(error)
            with pytest.raises(InputError, match="reached its max_epochs"):
                stream.training(asked, lengths(asked, None), data)
            break
        longest = steps
        made = stream.training(asked, plan, data)
        taken = made.mixture.stage(steps - 1).before(steps)
        sizes = [each.num_samples for each in made.samples]
        assert list(plan.source_epochs.values()) == [
            count / size for count, size in zip(taken, sizes, strict=True)
        ]
    assert 21 <= longest < 59


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_a_plan_counts_held_out_samples_too(
    data: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "check_recipe", lambda *_: None)
    config, plan = run(data, packing=packing)
    known = examine.known_data(config)
    assert known is not None
    counts = [each.num_samples for each in stream.heldout(config, plan, data).samples]
    assert [known.heldout_samples[name] for name in ("code", "web")] == counts


def unphased(data: Path, steps: int, weights: dict[str, float]) -> tuple[RunConfig, RunPlan]:
    """A run of one phase; books end after 1.5 epochs, web after 1."""
    caps = {"books": {"max_epochs": 1.5}, "web": {"max_epochs": 1}}
    sources = {
        name: {"path": name, "weight": weights.get(name, 0.0), **caps.get(name, {})}
        for name in SOURCES
    }
    config = run_config(sources=sources, out=str(data))
    train = dataclasses.replace(config.train, seq_len=16, global_batch=8, duration=f"{steps}steps")
    config = dataclasses.replace(config, train=train)
    return config, make_plan(config, facts(data))


def test_steps_in_place_of_skipped_ones_keep_to_the_caps(data: Path) -> None:
    weights = {"books": 0.3, "code": 0.7}
    longest = stream.training(*unphased(data, 100, weights), data)
    end = longest.mixture.stages[
        1
    ].start  # the step before which books are within a batch of their cap
    skipping = stream.training(*unphased(data, end, weights), data, 9).mixture.steps(0, end + 9)
    longer = stream.training(*unphased(data, end + 9, weights), data).mixture.steps(0, end + 9)
    assert np.array_equal(skipping.sources, longer.sources)
    assert np.array_equal(skipping.samples, longer.samples)
    assert (skipping.sources == 0).sum() == 1.5 * longest.samples[0].num_samples // 1


def test_a_run_that_skips_steps_goes_on_though_every_source_has_reached_its_cap(data: Path) -> None:
    steps = stream.training(*unphased(data, 1, {"web": 1.0}), data).samples[2].num_samples // 8
    mixture = stream.training(*unphased(data, steps, {"web": 1.0}), data, 3).mixture
    assert mixture.steps(0, steps + 3).sources.tolist() == [[2] * 8] * (steps + 3)


def test_steps_in_place_of_skipped_ones_begin_no_phase_that_the_run_does_not_reach(
    data: Path,
) -> None:
    config, plan = run(data)
    plan = dataclasses.replace(plan, phases=[*plan.phases, Phase(41, {"books": 1.0})])
    rows = stream.training(config, plan, data, 5).mixture.steps(40, 5)
    assert np.bincount(rows.sources.ravel(), minlength=3).tolist() == [0, 30, 10]


def test_data_without_its_pack_is_refused(data: Path) -> None:
    config, plan = run(data, packing="best_fit")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seq_len=8))
    with pytest.raises(
        InputError, match=r"pack-8: missing or damaged; pack again: \S+ -m hpc_llm\.prepare"
    ):
        stream.training(config, plan, Path(plan.data_directory))


def test_text_shorter_than_a_sample_is_refused(data: Path) -> None:
    config, plan = run(data)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seq_len=10**6))
    with pytest.raises(
        InputError, match=r"train\.seq_len=1000000: the train text in .* has \d+ tokens"
    ):
        stream.training(config, plan, Path(plan.data_directory))
    with pytest.raises(
        InputError,
        match=r"train\.seq_len=1000000: the heldout text of code, web in .* has no sample",
    ):
        stream.heldout(config, plan, data)
