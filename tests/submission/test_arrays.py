"""Which runs of a sweep share an array, and the script of one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.planning.plan import make_plan
from hpc_llm.submission.arrays import divide, group_by_shape, share_throttle
from tests.configs import planned
from tests.submission.sweeping import sweep


def test_an_array_has_one_shape_and_at_most_so_many_runs_in_order() -> None:
    configs = sweep("cluster.nodes=1,2", "run.seed=range(0,5)")
    plan = make_plan(configs[0], None)
    found = [
        [(run.config.cluster.nodes, run.config.run.seed) for run in array]
        for array in group_by_shape([planned(config, plan) for config in configs], 3)
    ]
    assert found == [
        [(1, 0), (1, 1), (1, 2)],
        [(1, 3), (1, 4)],
        [(2, 0), (2, 1), (2, 2)],
        [(2, 3), (2, 4)],
    ]


@given(st.none() | st.integers(1, 50), st.integers(1, 20))
def test_the_throttle_is_the_sweeps(throttle: int | None, num_arrays: int) -> None:
    shares = share_throttle(throttle, num_arrays)
    assert len(shares) == num_arrays
    if throttle is None:
        assert set(shares) == {None}
    else:
        assert sum(share or 0 for share in shares) == max(throttle, num_arrays)


def test_a_thousand_runs_fit_one_script_and_its_parts_know_their_runs() -> None:
    configs = sweep("run.root=/scratch/you/runs", "run.name=s", "run.seed=range(0,1000)")
    plan = make_plan(configs[0], None)
    (script,) = divide([planned(config, plan) for config in configs], 1001)
    assert script.array
    assert f"  [999]={script.runs[999].path}\n" in script.text
    assert "#SBATCH --array=0-999\n" in script.text


def test_runs_that_need_different_notice_share_an_array_with_the_longest() -> None:
    configs = sweep("run.root=/r", "run.name=s", "cluster=a100x8", "model=mpt-125m,mpt-30b")
    runs = [planned(config) for config in configs]
    assert [run.plan.signal_lead_s for run in runs] == [300, 4080]
    (script,) = divide(runs, 1001)
    assert "#SBATCH --signal=B:USR2@4080\n" in script.text
