"""Where the ranks of a node are, in one small file that the node's first rank overwrites.

Standard library only.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config import building

EVERY_S = 1.0  # between writes while the phase stays the same
# Bytes of the file: it is overwritten in place, since a parallel file system makes a new file a
# second expensive.
_WIDTH = 256
_FEWEST = 4  # steps before their usual time is known, if no earlier attempt has left it


class Phase(str, enum.Enum):
    """What a rank is doing."""

    # Up to the first step: imports, the ranks' first meeting, compilation, loading.
    STARTING = "starting"
    TRAINING = "training"
    LOADING = "loading"  # waiting for data: the next batch is not read yet
    SAVING = "saving"
    EVALUATING = "evaluating"
    HOLDING = "holding"  # saved, and waiting to be killed
    LEAVING = "leaving"


@dataclass(frozen=True)
class Beat:
    """One file's content. Times are 0 while they are not known."""

    attempt: int
    step: int
    phase: Phase
    usual_s: float  # what this phase takes in this run; for training, one step
    # What a step takes, in any phase; this and the times below are for the attempts to come.
    step_s: float
    count: int  # grows with every sign of life
    save_s: float = 0.0  # the longest save so far, of this attempt or an earlier one
    evaluation_s: float = 0.0


class Heart:
    """Writes the file of one node. Training goes on where a beat cannot be written."""

    def __init__(
        self, path: Path, attempt: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._attempt = attempt
        self._clock = clock
        earlier = _beats(path.parent).values()
        self._earlier_s = max((beat.step_s for beat in earlier), default=0.0)
        self._path = path
        self._file = -1
        self._phase = Phase.STARTING
        self._count = 0
        self._written_at = -EVERY_S
        self._entered_at = self._stepped_at = clock()
        self._steps_s: deque[float] = deque(maxlen=64)
        self._longest_s = dict.fromkeys(Phase, 0.0)
        self._longest_s[Phase.SAVING] = max((beat.save_s for beat in earlier), default=0.0)
        self._longest_s[Phase.EVALUATING] = max(
            (beat.evaluation_s for beat in earlier), default=0.0
        )
        self.beat(0, Phase.STARTING)

    def beat(self, step: int, phase: Phase) -> None:
        """A sign of life: `step` optimizer steps are done and `phase` begins or goes on."""
        now = self._clock()
        self._count += 1
        if phase is self._phase is Phase.TRAINING:
            self._steps_s.append(now - self._stepped_at)
        self._stepped_at = now
        if phase is self._phase and now - self._written_at < EVERY_S:
            return
        if phase is not self._phase:
            self._longest_s[self._phase] = max(self._longest_s[self._phase], now - self._entered_at)
            self._phase = phase
            self._entered_at = now
        self._written_at = now
        fields = {
            "attempt": self._attempt,
            "step": step,
            "phase": phase.value,
            "count": self._count,
            "usual_s": round(self._usual_s(), 4),
            "step_s": round(self._step_s(), 4),
            "save_s": round(self._longest_s[Phase.SAVING], 4),
            "evaluation_s": round(self._longest_s[Phase.EVALUATING], 4),
        }
        self._write(json.dumps(fields))

    def _write(self, line: str) -> None:
        try:
            if self._file < 0:  # here, so that a full quota is a matter of the next beat
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            os.pwrite(self._file, line.ljust(_WIDTH - 1).encode() + b"\n", 0)
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Open the file anew at the next beat: a stale descriptor stays stale."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = -1

    def _usual_s(self) -> float:
        if self._phase is Phase.TRAINING:
            return self._step_s()
        if self._phase is Phase.LEAVING:
            # A rank that leaves waits for the same as a save: other ranks, and the file system.
            return self._longest_s[Phase.SAVING]
        return self._longest_s[self._phase]

    def _step_s(self) -> float:
        if len(self._steps_s) < _FEWEST:
            return self._earlier_s
        return statistics.median(self._steps_s)


def read(folder: Path, attempt: int) -> dict[str, Beat]:
    """Beats of `attempt` by node.

    Files that are being written or belong to another attempt are passed over.
    """
    return {node: beat for node, beat in _beats(folder).items() if beat.attempt == attempt}


def _beats(folder: Path) -> dict[str, Beat]:
    beats: dict[str, Beat] = {}
    try:
        paths = list(folder.glob("*.beat"))
    except OSError:  # a network file system
        return beats
    for path in paths:
        try:
            fields = json.loads(path.read_text())
            known = building.known(Beat, fields)
            beats[path.stem] = Beat(**{**known, "phase": Phase(fields["phase"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return beats
