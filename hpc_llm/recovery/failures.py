"""What the ranks' logs say about an attempt's end: the first error, not the thousand aborts after
it.
"""

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
# torch's allocator has a type of its own for it; whoever else asks the driver for memory says it in
# words: a kernel's first launch (torch.AcceleratorError), Triton, NCCL, cuBLAS, cuDNN.
_GPU_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY|CUDA (driver )?error: out of "
    r"memory"
    r"|Triton Error \[CUDA\]: out of memory|Cuda failure (\d+ )?'out of memory'"
    r"|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
)
# Messages of the libraries; a rank that raises such an error may have had no chance to choose its
# exit code.
_SAID: dict[Cause, re.Pattern[str]] = {
    Cause.GPU_OUT_OF_MEMORY: _GPU_MEMORY,
    Cause.OUT_OF_MEMORY: re.compile(
        r"DefaultCPUAllocator: can't allocate memory|^MemoryError", re.MULTILINE
    ),
    Cause.STORAGE_FULL: re.compile(r"No space left on device|Disk quota exceeded"),
}


@dataclass(frozen=True)
class Failure:
    """One rank's logged error. time: as logged, sortable; error: `ValueError: …`; text: everything
    logged with it.
    """

    time: str
    rank: int
    error: str
    text: str


def failures(log: str) -> list[Failure]:
    """Every ERROR in a rank's log, in order."""
    heads = list(_LOGGED.finditer(log))
    ends = [*(head.start() for head in heads[1:]), len(log)]
    return [
        Failure(
            head[1],
            int(head[2]),
            _in_a_line(log[head.end() : end]),
            log[head.start() : end].rstrip(),
        )
        for head, end in zip(heads, ends, strict=False)
        if head[3] == "ERROR"
    ]


def first(logs: Iterable[str]) -> Failure | None:
    """The earliest error in all ranks' logs: the other ranks fail because of it, milliseconds
    later.
    """
    return min(
        (failure for log in logs for failure in failures(log)),
        key=lambda failure: failure.time,
        default=None,
    )


def fatal(log: str, rank: int, number: int) -> Failure:
    """The death by signal `number` of a rank with this log; errors of other ranks come from losing
    it as a peer.

    Its explanation is an error that it logged, what faulthandler wrote, or its last lines: a
    library that aborts says why first.
    """
    if own := failures(log):
        return own[0]
    said = f"rank {rank} died of {signal.Signals(number).name}"
    before, found, stacks = log.rpartition(_FATAL)
    words = (found + stacks).partition("\n\nExtension modules:")[0]
    last = "\n".join((before if found else log).rstrip().splitlines()[-_LAST_LINES:])
    return Failure("", rank, said, "\n".join([said, last, words]).strip())


def refine(cause: Cause, failure: Failure | None) -> Cause:
    """A cause that an exit code could not give: that of the first error, for a `crash`."""
    if cause is not Cause.CRASH or failure is None:
        return cause
    if node_evidence.faults_in(failure.text):
        return Cause.NODE_FAILURE
    return next((better for better, words in _SAID.items() if words.search(failure.text)), cause)


def names_gpu_memory(error: Exception) -> bool:
    """Whether the memory of a GPU was too small, by the type or the message of the error."""
    return _GPU_MEMORY.search(f"{type(error).__name__}: {error}") is not None


def tails(paths: Iterable[Path]) -> list[str]:
    """The ends of log files; empty for one that cannot be read."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(tail(path, _TAIL_BYTES))
    return found


def _in_a_line(text: str) -> str:
    """The exception's line of the first traceback (later ones follow from it), or else the first
    line.
    """
    _, found, trace = text.partition(_TRACEBACK)
    lines = (trace if found else text).strip("\n").splitlines()
    if not found:
        return lines[0].strip() if lines else ""
    return next((line.strip() for line in lines if line and not line.startswith((" ", "\t"))), "")
