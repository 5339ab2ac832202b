"""What is trained on in which order: mistakes are found before anything is queued."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.mixture import Phase
from hpc_llm.planning.plan import make_plan
from hpc_llm.planning.render import render
from tests.configs import make_config

TWO = (
    "data=files",
    "data.sources={code: {path: /c, weight: 3}, web: {path: /w, weight: 1, max_epochs: 2}}",
)
FACTS = DataFacts(
    "/data", 20_000_000, 1_000, 4096, 6.0, source_tokens={"code": 15_000_000, "web": 5_000_000}
)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["data.mixture={1e6tok: {stdlib: 1}}"],
            "data.mixture: has no effect with one source (stdlib)",
        ),
        (
            [*TWO, "data.mixture={1e6tok: {wib: 1}}"],
            "data.mixture.1e6tok.wib: no such source; allowed: web, code",
        ),
        (
            [*TWO, "data.mixture={1e6tok: {web: -1, code: 1}}"],
            "data.mixture.1e6tok.web=-1: a weight is 0 or more",
        ),
        ([*TWO, "data.mixture={1e6tok: {web: 0}}"], "data.mixture.1e6tok: the weights add up to 0"),
        ([*TWO, "data.mixture={1e6: {web: 1}}"], "a number and its unit: 4800steps, 1e9tok"),
        (
            [*TWO, "data.mixture={9steps: {web: 1}, 5steps: {code: 1}}"],
            "begins with step 5, no later than the phase",
        ),
        (
            [*TWO, "data.mixture={10tok: {web: 1}, 20tok: {code: 1}}"],
            "data.mixture.20tok: begins with step 1, no",
        ),
        (
            ["train.seq_len_warmup={100: 5steps}"],
            "train.seq_len_warmup.100: a length that divides train.seq_len=256",
        ),
        (["train.seq_len_warmup={256: 5steps}"], "train.seq_len_warmup.256: a length that divides"),
        (
            ["train.seq_len_warmup={64: 5steps, 32: 5steps}"],
            "train.seq_len_warmup.32: lengths must grow",
        ),
        (
            ["train.seq_len_warmup={64: 5min}"],
            "train.seq_len_warmup.64='5min': a number and its unit",
        ),
        (
            [
                *TWO,
                "data.mixture={9steps: {web: 1}, 300steps: {code: 1}}",
                "train.duration=300steps",
            ],
            (
                "data.mixture.300steps: would begin after 300 steps, but the run ends after 300 "
                "(train.duration=300steps)"
            ),
        ),
        (
            ["train.seq_len_warmup={64: 500steps}", "train.duration=100steps"],
            (
                "train.seq_len_warmup.64=500steps: sequences of 256 would begin after 500 steps, "
                "but the run ends"
            ),
        ),
        (
            ["train.seq_len_warmup={64: 50steps, 128: 50steps}", "train.duration=100steps"],
            "train.seq_len_warmup.128=50steps: sequences of 256 would begin after 100 steps",
        ),
        (
            ["data.packing=best_fit", "data.mask_boundaries=true"],
            "has no effect with data.packing=best_fit",
        ),
        (["data.packing=tight"], "data.packing='tight': concatenated or best_fit is expected"),
    ],
)
def test_a_mistake_is_named_with_its_key(words: list[str], problem: str) -> None:
    with pytest.raises(InputError) as raised:
        make_plan(make_config(*words), None)
    assert any(problem in line for line in raised.value.problems), raised.value.problems


def test_a_source_may_wait_for_a_later_phase() -> None:
    words = [*TWO, "data.sources.web.weight=0", "data.mixture={1e5tok: {web: 1, code: 1}}"]
    plan = make_plan(make_config(*words), FACTS)
    assert plan.phases == [
        Phase(0, {"code": 3.0, "web": 0.0}),
        Phase(25, {"web": 1.0, "code": 1.0}),
    ]


def test_the_plan_shows_shares_epochs_and_where_phases_begin() -> None:
    config = make_config(
        *TWO, "data.mixture={1e5tok: {web: 1, code: 1}}", "train.seq_len_warmup={64: 10steps}"
    )
    plan = make_plan(config, FACTS)
    assert plan.seq_lens == [(0, 64), (10, 256)]
    samples = {"code": 12 * 25 + 8 * 275, "web": 4 * 25 + 8 * 275}
    for name, taken in samples.items():
        assert plan.source_epochs[name] == pytest.approx(
            taken * 256 / FACTS.source_tokens[name], rel=0.01
        )
    shown = render(config, plan)
    assert "from step 0: code 0.75, web 0.25" in shown
    assert "from step 25 (1e5tok, rounded up): web 0.5, code 0.5" in shown
    assert "sequences of 64 from step 0, 256 from step 10" in shown


def test_a_mixture_that_runs_out_is_refused_before_the_queue() -> None:
    words = [*TWO, "data.sources.code.max_epochs=1", "train.duration=1e9tok"]
    with pytest.raises(
        InputError, match=r"every source of the mixture has reached its max_epochs \(code, web\)"
    ):
        make_plan(make_config(*words), FACTS)


def test_a_run_whose_sources_have_too_little_held_out_text_is_refused_before_the_queue() -> None:
    known = replace(
        FACTS, samples={"code": 9_000, "web": 3_000}, heldout_samples={"code": 0, "web": 3}
    )
    assert make_plan(make_config(*TWO), known)
    words = [*TWO, "data.sources.web.weight=0"]
    for given, facts in (
        (words, known),
        (TWO, replace(known, heldout_samples={"code": 0, "web": 0})),
    ):
        with pytest.raises(InputError) as raised:
            make_plan(make_config(*given), facts)
        (problem,) = raised.value.problems
        assert problem.startswith(
            f"train.seq_len=256: the heldout text of {'code' if given is words else 'code, web'} in"
        )
        assert (
            "/data has no sample of 257 tokens (all sources have 1000); prepare more text"
            in problem
        )


def test_packing_counts_its_masks_and_its_padding() -> None:
    masks = "train.attention=sdpa"
    plain, packed = (
        make_plan(make_config(masks, *words), None) for words in ((), ("data.packing=best_fit",))
    )
    assert (
        packed.memory.activations - plain.memory.activations == packed.micro_batch * 4 * 256**2 * 2
    )
    assert "padding not known before it is packed" in render(
        make_config("data.packing=best_fit"), packed
    )
