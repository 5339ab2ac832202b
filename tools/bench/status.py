"""How long `status` takes over 1,000 and 10,000 runs, in a table and as JSON.

`python tools/bench/status.py [--runs 1000,10000] [--rounds N]`

The runs are made up as for tools/bench/watchdog.py, each with a plan, a metrics.jsonl of 500 steps
and a checkpoint; squeue and sacct are stand-ins. Rows go to benchmarks/sweeps.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
from sweeps import INTRODUCTION
from watchdog import make_root, stand_ins

TARGETS_S = {1_000: 2.0, 10_000: 15.0}
LIVE = 300
STEPS = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=lambda text: [int(word) for word in text.split(",")], default=list(TARGETS_S)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "sweeps.md")
    arguments = parser.parse_args()
    rows = []
    held = []
    for num_runs in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "runs"
            make_root(root, num_runs, LIVE)
            fill(root)
            environment = stand_ins(Path(folder), root, LIVE)
            for flags in ([], ["--json"]):
                walls = [seconds(root, flags, environment) for _ in range(arguments.rounds)]
                calls = len((Path(folder) / "calls").read_text().split()) // arguments.rounds
                (Path(folder) / "calls").unlink()
                rows.append(
                    [
                        f"{num_runs:,}",
                        " ".join(["status ROOT", *flags]),
                        record.spread(walls, 2),
                        calls,
                    ]
                )
                if num_runs in TARGETS_S:
                    word = "held" if max(walls) <= TARGETS_S[num_runs] else "MISSED"
                    held.append(
                        f"- {num_runs:,} runs in ≤ {TARGETS_S[num_runs]:g} s ({rows[-1][1]}): "
                        f"{word}"
                    )
    body = [*held, "", *record.table(["runs", "command", "seconds", "Slurm calls"], rows)]
    record.append(arguments.out, INTRODUCTION, f"status, {LIVE} of the runs live", body, [])
    print("\n".join(body))


def fill(root: Path) -> None:
    """What training leaves beside the ledger."""
    from hpc_llm.config.building import to_dict
    from hpc_llm.config.compose import compose
    from hpc_llm.planning.plan import make_plan

    config = compose(["+cluster=local-slurm"])
    whole = json.dumps(to_dict(config), indent=2)
    plan = json.dumps(dataclasses.asdict(make_plan(config, None)), indent=2)
    now = time.time()
    steps = "".join(
        json.dumps({
            "step": step, "loss": 2.123456789, "lr": 0.001, "grad_norm": 0.7, "tokens": step * 4096,
            "tokens_per_second": 123456.7, "mfu": 0.41, "time": now - 7000 + step,
        }) + "\n"
        for step in range(1, STEPS + 1)
    )  # fmt: skip
    for path in root.glob("*/*/config.json"):
        path.write_text(whole)
        (path.parent / "plan.json").write_text(plan)
        (path.parent / "metrics.jsonl").write_text(steps)


def seconds(root: Path, flags: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    words = [sys.executable, "-m", "hpc_llm.status", str(root), *flags]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
