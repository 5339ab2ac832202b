"""What ended an attempt: the exit codes of its ranks become one word of the ledger."""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping

from hpc_llm.runs.orders import ExitCode


class Cause(str, enum.Enum):
    """Why an attempt ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"  # by Ctrl-C or SIGTERM, in the foreground
    CANCELLED = "cancelled"  # by its user's scancel
    ADMIN_CANCEL = "admin-cancel"  # another user's scancel, as before a maintenance
    TIME_LIMIT = "time-limit"
    STEP_TIME_LIMIT = "step-time-limit"  # of the ranks' step alone: the job goes on
    PREEMPTED = "preempted"
    NODE_FAILURE = "node-failure"  # Slurm lost a node of the job
    LAUNCH_FAILED = (
        "launch-failed"  # Slurm could not start the job, or it ended before an attempt began
    )
    ORPHANED = "orphaned"  # Slurm says RUNNING, but its supervisor is gone
    CRASH = "crash"
    KILLED = "killed"  # SIGKILL from outside: out of memory on the host, or killed by a person
    OUT_OF_MEMORY = "out-of-memory"  # of the host
    GPU_OUT_OF_MEMORY = "gpu-out-of-memory"
    HANG = "hang"  # no rank gave a sign of life; the supervisor ended them
    DIVERGED = "diverged"
    HOURS_SPENT = "hours-spent"  # run.max_gpu_hours; the ranks saved and left
    CHECKPOINT_UNREADABLE = "checkpoint-unreadable"
    STORAGE_FULL = "storage-full"
    CONFIG_ERROR = "config-error"
    FENCED = "fenced"
    LOST = "lost"  # the attempt did not record its end: its node died, or Slurm took the job away
    UNKNOWN = "unknown"  # it ended, and nothing says why

    def __str__(self) -> str:
        return self.value


_BY_CODE = {
    ExitCode.CONFIG_ERROR: Cause.CONFIG_ERROR,
    ExitCode.FENCED: Cause.FENCED,
    ExitCode.CHECKPOINT_UNREADABLE: Cause.CHECKPOINT_UNREADABLE,
    ExitCode.STORAGE_FULL: Cause.STORAGE_FULL,
    ExitCode.DIVERGED: Cause.DIVERGED,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.GPU_OUT_OF_MEMORY: Cause.GPU_OUT_OF_MEMORY,
    -signal.SIGKILL: Cause.KILLED,
}

_FAULTS = tuple(-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))


def classify(exit_codes: Mapping[int, int], first_failed: int | None) -> Cause:
    """The cause of an attempt's end.

    exit_codes: by rank, negative for a signal. first_failed: the rank that failed first; the ranks
    after it were killed or aborted because of it, so their codes say nothing.
    """
    if first_failed is not None:
        return _BY_CODE.get(exit_codes[first_failed], Cause.CRASH)
    if any(exit_codes.values()):
        return Cause.STOPPED
    return Cause.COMPLETED


def origin(failed: Mapping[int, int]) -> int | None:
    """The rank whose failure the others followed; None if none failed.

    failed: exit codes by rank, in the order in which they were noticed, of ranks that left by
    themselves. A rank that has lost a peer leaves a few milliseconds after it (6 to 60 with Gloo on
    one machine), and may be noticed before it; it then leaves with CRASHED or an abort. A rank that
    had a reason of its own therefore goes before these.
    """
    for rank, code in failed.items():
        if code in _BY_CODE or code in _FAULTS:
            return rank
    return next(iter(failed), None)
