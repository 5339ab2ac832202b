from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

_BEAT_S = 5.0
# without a beat a machine is dead: many times _BEAT_S, and longer than a file system stalls
_DEAD_S = 60.0


class Claims:
    """Which machine does which job. A machine that no longer gives signs of life loses its claims.

    A sign of life is the modification time of a file; a claim is a hard link to that file, so it
    appears atomically and its time is that of its owner's last sign. `task` is a number that no
    other live machine has: a restarted task takes over the claims of its earlier life.
    """

    def __init__(self, folder: Path, task: int) -> None:
        self.task = task
        self._folder = folder
        self._life = folder / f".task-{task}"
        self._mine: set[str] = set()  # claims made in this life
        folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        threading.Thread(target=self._beats, daemon=True).start()

    def take(self, name: str) -> bool:
        """Claim the job; return whether it is ours from now on."""
        claim = self._folder / name
        try:
            os.link(self._life, claim)
        except FileExistsError:
            if name in self._mine or not self._void(claim):
                return False
            self._replace(claim)
        except OSError:
            return False  # the folder is gone: another machine has finished
        self._mine.add(name)
        return True

    def drop(self, name: str) -> None:
        """The job is done."""
        self._mine.discard(name)
        with suppress(OSError):
            (self._folder / name).unlink()

    def over(self) -> bool:
        """Whether the folder of the work is gone, which happens when everything is done."""
        return not self._folder.exists()

    def _void(self, claim: Path) -> bool:
        """Whether the claim belongs to an earlier life of this task, or to a machine that has
        stopped beating.

        Times are compared by the file system's clock, since the clocks of machines differ.
        """
        try:
            ours = self._life.stat()
            its = claim.stat()
        except OSError:
            return False  # just dropped
        return ours.st_ino == its.st_ino or ours.st_mtime - its.st_mtime > _DEAD_S

    def _replace(self, claim: Path) -> None:
        new = self._folder / f".{claim.name}.{self.task}"
        with suppress(OSError):
            os.link(self._life, new)
            new.replace(claim)
            new.unlink(missing_ok=True)  # a rename between two names of one file does nothing

    def _beats(self) -> None:
        never = threading.Event()
        while not self.over():
            never.wait(_BEAT_S)
            self._beat()

    def _beat(self) -> None:
        with suppress(OSError):
            self._life.touch()
