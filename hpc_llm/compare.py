"""`python -m hpc_llm.compare SWEEP_OR_RUN… [--csv|--json|--markdown]`: what a sweep found."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_llm.config import hints, verbs
from hpc_llm.config.errors import InputError
from hpc_llm.runs.layout import RunLayout, SweepLayout


def main(argv: list[str] | None = None) -> int:
    """Print a line per combination of the swept keys, the winner, and the fit of a ladder."""
    return verbs.run("compare", _compare, argv, hydra=False)


def _compare(argv: list[str]) -> int:
    given = _parsed(argv)
    from hpc_llm.sweeps import report, results

    runs = [results.read(layout) for layout in dict.fromkeys(_layouts(given.paths))]
    whole = report.of(
        runs, baseline=given.baseline, against=given.against or "parameters", next_size=given.next
    )
    if not whole.ladders:
        _refuse_of_a_ladder({"--against": given.against, "--next": given.next})
    if given.json:
        verbs.print_json(report.as_json(whole))
    elif given.csv:
        print(report.as_csv(whole), end="")
    elif given.markdown:
        print(report.as_markdown(whole))
    else:
        print(report.as_text(whole))
    return 0


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=hints.command("compare"), description=__doc__)
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="SWEEP_OR_RUN", help="folders of sweeps, or of runs"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="a line per combination, numbers in full")
    form.add_argument("--json", action="store_true", help="everything, for scripts")
    form.add_argument("--markdown", action="store_true", help="a table for a paper")
    parser.add_argument(
        "--baseline",
        metavar="KEY=VALUE,…",
        help="what p is against (default: the first combination)",
    )
    parser.add_argument(
        "--against", choices=("parameters", "compute"), help="of a ladder (default: parameters)"
    )
    parser.add_argument(
        "--next",
        type=float,
        metavar="SIZE",
        help="predict the loss there (default: one rung further)",
    )
    given = parser.parse_args(argv)
    if given.next is not None and not (math.isfinite(given.next) and given.next > 0):
        raise InputError(
            f"--next {given.next}: a positive number of parameters or FLOPs is expected, such as "
            "1.3e9"
        )
    return given


def _refuse_of_a_ladder(flags: dict[str, object]) -> None:
    """InputError for a flag without effect on runs that are no ladder."""
    for flag, value in flags.items():
        if value is not None:
            raise InputError(
                f"{flag} {value}: is for a ladder, and these runs differ in no size; leave it out"
            )


def _layouts(paths: Sequence[Path]) -> Iterator[RunLayout]:
    for path in paths:
        run = RunLayout(path.resolve())
        below = SweepLayout(path.resolve()).runs()
        if run.config.exists():
            yield run
        elif below:
            yield from below
        else:
            what = "no runs lie in it" if path.is_dir() else "no such folder"
            raise InputError(
                f"{path}: {what}; give the folder of a sweep (<root>/<sweep>) or of a run"
            )


if __name__ == "__main__":
    sys.exit(main())
