"""`python -m hpc_llm.status RUN_ROOT|RUN_DIR [--json] [--watch] [--logs] [--nodes] [--team]`: where
runs, nodes and the team stand.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from hpc_llm.config import hints, verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.printable import steered

_WATCH_S = 30.0  # each look asks Slurm twice; shared systems ask not to be polled often


def main(argv: list[str] | None = None) -> int:
    """A table of all runs below a root, one run with its story, its log, or JSON."""
    return verbs.run("status", _status, argv, hydra=False)


def _status(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    if given.watch is not None:
        _refuse_unwatched(given)
    if given.team is not None:
        return _team(given.team or None, given.json)
    from hpc_llm.runs import below

    root: Path = given.root
    below.require_root(root)
    try:
        return _of_runs(root, given)
    except PermissionError as error:  # one run of a colleague's, or its log
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _of_runs(root: Path, given: argparse.Namespace) -> int:
    """What was asked for of the runs at or below `root`."""
    if (given.rank is not None and not given.logs) or (given.follow and not given.logs):
        raise InputError("--rank and -f belong to --logs; add it")
    if given.clear_node is not None:
        return _clear(root, given.clear_node)
    if given.tensorboard:
        return _tensorboard(root)
    if given.logs:
        return _logs(root, given.rank, given.follow)
    if given.nodes:
        return _nodes(root, given.json)
    if given.watch is None:
        return _show(root, given.json)
    if given.json or given.watch <= 0:
        raise InputError(
            "--watch: a positive number of seconds is expected, and no --json, which is for scripts"
        )
    return _watch(root, given.watch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=hints.command("status"), description=__doc__)
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path("runs"), metavar="RUN_ROOT|RUN_DIR"
    )
    parser.add_argument(
        "--json", action="store_true", help="a list of runs (with --nodes: of nodes) for scripts"
    )
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=_WATCH_S,
        metavar="SECONDS",
        help="again and again (default 30)",
    )
    parser.add_argument(
        "--logs",
        action="store_true",
        help="the first error and the end of the newest attempt's log",
    )
    parser.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="with --logs: of this rank (default: the one that failed)",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="with --logs: and what is added to it"
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="serve its pages on 127.0.0.1; prints the ssh line",
    )
    parser.add_argument(
        "--nodes", action="store_true", help="nodes with evidence against them, and until when"
    )
    parser.add_argument(
        "--team",
        nargs="?",
        const="",
        metavar="ACCOUNT",
        help="GPUs by user, partitions, fair share (default: yours)",
    )
    parser.add_argument("--clear-node", metavar="NAME", help="forget the evidence against a node")
    return parser


def _refuse_unwatched(given: argparse.Namespace) -> None:
    """InputError where --watch stands beside a flag that shows something once."""
    others = {"--team": given.team is not None, "--clear-node": given.clear_node is not None}
    others |= {"--tensorboard": given.tensorboard, "--logs": given.logs, "--nodes": given.nodes}
    for flag, typed in others.items():
        if typed:
            raise InputError(
                f"--watch: shows runs again and again, and no {flag}; leave out one of the two"
            )


def _show(root: Path, as_json: bool) -> int:
    """Where the runs stand, as a list or in words."""
    from hpc_llm.status import render, standing

    status = standing.status_of(root)
    for warning in status.warnings:
        print(f"status: {warning}", file=sys.stderr)
    if as_json:
        verbs.print_json(status.rows)
    else:
        print("\n".join(render.render_root(root, status)))
    return 0


def _watch(root: Path, every_s: float) -> int:
    """The same until Ctrl-C; where the terminal cannot be cleared, one below the other."""
    can_clear = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    clear = "\x1b[H\x1b[2J" if can_clear else ""
    while True:
        steered(sys.stdout).write(clear)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  every {every_s:g} s, Ctrl-C ends it")
        _show(root, as_json=False)
        sys.stdout.flush()
        time.sleep(every_s)


def _logs(root: Path, rank: int | None, follow: bool) -> int:
    from hpc_llm.runs import below
    from hpc_llm.status import logs

    runs = below.find_runs(root)
    if len(runs) != 1:
        names = ", ".join(str(run.path.relative_to(root)) for run in runs[:8])
        raise InputError(
            f"--logs: {root} holds {len(runs)} runs; give the directory of one: {names}"
        )
    if follow:
        for line in logs.follow(runs[0], rank):
            print(line, flush=True)
    else:
        for line in logs.opening(logs.choose(runs[0], rank)):
            print(line)
    return 0


def _tensorboard(root: Path) -> int:
    """Becomes TensorBoard, until Ctrl-C."""
    import getpass
    import socket

    from hpc_llm.trackers import page

    port = page.free_port()
    print(page.tunnel(port, getpass.getuser(), socket.gethostname()), flush=True)
    argv = page.command(root, port)
    os.execv(argv[0], argv)
    return 0


def _nodes(root: Path, as_json: bool) -> int:
    from hpc_llm.status import node_rows, render

    rows = node_rows.read_node_rows(root)
    if as_json:
        verbs.print_json(rows)
    else:
        print(render.render_nodes(rows))
    return 0


def _team(account: str | None, as_json: bool) -> int:
    from hpc_llm.slurm import team
    from hpc_llm.slurm.client import SlurmError
    from hpc_llm.status import render

    try:
        answer = team.ask(account)
    except SlurmError as error:
        raise InputError(f"--team: {error}") from None
    if as_json:
        verbs.print_json(asdict(answer))
    else:
        print("\n".join(render.render_team(answer)))
    return 0


def _clear(root: Path, node: str) -> int:
    from hpc_llm.recovery import node_evidence

    if node not in {seen.node for seen in node_evidence.read(root)}:
        raise InputError(
            f"--clear-node {node}: nothing is known against it; --nodes lists those that have "
            "evidence"
        )
    node_evidence.clear(root, node)
    return 0


if __name__ == "__main__":
    sys.exit(main())
