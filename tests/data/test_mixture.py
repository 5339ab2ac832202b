"""Which sample every row of a step is: the sources' own epochs, dealt out over the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.data.mixture import Mixture, Rows, heldout_rows
from hpc_llm.data.order import sample_ids
from hpc_llm.planning.mixture import Phase, Source, stages

SOURCES = [Source("books", 70, 2), Source("code", 130), Source("web", 50)]
PHASES = [Phase(0, {"books": 0.2, "code": 0.5, "web": 0.3}), Phase(40, {"books": 0.7, "code": 0.3})]
STEPS = 90


def mixture(seed: int, batch: int, phases: list[Phase] = PHASES) -> Mixture:
    return Mixture(seed, SOURCES, stages(phases, SOURCES, batch, STEPS), batch)


@given(seed=st.integers(0, 2**63 - 1), batch=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_each_source_is_its_own_stream_of_epochs_whatever_the_others_do(
    seed: int, batch: int
) -> None:
    rows = mixture(seed, batch).steps(0, STEPS)
    assert rows.sources.shape == rows.samples.shape == (STEPS, batch)
    for number, source in enumerate(SOURCES):
        seen = rows.samples[rows.sources == number]
        assert np.array_equal(seen, sample_ids(seed, 0, len(seen), source.num_samples, source.name))
        for start in range(0, len(seen) - source.num_samples + 1, source.num_samples):
            assert len(set(seen[start : start + source.num_samples].tolist())) == source.num_samples
    assert (rows.sources == 0).sum() <= 2 * SOURCES[0].num_samples


@given(seed=st.integers(0, 2**63 - 1), batch=st.integers(1, 12), step=st.integers(0, STEPS - 1))
@settings(max_examples=60, deadline=None)
def test_a_step_asked_for_alone_is_the_step_of_the_run(seed: int, batch: int, step: int) -> None:
    through = mixture(seed, batch).steps(0, STEPS)
    alone = mixture(seed, batch).step(step)
    assert np.array_equal(alone.sources, through.sources[step])
    assert np.array_equal(alone.samples, through.samples[step])


@given(batch=st.integers(1, 12), start=st.integers(41, STEPS - 1))
@settings(max_examples=40, deadline=None)
def test_a_run_that_goes_on_with_another_phase_repeats_no_sample_before_its_epoch_is_through(
    batch: int, start: int
) -> None:
    before = mixture(3, batch).steps(0, start)
    after = mixture(3, batch, [*PHASES, Phase(start, {"code": 1, "web": 1})]).steps(0, STEPS)
    assert np.array_equal(before.sources, after.sources[:start])
    assert np.array_equal(before.samples, after.samples[:start])
    for number, source in enumerate(SOURCES):
        seen = after.samples[after.sources == number]
        for first in range(0, len(seen), source.num_samples):
            epoch = seen[first : first + source.num_samples].tolist()
            assert len(set(epoch)) == len(epoch)


def test_sources_lie_anywhere_in_a_batch() -> None:
    places = [np.flatnonzero(row == 0).tolist() for row in mixture(1, 10).steps(0, 20).sources]
    assert len({tuple(place) for place in places}) > 10
    assert {place for row in places for place in row} == set(range(10))


def test_the_order_of_a_mixture_stays_the_same_for_good() -> None:
    """A release that changed it would change every run that resumes."""
    rows = mixture(17, 8).step(3)
    assert (rows.sources.tolist(), rows.samples.tolist()) == (SOURCES_OF_STEP_3, SAMPLES_OF_STEP_3)


SOURCES_OF_STEP_3 = [1, 2, 1, 1, 2, 0, 1, 2]
SAMPLES_OF_STEP_3 = [2, 43, 9, 107, 1, 57, 116, 14]


@given(
    sizes=st.tuples(*[st.integers(0, 60)] * 3),
    weights=st.tuples(*[st.sampled_from([0.1, 0.3, 1.0, 2.5])] * 3),
    most=st.integers(0, 200),
    less=st.integers(0, 200),
)
@settings(max_examples=100, deadline=None)
def test_a_smaller_evaluation_is_the_beginning_of_a_larger_one(
    sizes: tuple[int, ...], weights: tuple[float, ...], most: int, less: int
) -> None:
    rows, fewer = (heldout_of(sizes, weights, number) for number in (most, min(less, most)))
    assert len(rows.samples) == min(most, sum(sizes))
    assert np.array_equal(rows.sources[: len(fewer.sources)], fewer.sources)
    assert np.array_equal(rows.samples[: len(fewer.samples)], fewer.samples)
    for number, size in enumerate(sizes):
        own = rows.samples[rows.sources == number]
        assert len(set(own.tolist())) == len(own)
        assert np.all((own >= 0) & (own < size))


@given(weights=st.tuples(*[st.sampled_from([0.1, 0.3, 1.0, 2.5])] * 3), most=st.integers(1, 200))
def test_held_out_rows_are_in_proportion_to_the_weights(
    weights: tuple[float, ...], most: int
) -> None:
    counts = np.bincount(heldout_of((200, 200, 200), weights, most).sources, minlength=3)
    assert np.all(np.abs(counts - np.array(weights) / sum(weights) * most) < 1.5)


def test_rows_that_a_small_source_lacks_fall_to_the_others() -> None:
    assert np.bincount(heldout_of((5, 400, 400), (1, 2, 1), 101).sources).tolist() == [5, 64, 32]


def test_what_is_evaluated_stays_the_same_for_good() -> None:
    """A release that changed it would change the held-out loss of every run that resumes."""
    rows = heldout_of((70, 130, 50), (0.2, 0.5, 0.3), 8)
    assert (rows.sources.tolist(), rows.samples.tolist()) == (HELDOUT_SOURCES, HELDOUT_SAMPLES)


def heldout_of(sizes: tuple[int, ...], weights: tuple[float, ...], most: int) -> Rows:
    names = ("books", "code", "web")
    sources = [Source(name, size) for name, size in zip(names, sizes, strict=True)]
    return heldout_rows(sources, dict(zip(names, weights, strict=True)), most)


HELDOUT_SOURCES = [1, 2, 0, 1, 1, 2, 1, 0]
HELDOUT_SAMPLES = [55, 38, 46, 82, 109, 15, 107, 50]
