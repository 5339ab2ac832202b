"""The checkpoints of a run as one object: choose, begin, publish, prune, lease.

```
choice = store.choose(known_steps, rank, world_size, gather)   # all ranks, when an attempt begins

folder = store.begin(step)                                     # rank 0, before any rank writes
…                                                              # all ranks write into the folder
store.publish(manifest)                                        # rank 0: now the checkpoint exists
store.prune()                                                  # rank 0: older ones go

with store.lease(step, "export", seconds=600):                 # any process that reads one
    …
```
Before it changes anything, the store asks the fence, which raises once a newer attempt exists.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hpc_llm.checkpoint import choose, leases, manifest, retention
from hpc_llm.checkpoint.choose import Choice, Gather
from hpc_llm.checkpoint.errors import ManifestError
from hpc_llm.checkpoint.leases import Lease
from hpc_llm.checkpoint.manifest import Manifest, folder_of

log = logging.getLogger(__name__)

# Called on rank 0 with the folder and manifest of a checkpoint that now exists, while all ranks
# wait: what takes long (an upload) takes a lease and goes on beside training.
OnPublished = Callable[[Path, Manifest], None]


class CheckpointStore:
    """Checkpoints in `folder`.

    The `keep` newest stay, and every multiple of `permanent_every` steps.
    fence: raises if another process has taken over the run.
    attempt: whose checkpoints they are; what a later one has written is never removed.
    on_published: called in order after each manifest; one that fails is logged, and training goes
    on.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        permanent_every: int | None,
        fence: Callable[[], None],
        attempt: int | None = None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.permanent_every = permanent_every
        self.on_published: list[OnPublished] = []
        self._fence = fence
        self._attempt = attempt

    def choose(
        self,
        known_steps: int,
        rank: int,
        world_size: int,
        gather: Gather,
        beat: Callable[[], None] = lambda: None,
    ) -> Choice:
        """The newest checkpoint that is valid on all ranks; see choose.newest_valid. Collective."""
        return choose.newest_valid(self.folder, known_steps, rank, world_size, gather, beat)

    def begin(self, step: int) -> Path:
        """Make way for checkpoint `step`: what an attempt that died has left there is removed."""
        folder = folder_of(self.folder, step)
        self._remove(folder)
        if self._attempt is not None:
            retention.claim(folder, self._attempt)
        return folder

    def publish(self, described: Manifest) -> None:
        """Make the checkpoint of `described` exist, and tell `on_published`.

        All its files must be written and fsynced. OSError if the manifest cannot be written.
        """
        self._fence()
        folder = folder_of(self.folder, described.step)
        manifest.publish(folder, described)
        for hook in self.on_published:
            try:
                hook(folder, described)
            except Exception:
                log.exception("step %d is saved, but %r failed after it", described.step, hook)

    def discard(self, step: int) -> None:
        """Remove what there is of checkpoint `step`, its manifest first."""
        self._remove(folder_of(self.folder, step))

    def _remove(self, folder: Path) -> None:
        """Remove `folder`, unless a newer attempt has come since this process asked the fence."""
        self._fence()
        if retention.is_newer(folder, self._attempt):
            self._fence()
        else:
            retention.remove(folder)

    def prune(self) -> list[int]:
        """Remove checkpoints that need not stay and that nobody leases; the steps of those."""
        self._fence()
        gone = retention.prune(self.folder, self.keep, self.permanent_every, self._attempt)
        self._fence()  # a newer attempt may be reading one
        retention.clear_reshaped(self.folder)
        return gone

    def lease(self, step: int, holder: str, seconds: float) -> Lease:
        """Keep checkpoint `step` from being pruned for `seconds`, or until the lease is released.

        ManifestError if there is no such checkpoint (any more).
        """
        folder = folder_of(self.folder, step)
        if not folder.is_dir():
            raise ManifestError(f"{folder}: no such checkpoint")
        lease = leases.take(folder, holder, seconds)
        # Only now: pruning removes the manifest before it looks for leases a last time.
        if not (folder / manifest.NAME).exists():
            lease.release()
            raise ManifestError(f"{folder}: no such checkpoint")
        return lease
