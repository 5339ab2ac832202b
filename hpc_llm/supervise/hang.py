"""Heartbeats of the ranks over time → whether they hang. Pure: the caller passes the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_llm.runs.heartbeat import EVERY_S, Beat, Phase

FACTOR = 20.0  # a phase that takes this many times its usual time is not just slow
ASK_S = 20.0
IN_VAIN_S = 60.0  # between two checks whether the job is ending; how long the answer must stay no


@dataclass(frozen=True)
class Hang:
    """No rank gave a sign of life for `silent_s`; what the last one to give one was doing, and its
    limit.

    node: the node that is behind all others, if there is one.
    """

    phase: Phase
    step: int
    silent_s: float
    limit_s: float
    node: str | None = None


def limit_s(beat: Beat | None, floor_s: float, start_s: float) -> float:
    """Seconds of silence that are not a hang: `start_s` if the phase has not been timed in this
    run.

    Leaving gets only the floor if no save has shown how slow the file system is.
    """
    if beat is not None and beat.phase is Phase.HOLDING:
        return math.inf
    if beat is None or (beat.usual_s == 0 and beat.phase is not Phase.LEAVING):
        return max(floor_s, start_s)
    return max(floor_s, FACTOR * beat.usual_s)


def behind(beats: Mapping[str, Beat]) -> str | None:
    """The one node that has done fewer steps than every other; None if that is not certain.

    All die of the same abort, so which is reported dead first says nothing. Heartbeats are written
    once a second: a difference of fewer steps than fit into a second is no lag, and with fast steps
    no node can be blamed.
    """
    if len(beats) < 2 or any(
        beat.phase in (Phase.LEAVING, Phase.HOLDING) for beat in beats.values()
    ):
        return None
    (node, last), (_, other) = sorted(beats.items(), key=lambda entry: entry[1].step)[:2]
    step_s = max(beat.step_s for beat in beats.values())
    return node if step_s > 0 and (other.step - last.step) * step_s > EVERY_S else None


class HangWatch:
    """One attempt's heartbeats. Every rank waits for all others in each step, so one live node
    clears all.

    floor_s: a shorter silence is never a hang. start_s: the limit until the first steps are done.
    """

    def __init__(self, floor_s: float, start_s: float, now: float) -> None:
        self._floor_s = floor_s
        self._start_s = start_s
        self._counts: dict[str, int] = {}
        self._newest: Beat | None = None
        self._beats: dict[str, Beat] = {}
        self._alive_at = now

    def look(self, beats: Mapping[str, Beat], now: float) -> Hang | None:
        """The hang, if `beats` (by node) show one at time `now` (seconds, monotonic)."""
        for node, beat in beats.items():
            if self._counts.get(node) != beat.count:
                self._beats[node] = beat
                self._counts[node] = beat.count
                self._newest = beat
                self._alive_at = now
        silent = now - self._alive_at
        limit = limit_s(self._newest, self._floor_s, self._start_s)
        if silent <= limit:
            return None
        newest = self._newest
        phase, step = (newest.phase, newest.step) if newest else (Phase.STARTING, 0)
        return Hang(phase, step, silent, limit, behind(self._beats))


class HoldWatch:
    """Ranks that have saved and wait for Slurm to end the job, although nothing ends it.

    They got the SIGTERM of a preemption, and a user's `scancel --signal=TERM` looks the same to
    them.
    """

    def __init__(self) -> None:
        self._asked_at = -math.inf
        self._no_since: float | None = None

    def due(self, beats: Mapping[str, Beat], now: float) -> bool:
        """Whether to ask Slurm now if the job is ending."""
        if not beats or any(beat.phase is not Phase.HOLDING for beat in beats.values()):
            self._no_since = None
            return False
        if now - self._asked_at < ASK_S:
            return False
        self._asked_at = now
        return True

    def in_vain(self, going: bool | None, now: float) -> bool:
        """Whether they wait in vain, by this answer and earlier ones; None (not known) counts
        neither way.
        """
        if going:
            self._no_since = None
        if going is not False:
            return False
        self._no_since = now if self._no_since is None else self._no_since
        if now - self._no_since < IN_VAIN_S:
            return False
        self._no_since = None
        return True
