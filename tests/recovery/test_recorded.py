"""What ended an attempt, by what srun and the ranks really said: logs of failures on a real Slurm.

`recorded/NAME` is the run directory of one as far as it is read here, kept by `record.py` beside
it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.recovery import failures
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.supervise.ending import judge
from hpc_llm.supervise.srun_step import srun_end
from hpc_llm.supervise.steps import StepEnd
from tests.supervise.places import Allocation, planned_attempt, watch_of

RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Seen:
    """What the logs must be understood as; `error`: a part of the first rank's."""

    cause: Cause
    rank: int | None = None
    error: str = ""
    lost_nodes: tuple[str, ...] = ()


FAILURES = {
    "killed": Seen(Cause.KILLED, 1),
    "bug": Seen(Cause.CRASH, 1, "ValueError: a bug of the user's"),
    "segmentation-fault": Seen(Cause.CRASH, 1, "rank 1 died of SIGSEGV"),
    "host-memory": Seen(Cause.OUT_OF_MEMORY, 1, "can't allocate memory"),
    "gpu-memory": Seen(Cause.GPU_OUT_OF_MEMORY, 1, "CUDA out of memory"),
    "disk-full": Seen(Cause.STORAGE_FULL),  # all ranks leave with the same code
    "nan": Seen(Cause.DIVERGED),
    "worker-lost": Seen(Cause.NODE_FAILURE, None, lost_nodes=("n2",)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_real_logs_are_understood(name: str) -> None:
    wanted = FAILURES[name]
    attempt = planned_attempt(RECORDED / name, world_size=2, steps=8)
    end = srun_end(attempt.log.read_text(), 1, 2, ExitCode.STOPPED)
    place = Allocation(["n1", "n2"], outlives_nodes=bool(wanted.lost_nodes))
    found = judge(end, watch_of(attempt, place), place, attempt)
    assert found.cause is wanted.cause
    assert found.end.lost_nodes == wanted.lost_nodes
    if wanted.rank is not None:
        assert found.end.first_failed == wanted.rank
        assert found.node == f"n{wanted.rank + 1}"
    assert wanted.error in (found.failure.error if found.failure else "")


LOST_ITS_ONLY_NODE = (
    "srun: error: Node failure on n3\n"  # and left with 0: Slurm 22.05, a job of one rank
)


def test_a_step_that_lost_its_node_and_left_with_0_has_not_done_its_work() -> None:
    end = srun_end(LOST_ITS_ONLY_NODE, 0, 1, ExitCode.STOPPED)
    assert end == StepEnd({0: 1}, first_failed=0, lost_nodes=("n3",))
    assert srun_end("", 0, 2, ExitCode.STOPPED) == StepEnd({0: 0, 1: 0}, None)


@pytest.mark.parametrize(("steps", "cause"), [(8, Cause.COMPLETED), (9, Cause.CRASH)])
def test_a_run_is_complete_when_a_checkpoint_says_so(
    steps: int, cause: Cause, tmp_path: Path
) -> None:
    attempt = planned_attempt(tmp_path, world_size=2, steps=steps)
    folder = manifest.folder_of(attempt.layout.checkpoints, 8)
    folder.mkdir(parents=True)
    (folder / manifest.NAME).touch()
    place = Allocation(["n1", "n2"], outlives_nodes=True)
    found = judge(StepEnd({0: 0, 1: 0}, None), watch_of(attempt, place), place, attempt)
    assert found.cause is cause
    assert (found.failure is None) is (cause is Cause.COMPLETED)


def test_of_a_segmentation_fault_the_stacks_of_its_own_rank_are_told() -> None:
    """Rank 0 has a traceback too: it lost its peer."""
    layout = RunLayout(RECORDED / "segmentation-fault")
    found = failures.fatal(layout.rank_log(1, 1).read_text(), 1, signal.SIGSEGV)
    assert "Fatal Python error: Segmentation fault" in found.text
    assert "loop.py" in found.text and "Extension modules" not in found.text


def test_every_recorded_failure_is_read_here() -> None:
    assert {path.name for path in RECORDED.iterdir() if path.is_dir()} == set(FAILURES)
