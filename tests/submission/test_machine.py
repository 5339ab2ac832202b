"""A run that stays here is planned for what is here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.submission.examine import examine
from hpc_llm.submission.machine import as_here, known
from tests.configs import make_config

MIB = 2**20


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's answer in place of this machine's, as nvidia-smi gives it."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def says(smi: Path, *lines: str, status: int = 0) -> None:
    smi.write_text(
        "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {status}\n"
    )
    smi.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "mib", "key"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80gb"),
        ("NVIDIA H200", 143771, "h200-141gb"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA H100 PCIe", 81559, None),
        ("NVIDIA H100 NVL", 95830, None),
        ("NVIDIA GeForce RTX 4090", 24564, None),
    ],
)
def test_gpus_are_known_by_the_drivers_name_and_memory(
    name: str, mib: int, key: str | None
) -> None:
    assert known(name, mib * MIB) == key


def test_the_smallest_gpu_here_is_what_is_planned_for(smi: Path) -> None:
    says(smi, "NVIDIA H100 80GB HBM3, 81559", "NVIDIA A100-SXM4-40GB, 40960")
    config, memory = as_here(make_config())
    assert (config.cluster.gpu, config.cluster.device, memory) == ("a100-40gb", "auto", 40960 * MIB)


def test_a_plan_for_a_gpu_here_fills_it_and_has_its_peak(smi: Path) -> None:
    says(smi, "NVIDIA H100 80GB HBM3, 81559")
    plan = examine(make_config("model=mpt-125m", "dry_run=true")).plan
    assert plan.peak_tflops == pytest.approx(989.4)
    assert plan.micro_batch > 8  # what is taken where nobody knows the memory
    assert plan.memory.total < 81559 * MIB


def test_one_that_nobody_knows_is_filled_too_and_has_no_peak(smi: Path) -> None:
    says(smi, "NVIDIA GeForce RTX 4090, 24564")
    plan = examine(make_config("model=mpt-125m", "dry_run=true")).plan
    assert plan.peak_tflops is None
    assert 0 < plan.memory.total < 24564 * MIB


@pytest.mark.parametrize("words", [["cluster.device=cpu"], []])
def test_without_a_gpu_or_beside_it_ranks_share_the_hosts_memory(
    smi: Path, words: list[str]
) -> None:
    if words:
        says(smi, "NVIDIA H100 80GB HBM3, 81559")
    else:
        says(smi, "NVIDIA-SMI has failed", status=9)
    config, memory = as_here(make_config(*words, "cluster.gpus_per_node=2"))
    assert config.cluster.device == "cpu" and config.cluster.gpu is None
    assert memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@pytest.mark.parametrize("words", [["cluster=a100x64"], ["cluster.gpu=h100-80gb"]])
def test_what_is_said_of_the_machine_is_left_alone(smi: Path, words: list[str]) -> None:
    says(smi, "NVIDIA A100-SXM4-40GB, 40960")
    config = make_config(*words)
    assert as_here(config) == (config, None)


@pytest.mark.parametrize("words", [["dry_run=true"], ["cluster.gpu=h100-80gb"]])
def test_more_ranks_than_gpus_are_refused_before_the_run_begins(
    smi: Path, words: list[str], tmp_path: Path
) -> None:
    says(smi, "NVIDIA H100 80GB HBM3, 81559", "NVIDIA H100 80GB HBM3, 81559")
    asked = (f"run.root={tmp_path}", *words)
    with pytest.raises(
        InputError,
        match=r"^cluster\.gpus_per_node=3: a rank needs a GPU of its own, .* shows 2 here; ",
    ):
        examine(make_config(*asked, "cluster.gpus_per_node=3"))
    assert examine(make_config(*asked, "cluster.gpus_per_node=2")).plan.world_size == 2
    on_cpu = make_config(f"run.root={tmp_path}", "cluster.gpus_per_node=3", "cluster.device=cpu")
    assert examine(on_cpu).plan.world_size == 3


def test_a_plan_for_gpus_that_are_elsewhere_asks_nobody_here(smi: Path) -> None:
    says(smi, "NVIDIA H100 80GB HBM3, 81559")
    elsewhere = make_config("cluster.gpu=h100-80gb", "cluster.gpus_per_node=8", "dry_run=true")
    assert examine(elsewhere).plan.world_size == 8
