"""What the ranks' logs say about an attempt's end: the first error, not the aborts after it."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.recovery import node_evidence
from hpc_llm.recovery.causes import Cause
from hpc_llm.storage.files import tail

_TAIL_BYTES = 65536
_LOGGED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) rank (\d+) (\w+) ", re.MULTILINE)
_LAST_LINES = 20
_FATAL = "Fatal Python error: "
_TRACEBACK = "Traceback (most recent call last):"
# torch's allocator has a type of its own for it; the others that ask the driver for memory only
# have a message: a kernel's first launch (torch.AcceleratorError), Triton, NCCL, cuBLAS, cuDNN.
_GPU_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|CUDA (driver )?error: out of "
    r"memory"
    r"|Triton Error \[CUDA\]: out of memory|Cuda failure (\d+ )?'out of memory'"
    r"|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
)
# Messages of the libraries; a rank that raises such an error may have had no chance to choose its
# exit code.
_MESSAGES: dict[Cause, re.Pattern[str]] = {
    Cause.GPU_OUT_OF_MEMORY: _GPU_MEMORY,
    Cause.OUT_OF_MEMORY: re.compile(
        r"DefaultCPUAllocator: can't allocate memory|^MemoryError", re.MULTILINE
    ),
    Cause.STORAGE_FULL: re.compile(r"No space left on device|Disk quota exceeded"),
}


@dataclass(frozen=True)
class Failure:
    """One rank's logged error."""

    time: str  # as logged, sortable
    rank: int
    error: str  # `ValueError: …`
    text: str  # everything logged with it


def failures(log: str) -> list[Failure]:
    """Every ERROR in a rank's log, in order."""
    heads = list(_LOGGED.finditer(log))
    errors = []
    for position, head in enumerate(heads):
        if head[3] != "ERROR":
            continue
        end = len(log)
        if position + 1 < len(heads):
            end = heads[position + 1].start()
        error = _in_a_line(log[head.end() : end])
        errors.append(Failure(head[1], int(head[2]), error, log[head.start() : end].rstrip()))
    return errors


def first(logs: Iterable[str], first_failed: int | None = None) -> Failure | None:
    """The error in all ranks' logs because of which the others failed.

    One that reports a fault of the hardware, then one of the rank that the launcher saw fail first,
    then the earliest: the clocks of two nodes may differ by more than the milliseconds between
    them.
    """
    errors: list[Failure] = []
    for log in logs:
        errors += failures(log)

    def order(failure: Failure) -> tuple[bool, bool, str]:
        faulty = bool(node_evidence.faults_in(failure.text))
        return not faulty, failure.rank != first_failed, failure.time

    return min(errors, key=order, default=None)


def fatal(log: str, rank: int, number: int) -> Failure:
    """The death by signal `number` of a rank with this log; other ranks fail as they lose it.

    Its explanation is an error that it logged, what faulthandler wrote, or its last lines: a
    library that aborts says why first.
    """
    if own := failures(log):
        return own[0]
    death = f"rank {rank} died of {signal.Signals(number).name}"
    before, marker, after = log.rpartition(_FATAL)
    if not marker:
        before = log
    last = "\n".join(before.rstrip().splitlines()[-_LAST_LINES:])
    stacks = (marker + after).partition("\n\nExtension modules:")[0]
    return Failure("", rank, death, "\n".join([death, last, stacks]).strip())


def refine(cause: Cause, failure: Failure | None) -> Cause:
    """A cause that an exit code could not give: that of the first error, for a `crash`."""
    if cause is not Cause.CRASH or failure is None:
        return cause
    if node_evidence.faults_in(failure.text):
        return Cause.NODE_FAILURE
    for better, message in _MESSAGES.items():
        if message.search(failure.text):
            return better
    return cause


def names_gpu_memory(error: Exception) -> bool:
    """Whether the memory of a GPU was too small, by the type or the message of the error."""
    return _GPU_MEMORY.search(f"{type(error).__name__}: {error}") is not None


def tails(paths: Iterable[Path]) -> list[str]:
    """The ends of log files; empty for one that cannot be read."""
    ends = []
    for path in paths:
        with contextlib.suppress(OSError):
            ends.append(tail(path, _TAIL_BYTES))
    return ends


def _in_a_line(text: str) -> str:
    """The exception's line of the first traceback, from which others follow, or the first line."""
    _, traceback, trace = text.partition(_TRACEBACK)
    if not traceback:
        lines = text.strip("\n").splitlines()
        return lines[0].strip() if lines else ""
    for line in trace.strip("\n").splitlines():
        if line and not line.startswith((" ", "\t")):
            return line.strip()
    return ""
