"""Heartbeats of the ranks over time → whether they hang. Pure: the caller passes the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_llm.config.schema import Auto
from hpc_llm.runs.heartbeat import EVERY_S, Beat, Phase

# hang_floor_s=auto: while steps follow one another, and in what waits for files and other ranks.
SHORT_FLOOR_S = 60.0
LONG_FLOOR_S = 300.0
FACTOR = 20.0  # a phase that takes this many times its usual time is not just slow
ASK_S = 20.0  # between two checks whether the job is ending
HOLD_TIMEOUT_S = 60.0  # how long the answer must stay no
_DONE = (Phase.LEAVING, Phase.HOLDING)  # phases that name no step


@dataclass(frozen=True)
class Hang:
    """No rank gave a sign of life for `silent_s`, longer than `limit_s`.

    phase, step: of the last rank that gave one. node: the one that is behind all others, if any.
    """

    phase: Phase
    step: int
    silent_s: float
    limit_s: float
    node: str | None = None


def shortest_floor_s(floor_s: float | Auto) -> float:
    """The shortest silence that may be a hang."""
    return SHORT_FLOOR_S if floor_s == "auto" else floor_s


def _floor_s(beat: Beat, floor_s: float | Auto) -> float:
    if floor_s != "auto":
        return floor_s
    return SHORT_FLOOR_S if beat.phase is Phase.TRAINING else LONG_FLOOR_S


def limit_s(beat: Beat | None, floor_s: float | Auto, start_s: float) -> float:
    """Seconds of silence that are not a hang, in the phase of `beat`.

    start_s: for a phase that has not been timed in this run. Leaving gets only the floor then, if
    no save has shown how slow the file system is.
    """
    if beat is None:
        return max(shortest_floor_s(floor_s), start_s)
    if beat.phase is Phase.HOLDING:
        return math.inf
    floor = _floor_s(beat, floor_s)
    if beat.usual_s == 0 and beat.phase is not Phase.LEAVING:
        return max(floor, start_s)
    return max(floor, FACTOR * beat.usual_s)


def behind(beats: Mapping[str, Beat]) -> str | None:
    """The one node that has done fewer steps than every other; None if that is not certain.

    All die of the same abort, so which is reported dead first says nothing. Heartbeats are written
    once a second: a difference of fewer steps than fit into a second is no lag, and with fast steps
    no node can be blamed.
    """
    if len(beats) < 2 or any(beat.phase in _DONE for beat in beats.values()):
        return None
    (node, last), (_, other) = sorted(beats.items(), key=lambda entry: entry[1].step)[:2]
    step_s = max(beat.step_s for beat in beats.values())
    if step_s > 0 and (other.step - last.step) * step_s > EVERY_S:
        return node
    return None


class HangWatch:
    """One attempt's heartbeats.

    Every rank waits for all others in each step, so one live node clears all. floor_s: a shorter
    silence is never a hang. start_s: the limit until the first steps are done.

    A file system that stands still silences the ranks and holds up the looks at them alike: the
    time without a look is nobody's silence.
    """

    def __init__(self, floor_s: float | Auto, start_s: float, now: float) -> None:
        self._longest_gap_s = shortest_floor_s(floor_s) / 2
        self._looked_at = now
        self._floor_s = floor_s
        self._start_s = start_s
        self._counts: dict[str, int] = {}
        self._newest: Beat | None = None
        self._beats: dict[str, Beat] = {}
        self._alive_at = now

    def look(self, beats: Mapping[str, Beat], now: float) -> Hang | None:
        """The hang, if `beats` (by node) show one at time `now` (seconds, monotonic)."""
        gap = now - self._looked_at
        self._looked_at = now
        if gap > self._longest_gap_s:
            self._alive_at += gap
        for node, beat in beats.items():
            if self._counts.get(node) != beat.count:
                self._beats[node] = beat
                self._counts[node] = beat.count
                self._newest = beat
                self._alive_at = now
        silent = now - self._alive_at
        limit = self._limit_s()
        if silent <= limit:
            return None
        if self._newest is None:
            return Hang(Phase.STARTING, 0, silent, limit)
        return Hang(self._newest.phase, self._newest.step, silent, limit, behind(self._beats))

    def _limit_s(self) -> float:
        """That of the most patient phase that some node is in: all others wait for that node.

        One that loads, compiles, saves or evaluates says so before the others, which have launched
        their step meanwhile, fall silent.
        """
        if self._newest is None or self._newest.phase is Phase.HOLDING:
            return limit_s(self._newest, self._floor_s, self._start_s)
        busy = [beat for beat in self._beats.values() if beat.phase is not Phase.HOLDING]
        return max(limit_s(beat, self._floor_s, self._start_s) for beat in busy)


class HoldTimeout:
    """Ranks have saved and wait for Slurm to end the job, and nothing ends it.

    They got the SIGTERM of a preemption, and a user's `scancel --signal=TERM` looks the same to
    them.
    """

    def __init__(self) -> None:
        self._asked_at = -math.inf
        self._no_since: float | None = None

    def is_due(self, beats: Mapping[str, Beat], now: float) -> bool:
        """Whether to ask Slurm now if the job is ending."""
        if not beats or any(beat.phase is not Phase.HOLDING for beat in beats.values()):
            self._no_since = None
            return False
        if now - self._asked_at < ASK_S:
            return False
        self._asked_at = now
        return True

    def expired(self, is_ending: bool | None, now: float) -> bool:
        """Whether the answer has been no for too long; None (not known) counts neither way."""
        if is_ending is None:
            return False
        if is_ending:
            self._no_since = None
            return False
        if self._no_since is None:
            self._no_since = now
        if now - self._no_since < HOLD_TIMEOUT_S:
            return False
        self._no_since = None
        return True
