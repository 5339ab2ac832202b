"""What the end of an attempt says against nodes."""

from __future__ import annotations

from pathlib import Path

from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.layout import RunLayout
from hpc_llm.supervise.ending import Ending, bad_nodes, bear_witness
from hpc_llm.supervise.steps import StepEnd

RECOVERY = RecoveryConfig(node_exclusion_h=24.0, max_excluded_nodes=8)


def frozen(path: Path, root: Path) -> RunLayout:
    """A run directory as far as its end needs one: its code is the root's."""
    run = RunLayout(path)
    run.make_folders()
    (root / ".code" / "abc").mkdir(parents=True, exist_ok=True)
    run.code.symlink_to(root / ".code" / "abc")
    return run


def test_hangs_of_runs_that_have_one_name_in_two_sweeps_are_two(tmp_path: Path) -> None:
    hang = Ending(Cause.HANG, StepEnd({}, None), None, "n1")
    runs = [frozen(tmp_path / sweep / "trial-0000", tmp_path) for sweep in ("adam", "lion")]
    bear_witness(runs[0], 1, hang, ["n1", "n2"], 2)
    bear_witness(runs[0], 1, hang, ["n1", "n2"], 2)
    assert bad_nodes(runs[0], RECOVERY) == set(), "one hang, told twice"
    bear_witness(runs[1], 1, hang, ["n1", "n2"], 2)
    assert bad_nodes(runs[0], RECOVERY) == {"n1"}
