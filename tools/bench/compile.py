"""How long a run waits for its first step, eager and compiled, cold and warm; appended to
benchmarks/startup.md.

`python tools/bench/compile.py [--models mpt-tiny,mpt-125m] [--rounds N] [--words …]`

Real runs on this machine, one after the other: eager; compiled below a new root, which has compiled
nothing yet; and compiled again below that root, as an attempt after a failure or the next run of a
sweep finds it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import record

from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.trackers import jsonl

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="mpt-tiny,mpt-125m", help="presets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--words",
        nargs="*",
        default=["cluster.device=cpu", "local=true"],
        help="overrides: the machine, the batch",
    )
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "startup.md")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models.split(","):
        times: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as root:
                for name, compiled in (
                    ("eager", False),
                    ("compiled, cold", True),
                    ("compiled, warm", True),
                ):
                    words = [f"model={model}", *arguments.words, f"train.compile={compiled}"]
                    times.setdefault(name, []).append(first_step_s(Path(root), name, words))
                    print(model, name, times[name][-1], flush=True)
        rows += [[model, name, record.spread(found, 1)] for name, found in times.items()]
    lines = [
        f"Seconds from the start of an attempt until it writes the metrics of its first step, "
        f"median (least–greatest) of {arguments.rounds} rounds.",
        "",
        *record.table(["model", "run", "s"], rows),
    ]
    record.append(arguments.out, "# Start-up", "first step", lines, ["torch", "deepspeed"])


def first_step_s(root: Path, name: str, words: list[str]) -> float:
    """Of a run to its end below `root`."""
    folder = name.replace(", ", "-")
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *words,
        f"run.root={root}",
        f"run.name={folder}",
    ]
    done = subprocess.run(
        [*command, f"train.duration={STEPS}steps"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    run = RunLayout(root / folder)
    (started,) = [event for event in ledger.read(run.ledger) if event.event == "started"]
    first = min(
        (row for row in jsonl.read(run.metrics) if "loss" in row),
        key=lambda row: float(row["step"]),
    )
    return float(first["time"]) - started.time


if __name__ == "__main__":
    main()
