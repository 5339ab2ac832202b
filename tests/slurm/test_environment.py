"""Who am I among the ranks, and what is said where the variables tell only half of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm import train
from hpc_llm.config.errors import InputError
from hpc_llm.slurm.environment import RankEnvironment, read

MEETING = {"MASTER_ADDR": "n1", "MASTER_PORT": "20000"}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", **MEETING}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    **MEETING,
}


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN, {**SRUN, **TORCHRUN}])
def test_torchrun_and_srun_say_the_same(variables: dict[str, str]) -> None:
    assert read(variables) == RankEnvironment(3, 1, 4, 2, "n1", 20000)


@pytest.mark.parametrize(
    "variables", [{}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_NTASKS": "4"}]
)
def test_a_single_rank_needs_no_variable(variables: dict[str, str]) -> None:
    assert read(variables).world_size == 1


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"RANK": "0"},
            (
                "WORLD_SIZE, MASTER_ADDR, MASTER_PORT: missing beside RANK; start by torchrun, or "
                "unset RANK "
            ),
        ),
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            "SLURM_LOCALID, MASTER_ADDR, MASTER_PORT: missing, and srun ",
        ),
        (
            {**SRUN, "MASTER_PORT": "any"},
            "MASTER_PORT='any': a whole number is expected, as torchrun or srun sets it",
        ),
        ({**TORCHRUN, "RANK": ""}, "RANK='': a whole number is expected"),
    ],
)
def test_half_of_it_is_a_line(variables: dict[str, str], line: str) -> None:
    with pytest.raises(InputError) as raised:
        read(variables)
    assert str(raised.value).startswith(line)


def test_a_rank_that_does_not_know_its_place_says_so_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "StopFlag", lambda **_: None)  # this process keeps its own handlers
    monkeypatch.setattr(train.faulthandler, "enable", lambda: None)
    monkeypatch.setenv("RANK", "0")
    assert train.main([str(tmp_path)]) == train.ExitCode.CONFIG_ERROR
    assert capsys.readouterr().err.startswith(
        "train: WORLD_SIZE, MASTER_ADDR, MASTER_PORT: missing beside RANK; "
    )
