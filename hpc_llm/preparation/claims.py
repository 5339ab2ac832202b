"""Which machine does which job, where several work in one folder."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

_BEAT_S = 5.0
# Without a beat for so long a machine is dead: longer than a file system stalls.
_DEAD_S = 60.0


class Claims:
    """The claims of one machine, which it loses when it gives no sign of life any more.

    A sign of life is the modification time of a file; a claim is a hard link to that file, so it
    appears atomically and its time is that of its owner's last sign. Claims only avoid double work:
    the results do not depend on them.
    """

    def __init__(self, folder: Path, task: int) -> None:
        """task: a number that no other live machine has.

        A task that is restarted takes over the claims of its earlier life.
        """
        self.task = task
        self._folder = folder
        self._life = folder / f".task-{task}"
        self._mine: set[str] = set()  # claims made in this life
        folder.mkdir(parents=True, exist_ok=True)
        self._beat()
        threading.Thread(target=self._beats, daemon=True).start()

    def take(self, name: str) -> bool:
        """Claim the job; whether it is ours from now on."""
        claim = self._folder / name
        try:
            os.link(self._life, claim)
        except FileExistsError:
            if name in self._mine or not self._is_abandoned(claim):
                return False
            self._replace(claim)
        except OSError:
            return False  # the folder is gone: another machine has finished
        self._mine.add(name)
        return True

    def drop(self, name: str) -> None:
        """Give the claim back: the job is done."""
        self._mine.discard(name)
        with suppress(OSError):
            (self._folder / name).unlink()

    def over(self) -> bool:
        """Whether all work is done: its folder is then removed."""
        return not self._folder.exists()

    def _is_abandoned(self, claim: Path) -> bool:
        """Whether it was made by an earlier life of this task, or a machine that is dead.

        Times are compared by the file system's clock, since the clocks of machines differ.
        """
        try:
            ours = self._life.stat()
            owner = claim.stat()
        except OSError:
            return False  # just dropped
        return ours.st_ino == owner.st_ino or ours.st_mtime - owner.st_mtime > _DEAD_S

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
