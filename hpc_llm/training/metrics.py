"""Numbers of a step, read one step late so that the host never waits for the device."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hpc_llm.model.linear import linear
from hpc_llm.trackers.protocol import Row, Tracker
from hpc_llm.training.divergence import SpikeRule
from hpc_llm.training.slow_ranks import SlowRanks
from hpc_llm.training.stop import Diverged, Flags
from hpc_llm.zero.engine import StepOutput


class Readout:
    """A step's numbers on their way to the host.

    Reading waits only for that step, not for those queued behind it.
    """

    def __init__(self, output: StepOutput) -> None:
        numbers = [output.loss_sum, output.grad_norm, output.counts, output.forward_us]
        device = output.loss_sum.device
        parts = [torch.as_tensor(value, device=device).double().reshape(-1) for value in numbers]
        self._sizes = [len(part) for part in parts]
        self._host = torch.cat(parts)
        self._landed = None
        if device.type == "cuda":
            # Into pinned memory; otherwise the copy would wait for the whole stream.
            arriving = torch.empty(self._host.shape, dtype=self._host.dtype, pin_memory=True)
            self._host = arriving.copy_(self._host, non_blocking=True)
            self._landed = torch.cuda.Event()
            self._landed.record()

    @property
    def on_gpu(self) -> bool:
        return self._landed is not None

    def read(self) -> tuple[float, float, list[int], list[int]]:
        """Sum of the losses, gradient norm, counts and forward times, as in StepOutput.

        Exact up to 2^53.
        """
        if self._landed is not None:
            self._landed.synchronize()
        parts = self._host.split(self._sizes)
        loss_sum, grad_norm, counts, times = [part.tolist() for part in parts]
        return loss_sum[0], grad_norm[0], _integers(counts), _integers(times)


def _integers(numbers: list[float]) -> list[int]:
    return [int(number) for number in numbers]


@dataclass(frozen=True)
class Pending:
    """A step whose numbers may still be on their way. Times in seconds; step counts from 1."""

    step: int
    lr: float
    numbers: Readout
    data_wait_s: float
    checkpoint_wait_s: float
    launched_at: float  # time.perf_counter() when train_step returned


class Metrics:
    """Turns step outputs into rows for the trackers; a step's are known once the next one runs.

    flops_per_token: of a step, counted from 1, whose sequences may be shorter than the run's.
    peak_flops: FLOP/s that all devices together could do, for MFU.
    report_slow: gets a step, a rank, and the ratio of its forward time to the other ranks' usual
    time.
    clock: seconds, with the origin of Pending.launched_at.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        tokens_per_step: int,
        flops_per_token: Callable[[int], float],
        peak_flops: float,
        spikes: SpikeRule,
        report_slow: Callable[[int, int, float], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trackers = trackers
        self._tokens_per_step = tokens_per_step
        self._spikes = spikes
        self._slow_ranks = SlowRanks()
        self._report_slow = report_slow
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._pending: Pending | None = None
        self._clock = clock
        self._last_step_at = clock()

    def push(self, pending: Pending) -> Flags:
        """Take a step just launched; returns the flags of the one before it (see flush)."""
        flags = self.flush()
        self._pending = pending
        return flags

    def flush(self) -> Flags:
        """Read and log the pending step; returns the flags that any rank raised with it.

        Diverged if its loss or gradient norm is not finite, or the loss jumps.
        """
        if self._pending is None:
            return Flags()
        pending = self._pending
        self._pending = None
        loss_sum, grad_norm, (num_targets, *flags), times = pending.numbers.read()
        for rank, factor in self._slow_ranks.look(times).items():
            self._report_slow(pending.step, rank, factor)
        loss = loss_sum / num_targets if num_targets else None
        self.log(self._row(pending, loss, grad_norm, num_targets))
        self._refuse_divergence(pending.step, loss, grad_norm)
        return Flags.raised(flags)

    def _row(self, pending: Pending, loss: float | None, grad_norm: float, num_targets: int) -> Row:
        """loss: None for a step without targets, whose row has none."""
        # Work on a CPU is done when train_step returns; a GPU's is done once its numbers could be
        # read.
        now = self._clock() if pending.numbers.on_gpu else pending.launched_at
        tokens_per_second = self._tokens_per_step / (now - self._last_step_at)
        self._last_step_at = now
        flops_per_second = tokens_per_second * self._flops_per_token(pending.step)
        losses = {} if loss is None else {"loss": loss}
        return {
            "step": pending.step,
            **losses,
            "lr": pending.lr,
            "grad_norm": grad_norm,
            "tokens": pending.step * self._tokens_per_step,
            "masked": round(1 - num_targets / self._tokens_per_step, 6),
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": round(flops_per_second / self._peak_flops, 4),
            "memory_gib": round(peak_memory_bytes(pending.numbers.on_gpu) / 2**30, 3),
            "data_wait_s": round(pending.data_wait_s, 6),
            "checkpoint_wait_s": round(pending.checkpoint_wait_s, 6),
            "time": round(time.time(), 3),
        }

    def _refuse_divergence(self, step: int, loss: float | None, grad_norm: float) -> None:
        if loss is None:
            if not math.isfinite(grad_norm):
                raise Diverged(step, math.nan, grad_norm, f"gradient norm {grad_norm}, no targets")
            return
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(step, loss, grad_norm, f"loss {loss}, gradient norm {grad_norm}")
        excess = self._spikes.excess(loss)
        if excess is not None:
            why = f"loss {loss:.4f} jumps {excess:.4f} above the steps before it"
            raise Diverged(step, loss, grad_norm, why)

    def log(self, row: Row) -> None:
        for tracker in self._trackers:
            tracker.log(row)

    def restart_clock(self) -> None:
        """Leave what happened since the last step (an evaluation, a save) out of the next one."""
        self._last_step_at = self._clock()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def peak_memory_bytes(on_gpu: bool) -> int:
    """This rank's peak: the allocator's on a GPU, else the process's resident set."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product here: the peak for MFU if no data sheet gives one.

    1024³ on a CPU; 8192³ on a GPU, where a small product would only time its launch. Of random
    numbers: with ones, whose bits do not change, an H100 keeps a higher clock (894 against 788
    TFLOP/s).
    """
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(size, size, generator=torch.Generator(device), dtype=dtype, device=device)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        float(linear(matrix, matrix)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
