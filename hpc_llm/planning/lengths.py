"""Durations in optimizer steps: of the run, its warm-up, and the periods of evaluation and
checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hpc_llm.config.duration import Duration, parse
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.mixture import Phase

STEPS_OR_TOKENS = ("steps", "tok")


@dataclass(frozen=True)
class Lengths:
    """Periods of a run; of the two of checkpoints one is set, and none for
    checkpoint.every=auto.
    """

    steps: int
    tokens_per_step: int
    warmup_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_s: float | None
    permanent_every_steps: int | None
    phases: list[Phase]  # of the mixture
    seq_lens: list[tuple[int, int]]  # first step, sequence length from then on
    rungs: list[int]  # steps at which successive halving judges


def lengths(config: RunConfig, tokens_per_epoch: int | None, *, begun: bool = False) -> Lengths:
    """Every duration of `config` in steps; InputError lists all that are invalid.

    begun: whether the run has a checkpoint, so that what would begin after its end cannot be
    changed any more.
    """
    train = config.train
    checkpoint = config.checkpoint
    problems: list[str] = []
    tokens = max(
        1, train.global_batch * train.seq_len
    )  # the plan refuses a batch below 1 on its own

    def read(key: str, text: str, allowed: tuple[str, ...]) -> Duration | None:
        try:
            return parse(text, allowed, none=key == "optim.warmup")
        except InputError as error:
            problems.append(f"{key}={text!r}: {error}")
            return None

    def steps(key: str, text: str) -> int:
        found = read(key, text, STEPS_OR_TOKENS)
        return found.steps(tokens) if found else 0

    duration = read("train.duration", train.duration, (*STEPS_OR_TOKENS, "ep"))
    auto = checkpoint.every == "auto"
    every = (
        None
        if auto
        else read("checkpoint.every", checkpoint.every, (*STEPS_OR_TOKENS, "s", "min", "h"))
    )
    if duration and duration.unit == "ep" and tokens_per_epoch is None:
        problems.append(
            f"train.duration={train.duration!r}: the length of an epoch is not known before the "
            f"data is prepared; run `python -m hpc_llm.prepare data={config.data.name}`, or give "
            "steps or tok"
        )
        duration = None
    result = Lengths(
        steps=duration.steps(tokens, tokens_per_epoch) if duration else 0,
        tokens_per_step=tokens,
        warmup_steps=steps("optim.warmup", config.optim.warmup),
        eval_every_steps=steps("train.eval_every", train.eval_every),
        checkpoint_every_steps=every.steps(tokens) if every and not every.is_time else None,
        checkpoint_every_s=every.seconds() if every and every.is_time else None,
        permanent_every_steps=(
            None
            if checkpoint.permanent_every is None
            else steps("checkpoint.permanent_every", checkpoint.permanent_every)
        ),
        phases=_phases(config, steps, problems),
        seq_lens=_seq_lens(config, steps),
        rungs=[steps("halving.rungs", text) for text in config.halving.rungs],
    )
    if not problems:
        problems += [
            *_rung_problems(config, result),
            *([] if begun else _late_problems(config, result)),
        ]
    if problems:
        raise InputError(problems)
    return result


def _rung_problems(config: RunConfig, found: Lengths) -> Iterator[str]:
    said = f"halving.rungs={','.join(config.halving.rungs)}"
    if any(after <= before for before, after in itertools.pairwise([0, *found.rungs, found.steps])):
        yield (
            f"{said}: increasing, above 0 and before the run's end ({found.steps} steps) are "
            "expected"
        )
    if any(rung % found.eval_every_steps for rung in found.rungs):
        yield (
            f"{said}: rungs lie at evaluations, every {found.eval_every_steps} steps "
            "(train.eval_every)"
        )


def _late_problems(config: RunConfig, found: Lengths) -> Iterator[str]:
    """What would begin when the run is over."""
    end = f"but the run ends after {found.steps} (train.duration={config.train.duration})"
    for key, phase in zip(config.data.mixture, found.phases[1:], strict=True):
        if phase.start >= found.steps:
            yield (
                f"data.mixture.{key}: would begin after {phase.start} steps, {end}; begin it "
                "earlier or leave it out"
            )
    warmup = config.train.seq_len_warmup
    for (length, duration), (start, longer) in zip(warmup.items(), found.seq_lens[1:], strict=True):
        if start >= found.steps:
            yield (
                f"train.seq_len_warmup.{length}={duration}: sequences of {longer} would begin "
                f"after {start} steps, {end}; make it shorter"
            )


def phases(config: RunConfig) -> list[Phase]:
    """Only the phases of the mixture. InputError if one is invalid."""
    tokens = config.train.global_batch * config.train.seq_len
    problems = list[str]()
    found = _phases(config, lambda _, text: parse(text, STEPS_OR_TOKENS).steps(tokens), problems)
    if problems:
        raise InputError(problems)
    return found


def _phases(
    config: RunConfig, steps: Callable[[str, str], int], problems: list[str]
) -> list[Phase]:
    """The sources' own weights, then each mixture of data.mixture from the first step after its
    start.
    """
    data = config.data
    own = {name: source.weight for name, source in data.sources.items()} or {data.name: 1.0}
    phases = [Phase(0, own)]
    for start, weights in data.mixture.items():
        key = f"data.mixture.{start}"
        phase = Phase(steps(key, start), dict(weights))
        if phase.start <= phases[-1].start and not problems:
            problems.append(
                f"{key}: begins with step {phase.start}, no later than the phase before it; "
                "order them"
            )
        phases.append(phase)
    return phases


def length_at(seq_lens: Sequence[tuple[int, int]], step: int) -> int:
    """Tokens of a sequence in `step`, counted from 0."""
    return next(length for start, length in reversed(seq_lens) if start <= step)


def _seq_lens(config: RunConfig, steps: Callable[[str, str], int]) -> list[tuple[int, int]]:
    """Stages of the sequence length; the length of each warm-up stage is rounded up to whole
    steps.
    """
    stages = []
    start = 0
    for length, duration in config.train.seq_len_warmup.items():
        stages.append((start, int(length) if length.isdecimal() else 0))
        start += steps(f"train.seq_len_warmup.{length}", duration)
    return [*stages, (start, config.train.seq_len)]
