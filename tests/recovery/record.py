"""Makes the failures of `recorded/` on a real Slurm and keeps their logs: `python
tests/recovery/record.py`, as root.

Needs tools/install_slurm.sh. Each is a run of two nodes that a fault ends (tests/chaos/faults).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "chaos")]

from hpc_llm.runs import ledger  # noqa: E402
from hpc_llm.runs.layout import RunLayout  # noqa: E402
from tests.chaos.local_runs import FAULTS, TINY  # noqa: E402

HERE = Path(__file__).parent / "recorded"
LINES = 60  # kept of each log
WITHIN: dict[str, dict[str, object]] = {
    "killed": {"kind": "kill", "step": 5},
    "bug": {"kind": "raise", "step": 5, "error": "bug"},
    "segmentation-fault": {"kind": "segfault", "step": 5},
    "host-memory": {"kind": "raise", "step": 5, "error": "host-memory"},
    "gpu-memory": {"kind": "raise", "step": 5, "error": "gpu-memory"},
    "disk-full": {"kind": "full", "after": 100},
    "nan": {"kind": "nan", "step": 5},
    "worker-lost": {},
}
ENDLESS = "train.duration=1000000steps"
WORDS = [
    word
    for word in TINY
    if not word.startswith(("local=", "cluster.", "recovery.", "checkpoint.every"))
]
WORDS += [
    "+cluster=local-slurm",
    "cluster.gpus_per_node=1",
    "cluster.nodes=2",
    "recovery.max_crashes=0",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = {**os.environ, "LOCAL_SLURM_DIR": str(folder / "slurm")}
        environment["PYTHONPATH"] = f"{FAULTS}{os.pathsep}{REPOSITORY}"
        tool = str(REPOSITORY / "tools" / "local_slurm")
        subprocess.run(
            [tool, "up", "--nodes", "3", "--slurmd-timeout", "5"], env=environment, check=True
        )
        environment["SLURM_CONF"] = str(folder / "slurm" / "etc" / "slurm.conf")
        try:
            for failure, fault in WITHIN.items():
                keep(failure, fails(failure, fault, folder, tool, environment), folder)
        finally:
            subprocess.run([tool, "down"], env=environment, check=True)


def fails(
    name: str, fault: dict[str, object], folder: Path, tool: str, environment: dict[str, str]
) -> RunLayout:
    """A run that ended by `fault`, or by the loss of its second node."""
    rank = 0 if name in ("disk-full", "nan") else 1
    words = [
        *WORDS,
        f"run.root={folder / 'runs'}",
        f"run.name={name}",
        "checkpoint.every=1000steps",
    ]
    words += [] if fault else [ENDLESS, "cluster.spare_nodes=1", "recovery.max_node_failures=0"]
    faults = json.dumps([{"attempt": 1, "rank": rank, **fault}] if fault else [])
    command = [sys.executable, "-m", "hpc_llm.submit", *words]
    subprocess.run(
        command, env={**environment, "HPC_LLM_FAULTS": faults}, cwd=REPOSITORY, check=True
    )
    run = RunLayout(folder / "runs" / name)
    wait(lambda: said(run, "started"), f"{name} started")
    if not fault:
        wait(lambda: run.metrics.exists() and run.metrics.stat().st_size > 1000, "steps")
        subprocess.run(
            [tool, "kill-node", said(run, "started")[0]["nodes"][1]], env=environment, check=True
        )
    wait(lambda: said(run, "ended"), f"the end of {name}")
    return run


def said(run: RunLayout, event: str) -> list[dict[str, object]]:
    return [found.facts for found in ledger.read(run.ledger) if found.event == event]


def wait(condition: object, what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit(f"not within 180 s: {what}")
        time.sleep(0.2)


def keep(name: str, run: RunLayout, folder: Path) -> None:
    """The first attempt's logs, without what names this machine."""
    kept = RunLayout(HERE / name)
    shutil.rmtree(kept.path, ignore_errors=True)
    kept.attempt(1).mkdir(parents=True)
    for log in (run.supervisor_log(1), run.rank_log(1, 0), run.rank_log(1, 1)):
        lines = log.read_text().splitlines()[-LINES:] if log.exists() else []
        text = (
            "\n".join(lines)
            .replace(str(REPOSITORY), "/home/user/hpc_llm")
            .replace(str(folder), "/scratch/user")
        )
        text = re.sub(r"/\S*/lib/python3", "/usr/lib/python3", text)
        (kept.attempt(1) / log.name).write_text(text + "\n")


if __name__ == "__main__":
    main()
