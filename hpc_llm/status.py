"""`python -m hpc_llm.status RUN_ROOT [--json] [--nodes] [--clear-node NAME]`: where runs and nodes stand."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.recovery.accounting import Account

_COLUMNS = ("job_id", "name", "state", "cause", "step", "steps", "loss", "checkpoint_step", "restarts", "ettr")
_NODE_COLUMNS = ("node", "score", "excluded_until", "evidence")


def main(words: list[str] | None = None) -> int:
    """A table of all runs below a root, or JSON."""
    return verbs.run("status", _status, words, hydra=False)


def _status(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpc_llm.status", description=__doc__)
    parser.add_argument("root", type=Path, metavar="RUN_ROOT")
    parser.add_argument("--json", action="store_true", help="a list of runs (with --nodes: of nodes) for scripts")
    parser.add_argument("--nodes", action="store_true", help="nodes with evidence against them, and until when")
    parser.add_argument("--clear-node", metavar="NAME", help="forget the evidence against a node")
    given = parser.parse_args(words)
    if not given.root.is_dir():
        raise InputError(f"{given.root}: no such folder; give the run.root of your runs, for example ./runs")
    if given.clear_node is not None:
        return _clear(given.root, given.clear_node)
    from hpc_llm.recovery import standing

    if given.nodes:
        rows = standing.nodes_of(given.root)
        print(json.dumps(rows, indent=2) if given.json else _table([_node(row) for row in rows], _NODE_COLUMNS))
        return 0
    found = standing.of(given.root)
    for warning in found.warnings:
        print(f"status: {warning}", file=sys.stderr)
    if given.json:
        print(json.dumps(found.rows, indent=2))
        return 0
    print(_table(found.rows, _COLUMNS))
    _print_account(found.account)
    excluded = [_node(row)["node"] for row in standing.nodes_of(given.root) if row["excluded_until"] is not None]
    if excluded:
        print(f"nodes left out: {', '.join(excluded)} (--nodes says why)")
    return 0


def _clear(root: Path, node: str) -> int:
    from hpc_llm.recovery import nodes

    if node not in {seen.node for seen in nodes.read(root)}:
        raise InputError(f"--clear-node {node}: nothing is known against it; --nodes lists those that have evidence")
    nodes.clear(root, node)
    return 0


def _print_account(account: Account) -> None:
    """Where the time of all runs went, by their GPUs."""
    if account.ettr is None or account.ettr_scheduled is None:
        return
    parts = {
        "queue": account.queue_s,
        "start-up": account.start_up_s,
        "saves": account.stall_s,
        "lost steps": account.lost_s,
        "detection": account.detection_s,
    }
    rest = ", ".join(f"{name} {seconds / account.wall_s:.1%}" for name, seconds in parts.items())
    print(f"ETTR {account.ettr:.1%}, without the queue {account.ettr_scheduled:.1%}; of all time: {rest}")


def _node(row: dict[str, Any]) -> dict[str, Any]:
    """A node's row for people."""
    until = row["excluded_until"]
    kinds = [one["kind"] for one in row["evidence"]]
    return {
        **row,
        "excluded_until": None if until is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(until)),
        "evidence": ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)),
    }


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> str:
    lines = [[column.upper() for column in columns], *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
