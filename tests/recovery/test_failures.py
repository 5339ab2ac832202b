"""The first error among all ranks' logs, and what it says of the cause; of real failures in
test_recorded.py.
"""

from __future__ import annotations

import pytest

from hpc_llm import train
from hpc_llm.recovery import failures
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs.orders import ExitCode

FOLLOWER = """\
2026-11-23 16:00:02,500 rank 0 INFO starting at step 0 of 8
2026-11-23 16:00:09,134 rank 0 ERROR rank 0 failed
Traceback (most recent call last):
  File "hpc_llm/train.py", line 40, in main
    outcome = _train(layout, place, stop)
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:22843
"""  # noqa: E501
LEADER = """\
2026-11-23 16:00:09,120 rank 3 ERROR rank 3 failed
Traceback (most recent call last):
  File "torch/nn/functional.py", line 2206, in embedding
    return torch.embedding(weight, input)
IndexError: index out of range in self

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "hpc_llm/training/loop.py", line 1, in run
    metrics.close()
ValueError: I/O operation on closed file
2026-11-23 16:00:09,150 rank 3 INFO leaving
"""

OUT_OF_GPU_MEMORY = {  # name of the error's type → its words
    "OutOfMemoryError": (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
    ),
    "AcceleratorError": (
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some "
        "other API call, so the stacktrace below might be incorrect.\nFor debugging consider "
        "passing CUDA_LAUNCH_BLOCKING=1"
    ),
    "RuntimeError of Triton": "Triton Error [CUDA]: out of memory",
    "RuntimeError of the driver": "CUDA driver error: out of memory",
    "DistBackendError": (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3699, "
        "unhandled cuda error (run with "
        "NCCL_DEBUG=INFO for details), NCCL version 2.27.3\nncclUnhandledCudaError: Call to CUDA "
        "function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
    "DistBackendError of an older NCCL": "ncclUnhandledCudaError: Call to CUDA function "
    "failed.\nLast error:\n"
    "Cuda failure 'out of memory'",
    "RuntimeError of cuBLAS": (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "RuntimeError of cuDNN": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
}


def crash(words: str) -> failures.Failure:
    return failures.Failure("2026-11-23 16:00:09,120", 0, words, words)


def test_the_earliest_error_counts_and_of_it_the_first_traceback() -> None:
    found = failures.first([FOLLOWER, LEADER])
    assert found is not None
    assert (found.rank, found.error) == (3, "IndexError: index out of range in self")
    assert "leaving" not in found.text


ECC = """\
2026-11-23 16:00:11,120 rank 5 ERROR rank 5 failed
RuntimeError: CUDA error: uncorrectable ECC error encountered
"""


@pytest.mark.parametrize(
    ("logs", "first_failed", "rank"),
    [
        ([FOLLOWER, LEADER, ECC], 0, 5),  # two seconds later, by a clock that is ahead
        ([FOLLOWER, LEADER], 0, 0),  # srun saw it fail first
        ([FOLLOWER, LEADER], 7, 3),  # which logged nothing
        ([FOLLOWER, LEADER], None, 3),
    ],
)
def test_clocks_count_less_than_hardware_and_than_the_launcher(
    logs: list[str], first_failed: int | None, rank: int
) -> None:
    found = failures.first(logs, first_failed)
    assert found is not None
    assert found.rank == rank


def test_logs_without_an_error_tell_nothing() -> None:
    assert (
        failures.first(["2026-11-23 16:00:02,500 rank 0 INFO well\n", "", "Segmentation fault\n"])
        is None
    )


def test_an_error_without_a_traceback_is_its_line() -> None:
    found = failures.first(["2026-11-23 16:00:02,500 rank 2 ERROR no room: 3 bytes\n"])
    assert found is not None
    assert found.error == "no room: 3 bytes"


def test_words_of_the_libraries_name_the_cause() -> None:
    said = {
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
        ): Cause.GPU_OUT_OF_MEMORY,
        "RuntimeError: CUDA error: uncorrectable ECC error encountered": Cause.NODE_FAILURE,
        "OSError: [Errno 28] No space left on device": Cause.STORAGE_FULL,
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate "
            "memory"
        ): (Cause.OUT_OF_MEMORY),
        "ValueError: a bug": Cause.CRASH,
    }
    assert {words: failures.refine(Cause.CRASH, crash(words)) for words in said} == said


@pytest.mark.parametrize("kind", OUT_OF_GPU_MEMORY)
def test_whoever_asked_for_the_gpus_memory_its_lack_is_one_cause(kind: str) -> None:
    name = kind.partition(" ")[0]
    words = OUT_OF_GPU_MEMORY[kind]
    assert failures.refine(Cause.CRASH, crash(f"torch.{name}: {words}")) is Cause.GPU_OUT_OF_MEMORY
    assert train.exit_code(type(name, (RuntimeError,), {})(words)) is ExitCode.GPU_OUT_OF_MEMORY


def test_the_hosts_memory_and_a_bug_are_no_lack_of_the_gpus() -> None:
    assert train.exit_code(MemoryError()) is ExitCode.OUT_OF_MEMORY
    assert (
        train.exit_code(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        is ExitCode.OUT_OF_MEMORY
    )
    assert (
        train.exit_code(RuntimeError("CUDA error: an illegal memory access was encountered"))
        is ExitCode.CRASHED
    )


def test_only_a_crash_is_refined() -> None:
    assert failures.refine(Cause.HANG, crash("CUDA out of memory")) is Cause.HANG
    assert failures.refine(Cause.CRASH, None) is Cause.CRASH


def test_a_rank_that_aborts_says_why_before_and_its_peers_errors_do_not_count() -> None:
    said = (
        "terminate called after throwing an instance of 'c10::Error'\n  CUDA error: "
        "uncorrectable ECC error\n"
    )
    found = failures.fatal(said, 3, 6)
    assert found.error == "rank 3 died of SIGABRT"
    assert failures.refine(Cause.CRASH, found) is Cause.NODE_FAILURE
    assert failures.fatal(LEADER, 3, 6).error == "IndexError: index out of range in self"
