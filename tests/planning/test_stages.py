"""Phases and caps as stages: what was seen stays straight across them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.planning.mixture import Phase, Source, Stage, begun, check_begun, stages

NAMES = ("books", "code", "web")
SOURCES = st.tuples(
    *(
        st.builds(
            Source,
            st.just(name),
            st.integers(1, 400),
            st.one_of(st.none(), st.sampled_from([0.5, 1, 1.7, 3])),
        )
        for name in NAMES
    )
)
WEIGHTS = st.fixed_dictionaries(
    {name: st.sampled_from([0.0, 0.1, 0.25, 1.0]) for name in NAMES}
).filter(lambda weights: any(weights.values()))

RUNS: dict[str, st.SearchStrategy[Any]] = {
    "sources": SOURCES,
    "draws": st.lists(WEIGHTS, min_size=1, max_size=4),
    "starts": st.lists(st.integers(1, 100), min_size=3, max_size=3, unique=True).map(sorted),
    "batch": st.integers(1, 24),
    "steps": st.integers(1, 120),
}


def phases_at(draws: list[dict[str, float]], starts: list[int]) -> list[Phase]:
    return [Phase(start, weights) for start, weights in zip([0, *starts], draws, strict=False)]


def counts(parts: list[Stage], steps: int) -> list[tuple[int, ...]]:
    """Samples of each source before every step, and at the end."""
    found = []
    ends = [*(stage.start for stage in parts[1:]), steps]
    for stage, end in zip(parts, ends, strict=True):
        found += [stage.before(step) for step in range(stage.start, end)]
    return [*found, parts[-1].before(steps)]


@given(**RUNS)
@settings(max_examples=200, deadline=None)
def test_counts_go_on_across_phases_and_stop_at_caps(
    sources: tuple[Source, ...],
    draws: list[dict[str, float]],
    starts: list[int],
    batch: int,
    steps: int,
) -> None:
    phases = phases_at(draws, starts)
    try:
        parts = stages(phases, sources, batch, steps)
    except InputError as error:
        assert "max_epochs" in str(error)
        assert any(source.max_epochs is not None for source in sources)
        return
    assert [stage.start for stage in parts] == sorted({stage.start for stage in parts})
    assert parts[0].start == 0
    seen = counts(parts, steps)
    assert len(seen) == steps + 1
    assert seen[0] == (0, 0, 0)
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        taken = [more - less for more, less in zip(after, before, strict=True)]
        assert sum(taken) == batch
        assert min(taken) >= 0
        phase = [phase for phase in phases if phase.start <= step][-1]
        assert all(
            not count or phase.weights[source.name]
            for count, source in zip(taken, sources, strict=True)
        )
        assert all(total <= source.cap for total, source in zip(after, sources, strict=True))


@given(**RUNS, more=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_further_steps_change_nothing_before_them(
    sources: tuple[Source, ...],
    draws: list[dict[str, float]],
    starts: list[int],
    batch: int,
    steps: int,
    more: int,
) -> None:
    """As a run has them that skipped some."""
    phases = phases_at(draws, starts)
    try:
        longer = counts(stages(phases, sources, batch, steps + more), steps + more)
    except InputError:
        return
    assert counts(stages(phases, sources, batch, steps), steps) == longer[: steps + 1]


@given(
    sources=SOURCES,
    draws=st.lists(WEIGHTS, min_size=4, max_size=4),
    starts=st.lists(st.integers(1, 100), min_size=3, max_size=3, unique=True).map(sorted),
    kept=st.integers(0, 2),
    batch=st.integers(1, 24),
)
@settings(max_examples=100, deadline=None)
def test_a_phase_that_is_added_or_changed_later_changes_nothing_before_it(
    sources: tuple[Source, ...],
    draws: list[dict[str, float]],
    starts: list[int],
    kept: int,
    batch: int,
) -> None:
    """A run with an edited mixture has seen what the edited mixture says that it has seen."""
    sources = tuple(Source(source.name, source.num_samples) for source in sources)
    whole = phases_at(draws, starts)
    edited = [*whole[: kept + 1], Phase(starts[kept], {"books": 0.0, "code": 1.0, "web": 3.0})]
    before, after = (counts(stages(phases, sources, batch, 120), 120) for phases in (whole, edited))
    assert before[: starts[kept] + 1] == after[: starts[kept] + 1]


def test_a_checkpoint_of_another_mixture_is_refused_but_phases_to_come_may_differ() -> None:
    phases = [Phase(0, {"web": 1}), Phase(10, {"code": 1}), Phase(20, {"web": 1})]
    trained = json.loads(json.dumps(begun(phases, 20)))
    assert [phase["start"] for phase in trained] == [0, 10]
    check_begun(trained, [*phases[:2], Phase(25, {"code": 2, "web": 1})], 20)
    check_begun([], phases, 20)
    with pytest.raises(
        InputError,
        match=r"checkpoint of step 20 was trained .*10steps.*'code': 1.* from 20steps on",
    ):
        check_begun(trained, [phases[0], Phase(10, {"code": 2})], 20)
    with pytest.raises(InputError, match="trained with other weights"):
        check_begun(trained, [*phases[:2], Phase(19, {"web": 1})], 20)


def test_a_source_is_read_to_its_cap_exactly_and_its_share_goes_to_the_others() -> None:
    sources = [Source("books", 50, 1.5), Source("code", 10_000), Source("web", 10_000)]
    parts = stages([Phase(0, {"books": 0.2, "code": 0.5, "web": 0.3})], sources, 16, 100)
    end = parts[-1].before(100)
    assert end[0] == 75
    assert [float(weight) for weight in parts[-1].shares.weights] == [0, 0.625, 0.375]
    assert abs(end[1] - end[2] * 5 / 3) < 4


def test_a_mixture_that_is_used_up_is_refused_with_the_step() -> None:
    sources = [Source("books", 50, 1), Source("code", 50, 1)]
    with pytest.raises(
        InputError, match=r"at step 6 of 100 every source .*\(books, code\); raise max_epochs"
    ):
        stages([Phase(0, {"books": 1, "code": 1})], sources, 16, 100)
    assert stages([Phase(0, {"books": 1, "code": 1})], sources, 16, 6)


def test_a_source_shorter_than_a_sample_is_refused() -> None:
    with pytest.raises(InputError, match="source code has less text than one sample"):
        stages(
            [Phase(0, {"books": 1, "code": 1})], [Source("books", 50), Source("code", 0)], 16, 100
        )


def test_a_source_rarer_than_once_in_a_thousand_batches_is_refused() -> None:
    with pytest.raises(InputError, match="less than one sample in 1000 global batches of 4"):
        stages(
            [Phase(0, {"books": 1, "code": 1e-5})],
            [Source("books", 50), Source("code", 50)],
            4,
            100,
        )
