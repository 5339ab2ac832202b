"""TensorBoard event files."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from hpc_llm.config.schema import RunConfig
from hpc_llm.trackers.protocol import Row

log = logging.getLogger(__name__)
_AGAIN_S = 60.0  # from a failure to the next file: even an empty file takes an inode
Treatment = str | float | int | bool
_METRICS = (
    "heldout_loss",
    "loss",
    "tokens_per_second",
)  # scalars of every run, whose newest values the page shows


def treatment_of(config: RunConfig) -> dict[str, Treatment]:
    """The keys by which runs are compared; all hundred keys would hide them."""
    model = config.model
    optim = config.optim
    train = config.train
    found: dict[str, Treatment] = {
        "model": model.name,
        "data": config.data.name,
        "optim": optim.name,
    }
    found |= {
        "model.d_model": model.d_model,
        "model.n_layers": model.n_layers,
        "model.n_heads": model.n_heads,
    }
    found |= {
        "optim.lr": optim.lr,
        "optim.weight_decay": optim.weight_decay,
        "optim.schedule": optim.schedule,
    }
    found |= {"train.global_batch": train.global_batch, "train.seq_len": train.seq_len}
    return found | {"train.duration": train.duration, "run.seed": config.run.seed}


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
        treatment: dict[str, Treatment] | None = None,
    ) -> None:
        """`treatment` is what the hyperparameter page lists and plots; it is written once, at step
        0.
        """
        self._folder = folder
        self._every = every
        self._writer: SummaryWriter | None = None
        self._again_at = -math.inf
        with self._left_out():
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)
            self._describe(start_step, treatment)

    def _describe(self, start_step: int, treatment: dict[str, Treatment] | None) -> None:
        if self._writer is not None and treatment and start_step == 0:
            for summary in hparams(treatment, dict.fromkeys(_METRICS, 0.0)):
                self._writer._get_file_writer().add_summary(
                    summary, 0
                )  # add_hparams would make a run of its own

    def log(self, row: Row) -> None:
        step = int(row["step"])
        if not (step % self._every == 0 or step == 1 or "heldout_loss" in row):
            return
        with self._left_out():
            if self._writer is None and time.monotonic() >= self._again_at:
                self._writer = SummaryWriter(str(self._folder))
            for name, value in row.items():
                if self._writer is not None and name not in ("step", "time"):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._left_out():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _left_out(self) -> Iterator[None]:
        """The writer's thread dies of an error, which shows with the next row."""
        try:
            yield
        except OSError as error:
            log.warning(
                "TensorBoard's file cannot be written (%s); what it would show is left out",
                error.strerror,
            )
            self._writer = None
            self._again_at = time.monotonic() + _AGAIN_S
