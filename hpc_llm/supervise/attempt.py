"""One attempt of a run: what its ranks run, and what the ledger says of the attempts before it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.recovery.budgets import Budgets, Ended
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Event
from hpc_llm.runs.orders import RankOrders
from hpc_llm.runs.story import Story, fold
from hpc_llm.storage.files import append_line
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.steps import StepSpec


@dataclass(frozen=True)
class RunAttempt:
    """Attempt `number` of a frozen run."""

    layout: RunLayout
    config: RunConfig
    plan: RunPlan
    number: int

    @property
    def fence(self) -> Fence:
        return Fence(self.layout, self.number)

    @property
    def log(self) -> Path:
        return self.layout.supervisor_log(self.number)

    @property
    def budgets(self) -> Budgets:
        return Budgets.of(self.config.run, self.config.recovery, self.plan.steps)

    @property
    def held_gpus(self) -> int:
        """GPUs that the run pays for while the attempt lasts, spare nodes' among them."""
        return self.config.cluster.held_gpus

    def say(self, text: str) -> None:
        """A line of the log for people; without effect where it cannot be written."""
        with contextlib.suppress(OSError):
            append_line(self.log, text)

    def say_now(self, text: str) -> None:
        """The same, with the time before it."""
        self.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def story(self, events: Sequence[Event]) -> Story:
        """What `events` tell this attempt, which later submissions and attempts do not concern."""
        return fold([event for event in events if self._concerns(event)])

    def _concerns(self, event: Event) -> bool:
        after_attempt = event.facts.get("after_attempt", 0)
        attempt = event.facts.get("attempt", 0)
        return after_attempt < self.number and attempt <= self.number

    def history(self, story: Story, newest_checkpoint: int) -> list[Ended]:
        """The attempts of the same submission, up to this one; `story` is this attempt's."""
        return attempts_since_submission(
            story, newest_checkpoint, self.plan.world_size, self.held_gpus
        )

    def micro_batch(self, story: Story) -> int:
        """Sequences per rank and pass: the plan's, or fewer since one had too little GPU memory.

        Only attempts of the same submission count: the plan of a later one may be for larger GPUs,
        and knows what was too much for the same ones.
        """
        sizes = [self.plan.micro_batch]
        for end in story.since_submission().ends:
            if end.micro_batch is not None:
                sizes.append(end.micro_batch)
        return min(sizes)

    def step_spec(self, place: Place, micro_batch: int) -> StepSpec:
        """What the ranks of this attempt run in `place`."""
        cluster = self.config.cluster
        orders = RankOrders(
            attempt=self.number,
            micro_batch=micro_batch,
            rendezvous=f"{self.layout.path}/{self.number}",
            supervisor=os.getpid() if place.parental else None,
            hold=not place.parental,
        )
        python = cluster.python or sys.executable
        return StepSpec(
            command=[*cluster.wrapper, python, "-m", "hpc_llm.train", str(self.layout.path)],
            directory=self.layout.code,
            environment={**cluster.exports, **orders.export()},
            world_size=self.plan.world_size,
            threads_per_rank=self._threads_per_rank(place),
            log=lambda rank: self.layout.rank_log(self.number, rank),
        )

    def _threads_per_rank(self, place: Place) -> int | None:
        cluster = self.config.cluster
        ranks_here = self.plan.world_size // max(1, len(place.hosts))
        return cluster.threads_per_rank or place.cpus_per_rank(ranks_here)
