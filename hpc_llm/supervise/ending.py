"""How an attempt ended, by the exit codes, Slurm, the ranks' logs, and what its watch has seen.

Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import failures, node_evidence
from hpc_llm.recovery.causes import Cause, classify
from hpc_llm.recovery.failures import Failure
from hpc_llm.recovery.history import node_of
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.story import Story
from hpc_llm.slurm import srun
from hpc_llm.storage.patience import patiently
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.step_watch import StepWatch
from hpc_llm.supervise.steps import StepEnd

# A rank that ended by one of these may have logged why.
_LOGGED = (Cause.CRASH, Cause.OUT_OF_MEMORY, Cause.GPU_OUT_OF_MEMORY)
_KILLS = tuple(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


@dataclass(frozen=True)
class Ending:
    """What ended an attempt; `node`: the node that the evidence points at, if known."""

    cause: Cause
    end: StepEnd
    failure: Failure | None = None
    node: str | None = None

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        facts = {
            "cause": str(self.cause),
            "exit_codes": {str(rank): code for rank, code in self.end.exit_codes.items()},
            "first_failed": self.end.first_failed,
        }
        if self.failure is not None:
            facts |= {"error": self.failure.error, "error_rank": self.failure.rank}
        if self.node:
            facts["node"] = self.node
        return facts


@dataclass(frozen=True)
class AttemptEnd:
    """The end of attempt `number`, as its supervisor writes it into the ledger.

    checkpoint_step: of the newest checkpoint then, 0 for none. micro_batch: for the attempts to
    come, where this one had too little GPU memory; halved: whether that is less than it had.
    """

    number: int
    ending: Ending
    checkpoint_step: int
    gpu_hours: float
    micro_batch: int | None = None
    halved: bool = False

    @property
    def cause(self) -> Cause:
        return self.ending.cause

    def facts(self) -> dict[str, Any]:
        """For the ledger, without what is decided about it."""
        facts = {
            "attempt": self.number,
            **self.ending.facts(),
            "checkpoint_step": self.checkpoint_step,
            "gpu_hours": self.gpu_hours,
        }
        if self.micro_batch is not None:
            facts |= {"micro_batch": self.micro_batch, "halved": self.halved}
        return facts


def judge(end: StepEnd, watch: StepWatch, place: Place, attempt: RunAttempt) -> Ending:
    """What ended `attempt`, whose step has ended in `place` while `watch` watched it.

    A newer attempt is reason enough, whatever became of ranks that Slurm has given up. A run is
    complete when a checkpoint says so, whatever exit codes its ranks returned.
    """
    if patiently(attempt.fence.tripped):
        return Ending(Cause.FENCED, end)
    if end.lost_nodes:
        return _node_lost(end, place)
    if end.said and not _a_rank_ran(attempt):
        return _not_started(end, watch, place)
    if watch.hang is not None:
        node = watch.hang.node if watch.hang.node in place.hosts else None
        return Ending(Cause.HANG, end, node=node)
    cancelled_for = end.cancelled_for or _logged_cancellation(attempt, end)
    if cancelled_for is not None and not place.parental:
        ending = _cancelled(cancelled_for, end, place)
        if ending is not None:
            return ending
    cause = classify(end.exit_codes, end.first_failed)
    if _killed_on_request(end, watch, place):
        cause = Cause.STOPPED
    if cause is Cause.COMPLETED:
        return _complete(end, place, attempt)
    if cause is Cause.STOPPED:
        return _ending(_who_stopped(end, watch, place), end, None, place, attempt)
    if cause not in _LOGGED:
        return _ending(cause, end, None, place, attempt)
    failure = _failure(attempt, end)
    return _ending(failures.refine(cause, failure), end, failure, place, attempt)


def _ending(
    cause: Cause, end: StepEnd, failure: Failure | None, place: Place, attempt: RunAttempt
) -> Ending:
    """With the node of the rank that failed first."""
    rank = failure.rank if failure else end.first_failed
    return Ending(cause, end, failure, node_of(rank, place.hosts, attempt.plan.world_size))


def _node_lost(end: StepEnd, place: Place) -> Ending:
    """Without spare nodes the allocation is gone, and Slurm says what happened.

    The other nodes' ranks are killed because of it: that says nothing against them.
    """
    if place.outlives_nodes:
        return Ending(Cause.NODE_FAILURE, end, node=end.lost_nodes[0])
    return Ending(Cause.LOST, _nobodys(end))


def _not_started(end: StepEnd, watch: StepWatch, place: Place) -> Ending:
    """The launcher failed before any rank ran: its own words, and no rank's or node's fault."""
    failure = Failure("", 0, end.said, end.said)
    if watch.signals or place.is_ending():
        return Ending(Cause.LOST, _nobodys(end))
    missing = place.missing_hosts()
    if missing and place.outlives_nodes:
        return Ending(Cause.NODE_FAILURE, _nobodys(end), failure, missing[0])
    if missing:
        return Ending(Cause.LOST, _nobodys(end))
    cause = Cause.CONFIG_ERROR if end.for_good else Cause.LAUNCH_FAILED
    return Ending(cause, _nobodys(end), failure)


def _cancelled(why: str, end: StepEnd, place: Place) -> Ending | None:
    """Of a step that Slurm cancelled, for `why`; None where others know better."""
    if why == "TIME LIMIT" and not place.is_ending():
        said = "Slurm ended the step at a time limit of its own, and the job goes on"
        return Ending(Cause.STEP_TIME_LIMIT, _nobodys(end), Failure("", 0, said, said))
    if why.endswith("NODE FAILURE") and not place.outlives_nodes:
        return Ending(Cause.LOST, _nobodys(end))
    return None


def _nobodys(end: StepEnd) -> StepEnd:
    """An end of which no rank was the first."""
    return dataclasses.replace(end, first_failed=None)


def _a_rank_ran(attempt: RunAttempt) -> bool:
    """Whether any rank of the attempt has logged something."""
    logs = attempt.layout.attempt(attempt.number).glob("rank-*.log")
    with contextlib.suppress(OSError):
        return any(log.stat().st_size for log in logs)
    return True


def _logged_cancellation(attempt: RunAttempt, end: StepEnd) -> str | None:
    """Why Slurm cancelled the step, where its daemon wrote that into a rank's log."""
    if not end.exit_codes or not any(end.exit_codes.values()):
        return None
    ranks = {0, end.first_failed or 0}
    logs = [attempt.layout.rank_log(attempt.number, rank) for rank in sorted(ranks)]
    return srun.cancelled_for("".join(failures.tails(logs)))


def _complete(end: StepEnd, place: Place, attempt: RunAttempt) -> Ending:
    """All ranks say that they are done; a crash unless a checkpoint of the last step exists."""
    steps = attempt.plan.steps
    newest = newest_step(attempt.layout.checkpoints)
    if newest >= steps:
        return _ending(Cause.COMPLETED, end, None, place, attempt)
    error = f"the ranks exited with 0, but their newest checkpoint is of step {newest} of {steps}"
    return Ending(Cause.CRASH, end, Failure("", 0, error, error))


def _who_stopped(end: StepEnd, watch: StepWatch, place: Place) -> Cause:
    """Why ranks ended that were asked to, and have saved."""
    if watch.hold_expired or _ended_by_a_person(end, place):
        return Cause.KILLED  # and the job is still ours
    if watch.hours_spent and not watch.signals:
        return Cause.HOURS_SPENT
    if place.parental:
        return Cause.STOPPED
    if signal.SIGUSR2 in watch.signals:
        return Cause.TIME_LIMIT
    # Without a notice to this process, Slurm signalled the ranks: the job is being taken away.
    return Cause.LOST


def _ended_by_a_person(end: StepEnd, place: Place) -> bool:
    """Whether ranks died of a SIGTERM before they listened to it, and no end of the job follows."""
    unheard = end.first_failed is None and -signal.SIGTERM in end.exit_codes.values()
    return unheard and not place.is_ending()


def _killed_on_request(end: StepEnd, watch: StepWatch, place: Place) -> bool:
    """Whether its user, who waits for it, had it stopped, and a signal ended ranks after that.

    A second Ctrl-C kills them, and so do we if they take too long to save.
    """
    if not place.parental or not watch.signals or end.first_failed is None:
        return False
    return end.exit_codes[end.first_failed] in _KILLS


def _failure(attempt: RunAttempt, end: StepEnd) -> Failure | None:
    """What the rank that failed first has logged, or what is known of one that a signal ended.

    A fault of the hardware explains more than either, whichever rank reports it.
    """
    layout = attempt.layout
    first = end.first_failed
    logs = failures.tails(layout.attempt(attempt.number).glob("rank-*.log"))
    failure = failures.first(logs, first)
    if failure is not None and node_evidence.faults_in(failure.text):
        return failure
    if first is not None and end.exit_codes[first] < 0:
        log = "".join(failures.tails([layout.rank_log(attempt.number, first)]))
        return failures.fatal(log, first, -end.exit_codes[first])
    return failure


def report_evidence(
    ending: Ending, story: Story, hosts: Sequence[str], attempt: RunAttempt
) -> None:
    """Record what the end of `attempt` on `hosts` says against nodes.

    A root that cannot be written does not stop the run.
    """
    layout = attempt.layout
    world_size = attempt.plan.world_size
    rank = ending.failure.rank if ending.failure else ending.end.first_failed
    root = RootLayout.of(layout)
    run = root.path_of(layout)
    log = ""
    if rank is not None and ending.node == node_of(rank, hosts, world_size):
        log = "".join(failures.tails([layout.rank_log(attempt.number, rank)]))
    with contextlib.suppress(OSError):
        if ending.node is not None:
            node_evidence.witness(
                root.path, ending.node, ending.cause, log, run=run, attempt=attempt.number
            )
        for slow in story.slow_ranks:
            node = node_of(slow.rank, hosts, world_size)
            if slow.attempt == attempt.number and node is not None:
                said = f"rank {slow.rank}: {slow.factor} times the others' forward pass"
                node_evidence.report(
                    root.path, node, "slow", run=run, attempt=attempt.number, said=said
                )


def bad_nodes(layout: RunLayout, recovery: RecoveryConfig) -> frozenset[str]:
    """Nodes with enough evidence against them from all runs of the root."""
    try:
        return node_evidence.excluded_now(RootLayout.of(layout).path, recovery)
    except OSError:
        return frozenset()
