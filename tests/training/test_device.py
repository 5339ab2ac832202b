"""What a rank asks of its machine before it trains."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_what_a_step_frees_stays_with_the_process_where_a_cpu_trains(device: str, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED.format(device=device)], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 60 * MIB) is kept
