"""Places and attempts for tests: an allocation whose ranks are local processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from hpc_llm.runs import freeze
from hpc_llm.runs.attempts import Fence
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import SupervisorLedger
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.place import LocalPlace, Place
from hpc_llm.supervise.slurm_place import SlurmPlace
from hpc_llm.supervise.step_watch import StepWatch
from tests.configs import make_config, planned


class Allocation(LocalPlace):
    """Of a Slurm that requeues whoever asks. ending: what it says of the job."""

    parental = False

    def __init__(
        self,
        hosts: Sequence[str] = (),
        outlives_nodes: bool = False,
        ending: bool | None = False,
    ) -> None:
        self._hosts = hosts
        self._ending = ending
        self.outlives_nodes = outlives_nodes

    @property
    def hosts(self) -> Sequence[str]:
        return self._hosts

    def is_ending(self) -> bool | None:
        return self._ending

    def time_is_up(self, signals: Collection[int]) -> bool:
        return SlurmPlace.time_is_up(self, signals)  # type: ignore[arg-type]

    def requeue(self, fence: Fence) -> str:
        return "requeue"


def attempt_of(layout: RunLayout, number: int = 1) -> RunAttempt:
    """Attempt `number` of a frozen run."""
    return RunAttempt(layout, freeze.read_config(layout), freeze.read_plan(layout), number)


def planned_attempt(folder: Path, world_size: int, steps: int, number: int = 1) -> RunAttempt:
    """An attempt of a run that lies in `folder`, with a plan of so many ranks and steps."""
    run = planned(make_config())
    plan = replace(run.plan, world_size=world_size, steps=steps)
    return RunAttempt(RunLayout(folder), run.config, plan, number)


def watch_of(attempt: RunAttempt, place: Place, *signals: int) -> StepWatch:
    """What watches the attempt's step; this process has got `signals`."""
    book = SupervisorLedger(attempt.layout.ledger, "supervisor-0001", lambda seconds: None)
    return StepWatch(attempt, place, book, list(signals))
