"""Durations in optimizer steps: of the run, its warm-up, and the periods within it."""

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
    """Periods of a run; of the two of checkpoints one is set, for checkpoint.every=auto none."""

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


class _Reader:
    """Reads durations in steps; every one that is invalid becomes a problem, and counts as 0."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.problems: list[str] = []

    def read(self, key: str, text: str, allowed: tuple[str, ...]) -> Duration | None:
        """`text` as a duration in one of the `allowed` units."""
        try:
            return parse(text, allowed, none=key == "optim.warmup")
        except InputError as error:
            self.problems.append(f"{key}={text!r}: {error}")
            return None

    def steps(self, key: str, text: str) -> int:
        """`text`, steps or tokens, in steps."""
        duration = self.read(key, text, STEPS_OR_TOKENS)
        if duration is None:
            return 0
        return duration.steps(self.tokens_per_step)


def lengths(config: RunConfig, tokens_per_epoch: int | None, *, begun: bool = False) -> Lengths:
    """Every duration of `config` in steps; InputError lists all that are invalid.

    begun: whether the run has a checkpoint, so that what would begin after its end cannot be
    changed any more.
    """
    train = config.train
    # The plan refuses a batch below 1 on its own.
    reader = _Reader(max(1, train.global_batch * train.seq_len))
    total_steps = _total_steps(config, tokens_per_epoch, reader)
    every_steps, every_s = _checkpoint_every(config, reader)
    result = Lengths(
        steps=total_steps,
        tokens_per_step=reader.tokens_per_step,
        warmup_steps=reader.steps("optim.warmup", config.optim.warmup),
        eval_every_steps=reader.steps("train.eval_every", train.eval_every),
        checkpoint_every_steps=every_steps,
        checkpoint_every_s=every_s,
        permanent_every_steps=_permanent_every(config, reader),
        phases=_phases(config, reader.steps, reader.problems),
        seq_lens=_seq_lens(config, reader.steps),
        rungs=[reader.steps("halving.rungs", text) for text in config.halving.rungs],
    )
    problems = reader.problems
    if not problems:
        problems += _rung_problems(config, result)
        if not begun:
            problems += _late_problems(config, result)
    if problems:
        raise InputError(problems)
    return result


def _total_steps(config: RunConfig, tokens_per_epoch: int | None, reader: _Reader) -> int:
    text = config.train.duration
    duration = reader.read("train.duration", text, (*STEPS_OR_TOKENS, "ep"))
    if duration is None:
        return 0
    if duration.unit == "ep" and tokens_per_epoch is None:
        reader.problems.append(
            f"train.duration={text!r}: the length of an epoch is not known before the "
            f"data is prepared; prepare data={config.data.name} first (hpc_llm.prepare), or give "
            "steps or tok"
        )
        return 0
    return duration.steps(reader.tokens_per_step, tokens_per_epoch)


def _permanent_every(config: RunConfig, reader: _Reader) -> int | None:
    every = config.checkpoint.permanent_every
    if every is None:
        return None
    return reader.steps("checkpoint.permanent_every", every)


def _checkpoint_every(config: RunConfig, reader: _Reader) -> tuple[int | None, float | None]:
    """The interval of checkpoints in steps, or else in seconds; neither for auto."""
    text = config.checkpoint.every
    if text == "auto":
        return None, None
    every = reader.read("checkpoint.every", text, (*STEPS_OR_TOKENS, "s", "min", "h"))
    if every is None:
        return None, None
    if every.is_time:
        return None, every.seconds()
    return every.steps(reader.tokens_per_step), None


def _rung_problems(config: RunConfig, length: Lengths) -> Iterator[str]:
    given = f"halving.rungs={','.join(config.halving.rungs)}"
    bounds = [0, *length.rungs, length.steps]
    if any(after <= before for before, after in itertools.pairwise(bounds)):
        yield (
            f"{given}: increasing, above 0 and before the run's end ({length.steps} steps) are "
            "expected"
        )
    if any(rung % length.eval_every_steps for rung in length.rungs):
        yield (
            f"{given}: rungs lie at evaluations, every {length.eval_every_steps} steps "
            "(train.eval_every)"
        )


def _late_problems(config: RunConfig, length: Lengths) -> Iterator[str]:
    """What would begin when the run is over."""
    end = f"but the run ends after {length.steps} (train.duration={config.train.duration})"
    for key, phase in zip(config.data.mixture, length.phases[1:], strict=True):
        if phase.start >= length.steps:
            yield (
                f"data.mixture.{key}: would begin after {phase.start} steps, {end}; begin it "
                "earlier or leave it out"
            )
    warmup = config.train.seq_len_warmup
    later = length.seq_lens[1:]
    for (seq_len, duration), (start, longer) in zip(warmup.items(), later, strict=True):
        if start >= length.steps:
            yield (
                f"train.seq_len_warmup.{seq_len}={duration}: sequences of {longer} would begin "
                f"after {start} steps, {end}; make it shorter"
            )


def phases(config: RunConfig) -> list[Phase]:
    """Only the phases of the mixture. InputError if one is invalid."""
    tokens = config.train.global_batch * config.train.seq_len
    problems = list[str]()
    mixture = _phases(config, lambda _, text: parse(text, STEPS_OR_TOKENS).steps(tokens), problems)
    if problems:
        raise InputError(problems)
    return mixture


def _phases(
    config: RunConfig, steps: Callable[[str, str], int], problems: list[str]
) -> list[Phase]:
    """The sources' own weights, then each of data.mixture from the first step after its start."""
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
    """Stages of the sequence length; those of the warm-up are rounded up to whole steps."""
    stages = []
    start = 0
    for length, duration in config.train.seq_len_warmup.items():
        tokens = int(length) if length.isdecimal() else 0
        stages.append((start, tokens))
        start += steps(f"train.seq_len_warmup.{length}", duration)
    return [*stages, (start, config.train.seq_len)]
