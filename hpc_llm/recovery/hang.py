"""Beats of the ranks over time → whether they hang. Pure: the clock is the caller's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_llm.runs.heartbeat import EVERY_S, Beat, Phase

FACTOR = 20.0  # a phase that takes this many times its usual time is no slow one


@dataclass(frozen=True)
class Hang:
    """No rank gave a sign of life for `silent_s`; what the last one that did was doing, and what it was allowed.

    node: the one that is behind all others, where there is one.
    """

    phase: Phase
    step: int
    silent_s: float
    limit_s: float
    node: str | None = None


def limit_s(beat: Beat | None, floor_s: float, start_s: float) -> float:
    """Seconds of silence that are still well: `start_s` where nothing is known of the phase in this run."""
    if beat is not None and beat.phase is Phase.HOLDING:
        return math.inf
    if beat is None or beat.usual_s == 0:
        return max(floor_s, start_s)
    return max(floor_s, FACTOR * beat.usual_s)


def behind(beats: Mapping[str, Beat]) -> str | None:
    """The one node that has done fewer steps than every other; None where that is not certain.

    All die of the same abort, so who is reported dead first says nothing. A file is written once a second: fewer steps
    than fit into that are no lag, and with fast steps nobody can be blamed.
    """
    if len(beats) < 2 or any(beat.phase in (Phase.LEAVING, Phase.HOLDING) for beat in beats.values()):
        return None
    (node, last), (_, other) = sorted(beats.items(), key=lambda entry: entry[1].step)[:2]
    step_s = max(beat.step_s for beat in beats.values())
    return node if step_s > 0 and (other.step - last.step) * step_s > EVERY_S else None


class HangWatch:
    """One attempt's beats. Every rank waits for all others in each step, so one living node clears all.

    floor_s: no silence below it is a hang. start_s: allowed until the first steps are done.
    """

    def __init__(self, floor_s: float, start_s: float, now: float) -> None:
        self._floor_s, self._start_s = floor_s, start_s
        self._counts: dict[str, int] = {}
        self._newest: Beat | None = None
        self._beats: dict[str, Beat] = {}
        self._alive_at = now

    def look(self, beats: Mapping[str, Beat], now: float) -> Hang | None:
        """The hang, if `beats` (by node) show one at time `now` (seconds, monotonic)."""
        for node, beat in beats.items():
            if self._counts.get(node) != beat.count:
                self._beats[node] = beat
                self._counts[node], self._newest, self._alive_at = beat.count, beat, now
        silent, limit = now - self._alive_at, limit_s(self._newest, self._floor_s, self._start_s)
        if silent <= limit:
            return None
        newest = self._newest
        phase, step = (newest.phase, newest.step) if newest else (Phase.STARTING, 0)
        return Hang(phase, step, silent, limit, behind(self._beats))
