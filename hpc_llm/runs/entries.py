"""The entries of a story: what an attempt, its end, a save or a submission is, read from events.

Keys that are missing are None, or as if nothing had happened: ledgers of other versions stay
readable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.runs import event_names
from hpc_llm.runs.ledger import Event

WATCHDOG = "watchdog-"  # prefix of the writers' names that watchdogs use
_ATTEMPTS_WRITER = re.compile(r"(?:supervisor|train)-(\d{4,})")


@dataclass(frozen=True)
class Sending:
    """The run was sent on its way, by its user or again. `name`: submitted, requeued, …"""

    time: float
    name: str
    job: str | None
    after_attempt: int | None  # the newest attempt at that time, where it is told
    attempt: int | None  # the attempt that requeued its own job
    cause: str | None  # of the end that it follows, where nothing else tells it
    nodes: tuple[str, ...]  # that may have failed to start the job
    gpu_hours: float  # of a job in which no attempt began

    def follows(self, submitted: Sending) -> bool:
        """Whether it is that submission, or was sent after it.

        By the attempts' numbers and by the job, since clocks differ; else by time.
        """
        mine = self.after_attempt
        theirs = submitted.after_attempt
        if mine is not None and theirs is not None and mine != theirs:
            return mine > theirs
        if self.job is not None and self.job == submitted.job:
            return True
        return self.time >= submitted.time


@dataclass(frozen=True)
class Save:
    """A checkpoint was published. seconds: how long training waited for it.

    trained_s: from the attempt's first step to the save, by a clock that nobody sets; None: the
    ledger does not tell. final: the attempt trained no further.
    """

    time: float
    step: int
    seconds: float
    trained_s: float | None = None
    final: bool = False


@dataclass(frozen=True)
class End:
    """An attempt ended, or the run itself (`name` says which). None: the ledger does not tell."""

    time: float
    name: str
    writer: str
    job: str | None  # that a final word was said of
    attempt: int | None
    after_attempt: int | None  # of a final word: the newest attempt when it was said
    cause: str | None
    checkpoint_step: int | None
    gpu_hours: float | None
    first_failed: int | None  # rank
    node: str | None  # that the evidence points at
    micro_batch: int | None  # of the next attempt, where this one had too little GPU memory
    halved: bool  # whether that is less than before
    restart: bool  # whether the next attempt follows in the same allocation
    action: str | None  # what was decided
    at: float | None  # when Slurm says that it ended, for an end that others noticed later
    why: str

    def follows(self, sent: Sending) -> bool:
        """Whether it ended what was `sent`, or the run only after that.

        By the attempts' numbers, and between two attempts by the job: clocks differ between the
        machines that write. By time alone where a ledger of another version tells neither.
        """
        number = self.attempt if self.name == event_names.ENDED else self.after_attempt
        if number is None or sent.after_attempt is None:
            return self.time >= sent.time
        if number != sent.after_attempt:
            return number > sent.after_attempt
        if self.name == event_names.ENDED:
            return False
        if self.job is None or sent.job is None:
            return self.time >= sent.time
        return self.job == sent.job


@dataclass(frozen=True)
class Attempt:
    """One attempt, with everything that was written about it. Times in seconds since the epoch."""

    number: int
    time: float  # of its start
    start_step: int | None  # of the newest checkpoint at its start
    job: str | None
    job_name: str | None  # as Slurm had it when the attempt began
    restarts: int | None  # of the job, by Slurm
    host: str | None  # of its supervisor
    pid: int | None
    nodes: tuple[str, ...]
    resumed_at: float | None  # when its ranks were ready to train
    saves: tuple[Save, ...]
    ends: tuple[End, ...]  # several where two writers noticed it
    silent_s: float  # how long its ranks had been silent when they were found to hang
    last_sign: float  # the last thing that is known of it, apart from watchdogs' notes
    seen_s: float  # from the first to the last line that it wrote itself

    @property
    def end(self) -> End | None:
        """As it was told last; None for one that goes on, or was lost with its node."""
        return self.ends[-1] if self.ends else None

    def trained_s(self, step: int) -> float:
        """How long it had trained when it saved the newest of its checkpoints up to `step`.

        Ledgers of earlier versions do not tell: there it is the time between what rank 0 wrote.
        """
        saves = [save for save in self.saves if save.step <= step]
        if not saves:
            return 0.0
        if saves[-1].trained_s is not None:
            return saves[-1].trained_s
        began = saves[0].time if self.resumed_at is None else self.resumed_at
        return max(0.0, saves[-1].time - began)

    @property
    def first_end(self) -> End | None:
        """As it was told first."""
        return self.ends[0] if self.ends else None


@dataclass(frozen=True)
class NodeChange:
    """Nodes were excluded from the run's job, or (`excluded` is False) readmitted."""

    time: float
    writer: str
    excluded: bool
    nodes: tuple[str, ...]
    job: str  # if it is not the run's yet
    why: str


@dataclass(frozen=True)
class Rung:
    """A rung of successive halving. `name`: rung (reached), promoted, or halved."""

    time: float
    name: str
    rung: int
    loss: float  # held-out, of a rung that was reached


@dataclass(frozen=True)
class SlowRank:
    """A rank whose forward pass takes `factor` times as long as the others'."""

    attempt: int
    rank: int
    factor: float


def attempt_of(started: Event, own: Sequence[Event]) -> Attempt:
    """The attempt that began with `started`; own: all events that are about it."""
    facts = started.facts
    number = facts["attempt"]
    resumed_at = None
    silent_s = None
    signs = []
    written = []
    for event in own:
        if event.event == event_names.RESUMED:
            resumed_at = event.time if resumed_at is None else min(resumed_at, event.time)
        if event.event == event_names.HANG and silent_s is None:
            silent_s = float(event.facts.get("silent_s", 0.0))
        if not event.writer.startswith(WATCHDOG):
            signs.append(event.time)
        if attempt_of_writer(event.writer) == number:
            written.append(event.time)
    return Attempt(
        number=number,
        time=started.time,
        start_step=facts.get("checkpoint_step"),
        job=_text(facts.get("job")),
        job_name=_text(facts.get("job_name")),
        restarts=facts.get("restarts"),
        host=facts.get("host"),
        pid=facts.get("pid"),
        nodes=tuple(facts.get("nodes") or ()),
        resumed_at=resumed_at,
        saves=tuple(save_of(event) for event in own if event.event == event_names.CHECKPOINTED),
        ends=tuple(end_of(event) for event in own if event.event == event_names.ENDED),
        silent_s=silent_s or 0.0,
        last_sign=max(signs, default=started.time),
        seen_s=max(written) - min(written) if written else 0.0,
    )


def attempt_of_writer(writer: str) -> int | None:
    match = _ATTEMPTS_WRITER.fullmatch(writer)
    return int(match[1]) if match else None


def sending_of(event: Event) -> Sending:
    facts = event.facts
    after = facts.get("after_attempt")
    return Sending(
        time=event.time,
        name=event.event,
        job=_text(facts.get("job")),
        after_attempt=None if after is None else int(after),
        attempt=facts.get("attempt"),
        cause=facts.get("cause"),
        nodes=tuple(facts.get("nodes") or ()),
        gpu_hours=facts.get("gpu_hours", 0.0),
    )


def end_of(event: Event) -> End:
    """The end that `event` tells."""
    facts = event.facts
    return End(
        time=event.time,
        name=event.event,
        writer=event.writer,
        job=_text(facts.get("job")),
        attempt=facts.get("attempt"),
        after_attempt=facts.get("after_attempt"),
        cause=facts.get("cause"),
        checkpoint_step=facts.get("checkpoint_step"),
        gpu_hours=facts.get("gpu_hours"),
        first_failed=facts.get("first_failed"),
        node=facts.get("node"),
        micro_batch=facts.get("micro_batch"),
        halved=bool(facts.get("halved", False)),
        restart=bool(facts.get("restart", False)),
        action=facts.get("action"),
        at=facts.get("at"),
        why=str(facts.get("why", "")),
    )


def save_of(event: Event) -> Save:
    facts = event.facts
    trained_s = facts.get("trained_s")
    return Save(
        time=event.time,
        step=facts.get("step", 0),
        seconds=float(facts.get("seconds", 0.0)),
        trained_s=None if trained_s is None else float(trained_s),
        final=bool(facts.get("final", False)),
    )


def node_change_of(event: Event) -> NodeChange:
    return NodeChange(
        time=event.time,
        writer=event.writer,
        excluded=event.event == event_names.EXCLUDED,
        nodes=tuple(event.facts.get("nodes") or ()),
        job=event.facts.get("job", ""),
        why=event.facts.get("why", ""),
    )


def _text(value: Any) -> str | None:
    """A job's address, as a string in ledgers of all versions."""
    return str(value) if value else None
