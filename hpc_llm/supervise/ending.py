"""How an attempt ended, from the exit codes, what Slurm said, and the ranks' logs. Standard library
only.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery import failures, node_evidence
from hpc_llm.recovery.causes import Cause, classify
from hpc_llm.recovery.failures import Failure
from hpc_llm.recovery.history import node_of
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.story import read_story
from hpc_llm.supervise.hang import Hang
from hpc_llm.supervise.steps import StepEnd

_SPOKEN = (
    Cause.CRASH,
    Cause.OUT_OF_MEMORY,
    Cause.GPU_OUT_OF_MEMORY,
)  # a rank that died of these could still log why


@dataclass(frozen=True)
class Ending:
    """What ended an attempt; `node`: the node that the evidence points at, if known."""

    cause: Cause
    end: StepEnd
    failure: Failure | None
    node: str | None

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "cause": str(self.cause),
            "exit_codes": {str(rank): code for rank, code in self.end.exit_codes.items()},
            "first_failed": self.end.first_failed,
            **(
                {"error": self.failure.error, "error_rank": self.failure.rank}
                if self.failure
                else {}
            ),
            **({"node": self.node} if self.node else {}),
        }


def judge(
    layout: RunLayout, attempt: int, end: StepEnd, *, hang: Hang | None, let_go: bool, in_slurm: bool,
    outlives_nodes: bool, signals: Collection[int], hours_spent: bool, hosts: Sequence[str], world_size: int,
    steps: int,
) -> Ending:  # fmt: skip
    """The ending of an attempt whose step has ended. `signals`: those that the supervisor has
    received.

    let_go: whether the ranks exited because of a notice that the job ends, and it does not.
    hours_spent: whether the supervisor asked the ranks to stop because run.max_gpu_hours was spent.
    outlives_nodes: whether the allocation survives the loss of a node; if not, Slurm says what
    happened. steps: the length of the run. It is complete when a checkpoint says so, whatever exit
    codes its ranks returned.
    """
    if end.lost_nodes and outlives_nodes:
        return Ending(Cause.NODE_FAILURE, end, None, end.lost_nodes[0])
    cause = Cause.HANG if hang else classify(end.exit_codes, end.first_failed)
    failure = None
    if cause is Cause.COMPLETED and (done := newest_step(layout.checkpoints)) < steps:
        said = f"the ranks exited with 0, but their newest checkpoint is of step {done} of {steps}"
        return Ending(Cause.CRASH, end, Failure("", 0, said, said), None)
    if cause in _SPOKEN:
        failure = _failure(layout, attempt, end)
        cause = failures.refine(cause, failure)
    if cause is Cause.STOPPED and let_go:
        cause = Cause.KILLED  # by a person, and the job is still ours
    elif cause is Cause.STOPPED and hours_spent and not signals:
        cause = Cause.HOURS_SPENT
    elif cause is Cause.STOPPED and in_slurm:
        # Without a notice to this process, Slurm signalled the ranks: the job is being taken away.
        cause = Cause.TIME_LIMIT if signal.SIGUSR2 in signals else Cause.LOST
    if hang is not None:
        return Ending(cause, end, None, hang.node if hang.node in hosts else None)
    rank = failure.rank if failure else end.first_failed
    return Ending(cause, end, failure, node_of(rank, hosts, world_size))


def _failure(layout: RunLayout, attempt: int, end: StepEnd) -> Failure | None:
    """What the rank that failed first logged about it, or what is known about one that a signal
    ended.
    """
    first = end.first_failed
    if first is not None and end.exit_codes[first] < 0:
        log = "".join(failures.tails([layout.rank_log(attempt, first)]))
        return failures.fatal(log, first, -end.exit_codes[first])
    return failures.first(failures.tails(layout.attempt(attempt).glob("rank-*.log")))


def bear_witness(
    layout: RunLayout, attempt: int, ending: Ending, hosts: Sequence[str], world_size: int
) -> None:
    """Record an attempt's evidence against nodes; a root that cannot be written does not stop the
    run.
    """
    rank = ending.end.first_failed
    root = RootLayout.of(layout)
    run = root.path_of(layout)
    log = "".join(failures.tails([layout.rank_log(attempt, rank)])) if rank is not None else ""
    with contextlib.suppress(OSError):
        if ending.node is not None:
            said = log if ending.node == node_of(rank, hosts, world_size) else ""
            node_evidence.witness(
                root.path, ending.node, ending.cause, said, run=run, attempt=attempt
            )
        for slow in read_story(layout.ledger).slow_ranks:
            if slow.attempt == attempt:
                said = f"rank {slow.rank}: {slow.factor} times the others' forward pass"
                if node := node_of(slow.rank, hosts, world_size):
                    node_evidence.report(
                        root.path, node, "slow", run=run, attempt=attempt, said=said
                    )


def bad_nodes(layout: RunLayout, recovery: RecoveryConfig) -> frozenset[str]:
    """Nodes with enough evidence against them from all runs of the root."""
    try:
        evidence = node_evidence.read(RootLayout.of(layout).path)
    except OSError:
        return frozenset()
    return node_evidence.excluded(
        node_evidence.node_scores(evidence, time.time(), *node_evidence.limits(recovery))
    )
