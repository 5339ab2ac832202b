"""What a rank asks of its machine before it trains."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED = """
import resource, torch
from hpc_llm.training.device import keep_memory
keep_memory(torch.device({device!r}))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
@pytest.mark.parametrize(("device", "fresh"), [("cpu", False), ("cuda", True)])
def test_what_a_step_frees_is_used_again_on_a_cpu_without_asking_the_kernel(device: str, fresh: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED.format(device=device)], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 1000) is fresh
