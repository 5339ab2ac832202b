"""`python -m hpc_llm.status RUN_ROOT [--json]`: where runs stand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError

_COLUMNS = ("job_id", "name", "state", "cause", "step", "steps", "loss", "checkpoint_step", "restarts")


def main(words: list[str] | None = None) -> int:
    """A table of all runs below a root, or JSON."""
    return verbs.run("status", _status, words, hydra=False)


def _status(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_llm.status", description=__doc__)
    parser.add_argument("root", type=Path, metavar="RUN_ROOT")
    parser.add_argument("--json", action="store_true", help="a list of runs for scripts")
    given = parser.parse_args(words)
    if not given.root.is_dir():
        raise InputError(f"{given.root}: no such folder; give the run.root of your runs, for example ./runs")
    from hpc_llm.recovery import standing

    rows = standing.rows(given.root)
    print(json.dumps(rows, indent=2) if given.json else _table(rows))
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [[column.upper() for column in _COLUMNS], *([_cell(row[column]) for column in _COLUMNS] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
