"""What a rank asks of its machine before it trains."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from hpc_llm.config.errors import InputError
from hpc_llm.training.device import choose_device

MIB = 2**20
FREED = """
import psutil, torch
from hpc_llm.training.device import keep_memory
keep_memory(torch.device({device!r}))
def resident():
    return psutil.Process().memory_info().rss
torch.ones(1)
before = resident()
torch.ones(16 * 2**20)  # 64 MiB
print(resident() - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting"
)
@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_what_a_step_frees_stays_with_the_process_where_a_cpu_trains(
    device: str, kept: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED.format(device=device)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(done.stdout) > 60 * MIB) is kept


@pytest.mark.parametrize(("num_gpus", "local_rank", "index"), [(2, 1, 1), (1, 3, 0), (2, 2, None)])
def test_ranks_do_not_share_gpus(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, local_rank: int, index: int | None
) -> None:
    """A rank that is shown one GPU alone has it for itself."""
    monkeypatch.setenv("DS_ACCELERATOR", "")  # choose_device leaves it behind
    for name, value in {"is_available": True, "device_count": num_gpus, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    if index is not None:
        assert choose_device("cuda", local_rank) == torch.device("cuda", index)
        return
    with pytest.raises(
        InputError, match=r"rank 2 of this node has no GPU of its own, torch sees 2 here"
    ):
        choose_device("cuda", local_rank)
