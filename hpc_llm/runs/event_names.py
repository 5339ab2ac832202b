"""The words of the ledger: what its lines call the things that happen to a run. Pure.

They stand in the files of runs that others read later, so none of them may change.
"""

from __future__ import annotations

# The run goes out, or goes out again.
SUBMITTED = "submitted"  # by its user
WAITING = "waiting"  # frozen, and Slurm has no room for its job yet
RESUBMITTING = "resubmitting"  # written before Slurm is asked, so that a lost answer is looked for
RESUBMITTED = "resubmitted"
REQUEUED = "requeued"
REQUEUED_EXCLUDING = "requeued-excluding"
RELEASED = "released"  # a job that Slurm held
EXPEDITED = "expedited"  # a requeued job need not wait any longer
SUCCESSOR = "successor"  # a job waits for the end of this one

# What an attempt tells.
STARTED = "started"
RESUMED = "resumed"
CHECKPOINTED = "checkpointed"
CHECKPOINT_REJECTED = "checkpoint-rejected"
CHECKPOINT_MISSING = "checkpoint-missing"  # saved once, and not there when the run came back
SAVE_FAILED = "save-failed"
RUNG = "rung"  # held-out loss at a rung of successive halving
SLOW_RANK = "slow-rank"
DIVERGED = "diverged"
NOTICE = "notice"  # of the job's end, or that run.max_gpu_hours is spent
HANG = "hang"
HELD_IN_VAIN = "held-in-vain"  # the ranks waited for an end that did not come
ENDED = "ended"
RESTARTED = "restarted"  # in the same allocation
RESTARTED_WITHOUT = "restarted-without"  # in the same allocation, on its other nodes

# The run itself ends.
COMPLETED = "completed"
CANCELLED = "cancelled"
GIVEN_UP = "given-up"
HALVED = "halved"  # stopped by successive halving
PROMOTED = "promoted"  # passed a rung for good
FREED = "freed"  # the job of a halved run was ended
WITHDRAWN = "withdrawn"  # a queued job had nothing left to do

# What Slurm was told, or refused.
EXCLUDED = "excluded"  # nodes that the run's job does not start on
READMITTED = "readmitted"  # nodes that are excluded no longer
REFUSED = "refused"
