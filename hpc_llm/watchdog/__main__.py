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
from pathlib import Path

from hpc_llm.config import hints, verbs

EVERY_S = 60.0  # shared systems ask not to be polled more often


def main(argv: list[str] | None = None) -> int:
    """0 after a pass with --once, or when stopped; 1 if that pass failed."""
    return verbs.run("watchdog", _watch, argv, hydra=False)


def _watch(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    from hpc_llm.runs import below
    from hpc_llm.watchdog import owners

    below.require_root(given.root)
    owners.require_safe_root(given.root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from hpc_llm.runs import wake
    from hpc_llm.runs.layout import RootLayout
    from hpc_llm.watchdog.pace import Pace

    pace = Pace(given.every, lambda: wake.last_call(RootLayout(given.root)))
    while True:
        failed = False
        try:
            one_pass(given.root)
        # the disk is full or unavailable, perhaps for the runs too, which will then need us
        except OSError as error:
            print(f"watchdog: {error}", file=sys.stderr, flush=True)
            failed = True
        except Exception:  # a bug: shown as one, and no reason to leave all runs alone
            traceback.print_exc()
            failed = True
        if given.once:
            return int(failed)
        pace.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=hints.command("watchdog"), description=__doc__)
    parser.add_argument("root", type=Path, metavar="RUN_ROOT")
    parser.add_argument("--once", action="store_true", help="one pass, then leave")
    parser.add_argument(
        "--every",
        type=float,
        default=EVERY_S,
        metavar="SECONDS",
        help="between passes (default 60); a few follow sooner when Slurm acts on a run",
    )
    return parser


def one_pass(root: Path) -> None:
    """Check all runs and act; prints a line per act."""
    from hpc_llm.slurm.client import SlurmError
    from hpc_llm.submission import backlog_pass, search_pass
    from hpc_llm.watchdog import one_pass

    with one_pass.only_watchdog(root) as alone:
        if not alone:
            return
        for seen in one_pass.make_pass(root):
            decision = seen.decision
            _say(f"{seen.record.layout.name}: {decision.action.value} ({decision.why})")
        for go_on in (backlog_pass.go_on, search_pass.go_on):
            with contextlib.suppress(SlurmError):  # the next pass asks again
                for line in go_on(root):
                    _say(line)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
