"""`python -m hpc_llm.watchdog RUN_ROOT [--once] [--every SECONDS]`: look after every run below a
root.

In tmux, from cron or scrontab (--once), or as a job of its own (sbatch/watchdog.sbatch).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from hpc_llm.config import verbs

EVERY_S = 60.0  # shared systems ask not to be polled more often


def main(words: list[str] | None = None) -> int:
    """0 after a pass with --once, or when stopped; 1 if that pass failed."""
    return verbs.run("watchdog", _watch, words, hydra=False)


def _watch(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_llm.watchdog", description=__doc__)
    parser.add_argument("root", type=Path, metavar="RUN_ROOT")
    parser.add_argument("--once", action="store_true", help="one pass, then leave")
    parser.add_argument(
        "--every",
        type=float,
        default=EVERY_S,
        metavar="SECONDS",
        help="between passes (default 60); a few follow sooner when Slurm acts on a run",
    )
    given = parser.parse_args(words)
    from hpc_llm.runs import below

    below.require_root(given.root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from hpc_llm.runs import wake
    from hpc_llm.runs.layout import RootLayout

    pace = Pace(given.every, lambda: wake.last_call(RootLayout(given.root)))
    while True:
        failed = False
        try:
            one_pass(given.root)
        # the disk is full or unavailable, perhaps for the runs too, which will then need us
        except OSError as error:
            print(f"watchdog: {error}", file=sys.stderr, flush=True)
            failed = True
        except Exception:  # a bug: told as one, and no reason to leave all runs alone
            traceback.print_exc()
            failed = True
        if given.once:
            return int(failed)
        pace.wait()


def one_pass(root: Path) -> None:
    """Check all runs and act; prints a line per act."""
    from hpc_llm.slurm.client import SlurmError
    from hpc_llm.submission import backlog_pass, search_pass
    from hpc_llm.watchdog import one_pass

    with one_pass.only_watchdog(root) as alone:
        if not alone:
            return
        for run in one_pass.pass_over(root):
            what = f"{run.decision.action.value} ({run.decision.why})"
            _say(f"{run.record.layout.name}: {what}")
        for go_on in (backlog_pass.go_on, search_pass.go_on):
            with contextlib.suppress(SlurmError):  # the next pass asks again
                for line in go_on(root):
                    _say(line)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())


# -- When the watchdog makes its next pass: at its interval, and sooner while Slurm is acting on a
# run.


LOOK_S = 1.0  # between checks whether a run has called
SOON_S = 3.0  # from a call to the first pass: Slurm needs about this long to requeue a job
GROWTH = (
    1.5  # of the gap before each further pass, up to the interval: a few more queries for each call
)


class Pace:
    """Waits between passes. last_call: see runs.attention."""

    def __init__(
        self,
        every_s: float,
        last_call: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._every_s = every_s
        self._gap_s = every_s
        self._last_call = last_call
        self._clock = clock
        self._sleep = sleep
        self._heard = last_call()

    def wait(self) -> None:
        """Until the next pass is due."""
        due = self._clock() + self._gap_s
        self._gap_s = min(self._every_s, GROWTH * self._gap_s)
        while (left := due - self._clock()) > 0:
            if (called := self._last_call()) != self._heard:
                self._heard, self._gap_s = called, min(self._every_s, GROWTH * SOON_S)
                due = min(due, self._clock() + SOON_S)
                continue
            self._sleep(min(LOOK_S, left))
