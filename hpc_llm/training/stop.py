"""Why a loop ends early: a signal, which only sets a flag, or a loss that is not finite."""

from __future__ import annotations

import enum
import os
import select
import signal
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple


class Diverged(Exception):
    """Loss or gradient norm of optimizer step `step` (from 1) is not finite, or the loss jumps."""

    def __init__(self, step: int, loss: float, grad_norm: float, why: str) -> None:
        super().__init__(f"step {step}: {why}")
        self.step = step
        self.loss = loss
        self.grad_norm = grad_norm


class Outcome(enum.Enum):
    """How a loop ended, if it did not fail."""

    FINISHED = "at the end of the plan"
    STOPPED = "asked to; saved"
    HELD = "Slurm is about to kill the job: saved, and to be waited for"


class Flags(NamedTuple):
    """What ranks agree on with every step: what holds for one of them holds for all."""

    stop: bool = False  # save, and end the loop
    hold: bool = False  # and wait for the end of the process after that
    save: bool = False  # save now

    @classmethod
    def raised(cls, num_ranks: Sequence[int]) -> Flags:
        """From how many ranks raised each flag, in the order above."""
        return cls(*(number > 0 for number in num_ranks))


class StopFlag:
    """Set by the first SIGTERM, SIGINT or SIGUSR2; a second SIGINT exits at once.

    hold_on_sigterm: SIGTERM is Slurm's notice of preemption. A process that exits in the grace time
    ends its job for good; only one that waits to be killed is requeued (measured on Slurm 22.05).
    """

    def __init__(self, hold_on_sigterm: bool) -> None:
        self.signal: int | None = None
        self._hold_on_sigterm = hold_on_sigterm
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    @property
    def stop(self) -> bool:
        """Whether to save and end the loop."""
        return self.signal is not None

    @property
    def hold(self) -> bool:
        """Whether to wait for the end of the process after that."""
        return self._hold_on_sigterm and self.signal == signal.SIGTERM

    def wait_while_held(self) -> None:
        """Until another signal says that the job is not to end after all.

        Through a pipe: signal.pause would sleep on over one that comes after the look at `hold`.
        """
        woken, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        while self.hold:
            select.select([woken], [], [])
            os.read(woken, 4096)
