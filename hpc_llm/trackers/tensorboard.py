"""TensorBoard event files."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from hpc_llm.trackers.hyperparameters import Hyperparameter
from hpc_llm.trackers.protocol import Row

log = logging.getLogger(__name__)
# Scalars of every run, whose newest values the hyperparameter page shows.
_METRICS = ("heldout_loss", "loss", "tokens_per_second")


class TensorboardTracker:
    """Scalars under their own names, every `every` steps; held-out loss always.

    They are only for viewing: what cannot be written is dropped, and a new file is begun after a
    while.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        every: int,
        hyperparameters: Mapping[str, Hyperparameter] | None = None,
        again_s: float = 60.0,
    ) -> None:
        """Begin a file in `folder`; steps after `start_step` of earlier files are hidden.

        hyperparameters: what the page of that name lists and plots; written once, at step 0.
        again_s: from a failure to the next file, since even an empty file takes an inode.
        """
        self._folder = folder
        self._every = every
        self._again_s = again_s
        self._writer: SummaryWriter | None = None
        self._again_at = -math.inf
        with self._left_out():
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)
            if hyperparameters and start_step == 0:
                self._describe(self._writer, hyperparameters)

    def _describe(
        self, writer: SummaryWriter, hyperparameters: Mapping[str, Hyperparameter]
    ) -> None:
        for summary in hparams(dict(hyperparameters), dict.fromkeys(_METRICS, 0.0)):
            # SummaryWriter.add_hparams would make a run of its own.
            writer._get_file_writer().add_summary(summary, 0)

    def log(self, row: Row) -> None:
        step = int(row["step"])
        if not (step % self._every == 0 or step == 1 or "heldout_loss" in row):
            return
        with self._left_out():
            if self._writer is None and time.monotonic() >= self._again_at:
                self._writer = SummaryWriter(str(self._folder))
            if self._writer is None:
                return
            for name, value in row.items():
                if name not in ("step", "time"):
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Wait until the writer's thread has written all rows."""
        with self._left_out():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        with self._left_out():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _left_out(self) -> Iterator[None]:
        """An error within costs rows; one of the writer's thread shows with the next row."""
        try:
            yield
        except OSError as error:
            log.warning(
                "TensorBoard's file cannot be written (%s); what it would show is left out",
                error.strerror,
            )
            self._writer = None
            self._again_at = time.monotonic() + self._again_s
