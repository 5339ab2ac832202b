"""TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from hpc_llm.trackers.protocol import Row


class TensorboardTracker:
    """Scalars under their own names, every `every` steps; held-out loss always."""

    def __init__(self, folder: Path, start_step: int, every: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
        self._every = every

    def log(self, row: Row) -> None:
        step = int(row["step"])
        if step % self._every == 0 or step == 1 or "heldout_loss" in row:
            for name, value in row.items():
                if name not in ("step", "time"):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
