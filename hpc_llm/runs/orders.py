"""What our processes tell each other: HPC_LLM_* variables on the way in, exit codes on the way out.

The variables. A script may rely on them: srun and `sbatch --export` carry them.

    HPC_LLM_ATTEMPT      supervisor → ranks   number of the attempt. A rank without it takes the
                                              next number, and gives no signs of life
    HPC_LLM_MICRO_BATCH  supervisor → ranks   sequences per rank and pass: the plan's, or fewer
                                              since an attempt ran out of GPU memory
    HPC_LLM_RENDEZVOUS   supervisor → ranks   a name that only this attempt's ranks know, under
                                              which they meet. It ends them where they hang, so
                                              that torch's time limits do not
    HPC_LLM_SUPERVISOR   supervisor → ranks   its process id: ranks on its machine die with it
    HPC_LLM_HOLD         supervisor → ranks   SIGTERM is Slurm's notice that the job ends: save,
                                              and wait for that
    HPC_LLM_PARENT       submit → supervisor  process id of the `submit` with which it ends
    HPC_LLM_AFTER        job → its successor  address of the job whose end it waited for

The errors, the exit codes of ranks that end with them, and the ledger's words for the attempt:

    Exception
    ├── InputError                    2 CONFIG_ERROR           config-error
    ├── Fenced                       81 FENCED                 fenced
    ├── NoValidCheckpoint            82 CHECKPOINT_UNREADABLE  checkpoint-unreadable
    ├── SaveFailed, with no room     83 STORAGE_FULL           storage-full
    ├── SaveFailed                    1 CRASHED                crash
    ├── Diverged                     84 DIVERGED               diverged
    ├── MemoryError                  85 OUT_OF_MEMORY          out-of-memory
    ├── torch.OutOfMemoryError       86 GPU_OUT_OF_MEMORY      gpu-out-of-memory
    ├── any other                     1 CRASHED                crash, or what the ranks' logs say
    ├── ManifestError                never ends a rank: an older checkpoint is chosen
    │   └── OtherFormat              another version wrote it: becomes NoValidCheckpoint
    ├── NoRoom                       never ends a rank: `prepare` says where, and exits with 1
    ├── SlurmError                   only where Slurm is asked, never in a rank
    │   ├── SlurmUnavailable         the answer is unknown: a verb exits with 1, others ask again
    │   │   └── MaybeQueued          sbatch did not answer: the job may be in the queue
    │   │       └── QueuedNotRecorded   it is, and the ledger does not know of it
    │   └── SlurmRefused             a verb makes an InputError of it
    │       └── LimitReached         what has no room waits in the backlog
    ├── Busy                         a lock is taken: waited for, or an InputError
    ├── FinishedElsewhere            another process has prepared the data: used as it is
    └── Rejected                     one document is left out, and counted

A verb exits with 2 for an InputError. A rank that was asked to stop has saved and leaves with 80
STOPPED: `stopped`, or the reason for which its supervisor or Slurm asked (supervise.ending). The
code of the rank that failed first becomes the word (recovery.causes). Standard library only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

PARENT = "HPC_LLM_PARENT"
AFTER = "HPC_LLM_AFTER"
_ATTEMPT = "HPC_LLM_ATTEMPT"
_MICRO_BATCH = "HPC_LLM_MICRO_BATCH"
_RENDEZVOUS = "HPC_LLM_RENDEZVOUS"
_SUPERVISOR = "HPC_LLM_SUPERVISOR"
_HOLD = "HPC_LLM_HOLD"


class ExitCode(enum.IntEnum):
    """What a rank leaves with. Values from 80 up are ours: shells and Slurm use none of them."""

    COMPLETED = 0
    CRASHED = 1
    CONFIG_ERROR = 2
    STOPPED = 80  # asked to (Ctrl-C, SIGTERM, time limit); saved
    FENCED = 81  # a newer attempt exists
    CHECKPOINT_UNREADABLE = 82  # the ledger knows of checkpoints and none is valid
    STORAGE_FULL = 83  # no room for the last save
    DIVERGED = 84  # loss or gradient is not finite
    OUT_OF_MEMORY = 85  # of the host
    GPU_OUT_OF_MEMORY = 86


@dataclass(frozen=True)
class RankOrders:
    """What a supervisor tells the ranks of one attempt. Ranks that torchrun starts have no orders.

    attempt, micro_batch, rendezvous: see above. supervisor: its process id, for ranks that are its
    children. hold: whether to wait for the end of the job after SIGTERM.
    """

    attempt: int | None = None
    micro_batch: int | None = None
    rendezvous: str | None = None
    supervisor: int | None = None
    hold: bool = False

    def export(self) -> dict[str, str]:
        """As variables for the environment of a rank."""
        values = {
            _ATTEMPT: self.attempt,
            _MICRO_BATCH: self.micro_batch,
            _RENDEZVOUS: self.rendezvous,
            _SUPERVISOR: self.supervisor,
        }
        environment = {name: str(value) for name, value in values.items() if value is not None}
        if self.hold:
            environment[_HOLD] = "1"
        return environment


def read(environment: Mapping[str, str]) -> RankOrders:
    """The orders in `environment`. ValueError where a number is none."""
    return RankOrders(
        attempt=_number(environment, _ATTEMPT),
        micro_batch=_number(environment, _MICRO_BATCH),
        rendezvous=environment.get(_RENDEZVOUS),
        supervisor=_number(environment, _SUPERVISOR),
        hold=_HOLD in environment,
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    if name not in environment:
        return None
    return int(environment[name])
