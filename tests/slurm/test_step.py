"""What a step asks of its job, and what is kept from srun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.slurm.step import (
    Grant,
    StepRequest,
    clean_environment,
    cpus_per_rank,
    shown,
    srun_options,
)
from tests.configs import make_config

REQUESTS = """
SLURM_TIMELIMIT SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU
SLURM_NTASKS SLURM_NPROCS SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_MEM_PER_CPU SLURM_GRES
SLURM_MEM_PER_NODE SLURM_DISTRIBUTION SLURM_CPU_BIND SLURM_CPU_BIND_TYPE SLURM_EXPORT_ENV
SRUN_CPUS_PER_TASK SRUN_EXPORT_ENV SLURM_EXACT SLURM_HOSTFILE SLURM_LABELIO SLURM_WAIT
"""
DESCRIPTIONS = """
SLURM_JOB_ID SLURM_CONF SLURM_JOB_NODELIST SLURM_HINT SLURM_MPI_TYPE SLURM_NETWORK SLURM_JWT
SLURM_RESTART_COUNT SLURM_ARRAY_TASK_ID SLURM_GPUS_ON_NODE SLURM_TASK_PROLOG NCCL_DEBUG
"""


def cluster(**changes: object) -> ClusterConfig:
    given = make_config("cluster=local-slurm").cluster
    return replace(given, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("granted", "asked", "cpus"),
    [
        ({"SLURM_CPUS_ON_NODE": "16"}, None, 8),
        ({"SLURM_JOB_CPUS_PER_NODE": "16(x3),6", "SLURM_CPUS_ON_NODE": "16"}, None, 3),
        ({"SLURM_JOB_CPUS_PER_NODE": "7(x2)"}, None, 3),
        ({"SLURM_JOB_CPUS_PER_NODE": "32"}, 4, 4),
        ({"SLURM_JOB_CPUS_PER_NODE": "8"}, 16, 4),  # a header written by hand
        ({}, None, None),
        ({}, 4, 4),
        ({"SLURM_CPUS_ON_NODE": "1"}, None, None),
        ({"SLURM_CPUS_ON_NODE": "many"}, None, None),
        # Slurm may count hyperthreads that the job does not use
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_HINT": "nomultithread"}, None, None),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_THREADS_PER_CORE": "1"}, 4, 4),
    ],
)
def test_ranks_share_the_cpus_that_slurm_granted(
    granted: dict[str, str], asked: int | None, cpus: int | None
) -> None:
    assert cpus_per_rank(cluster(cpus_per_gpu=asked), Grant.of(granted), 2) == cpus


def options_of(given: ClusterConfig, gpus: int | None = 2, cpus: int | None = 1) -> list[str]:
    request = StepRequest(["n1", "n2"], 4, cpus, "/r/rank-%4t.log")
    return srun_options(given, request, Grant(cpus, gpus))


def test_cpus_that_are_not_known_are_not_asked_for() -> None:
    assert "--cpus-per-task=3" in options_of(cluster(threads_per_rank=1), cpus=3)
    assert not [word for word in options_of(cluster(), cpus=None) if "cpus" in word]


@pytest.mark.parametrize(
    ("dialect", "granted", "asked"),
    [
        ("gres", 2, ["--gres=gpu:2"]),
        ("gpus-per-node:h100", 8, ["--gpus-per-node=h100:2"]),
        ("none", 2, []),
        ("gres", None, []),  # a header written by hand, on a machine without GPUs
        ("gpus-per-node", 1, []),
    ],
)
def test_gpus_are_the_plans_where_the_job_has_them(
    dialect: str, granted: int | None, asked: list[str]
) -> None:
    words = options_of(cluster(gpu_request=dialect), gpus=granted)
    assert [word for word in words if "gres" in word or "gpus" in word] == asked


def test_a_site_may_give_the_step_options_of_its_own() -> None:
    given = {"container-image": "/images/a.sqsh", "container-writable": "true", "mpi": "false"}
    assert options_of(cluster(srun=given))[-2:] == [
        "--container-image=/images/a.sqsh",
        "--container-writable",
    ]


def test_all_memory_is_asked_for_unless_the_site_refuses_that() -> None:
    assert "--mem=0" in options_of(cluster())
    without = options_of(cluster(srun={"mem": "false"}))
    assert not [word for word in without if word.startswith("--mem")]


@pytest.mark.parametrize("name", REQUESTS.split())
def test_what_asks_srun_for_something_is_kept_from_it(name: str) -> None:
    assert clean_environment({name: "1", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", DESCRIPTIONS.split())
def test_what_describes_job_and_site_reaches_srun(name: str) -> None:
    assert clean_environment({name: "1"}) == {name: "1"}


def test_the_line_is_shown_as_one_would_type_it() -> None:
    given = cluster(wrapper=["apptainer", "exec", "my image.sif"], srun={"network": "a b"})
    line = shown(given, "/r/one", "python3")
    assert line.startswith("srun --overlap --nodes=2 --ntasks=4 ")
    assert "--nodelist=NODES" in line
    assert line.endswith(
        "'--network=a b' -- apptainer exec 'my image.sif' python3 -m hpc_llm.train /r/one"
    )
