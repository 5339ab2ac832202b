"""What the plan predicts of a run's speed against what it does; appended to
benchmarks/throughput.md.

`python tools/bench/throughput.py [--steps N] [--words model=… …]`

Two runs for each case, by `submit local=true`, as a user starts them: the first leaves its speed
below the root, the second, with another seed and twice the global batch, is predicted from it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import record

from hpc_llm.runs.experience import steady_tokens_per_second
from hpc_llm.runs.layout import RunLayout

TARGET = 0.15
MICRO_BATCH = 4
CASES = {
    "mpt-tiny, bf16, ZeRO 1": ["model=mpt-tiny", "train.precision=bf16", "train.zero_stage=1"],
    "mpt-tiny, fp32, ZeRO 2": ["model=mpt-tiny", "train.precision=fp32", "train.zero_stage=2"],
    "mpt-tiny, fp32, ZeRO 3, 2 ranks": [
        *("model=mpt-tiny", "train.precision=fp32", "train.zero_stage=3", "cluster.gpus_per_node=2")
    ],
    "llama-tiny, fp32, checkpointing": [
        *("model=llama-tiny", "train.precision=fp32", "train.activation_checkpointing=true")
    ],
}
INTRODUCTION = f"""
# Throughput, predicted and measured

The plan takes a run's speed from the newest run alike below its root: same model, machine, precision, ZeRO stage and
micro-batch, whatever the batch, duration or data. Tokens/s are medians over steps, without saves and evaluations. To be
met within {TARGET:.0%}.

Written by `tools/bench/throughput.py`; sections are only ever added.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--words", nargs="*", help="overrides of one case in place of those for a CPU"
    )
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "throughput.md")
    arguments = parser.parse_args()
    cases = CASES if arguments.words is None else {" ".join(arguments.words): arguments.words}
    section = record.Section(arguments.out, INTRODUCTION, arguments.device, ["torch", "deepspeed"])
    header = ["run", "load", "predicted tokens/s", "measured tokens/s", "predicted ÷ measured"]
    rows: list[list[str]] = []
    off: list[float] = []
    for name, words in cases.items():
        load = os.getloadavg()[0]
        try:
            with tempfile.TemporaryDirectory() as folder:
                predicted, measured = speeds(Path(folder), words, arguments)
        except VerbFailed as failure:
            print(failure, flush=True)
            rows.append([name, f"{load:.2f}", f"not possible: {failure.why}", "–", "–"])
        else:
            off.append(abs(predicted / measured - 1))
            rows.append(
                [
                    name,
                    f"{load:.2f}",
                    f"{predicted:,.0f}",
                    f"{measured:,.0f}",
                    f"{predicted / measured:.3f}",
                ]
            )
        print(*rows[-1], flush=True)
        verdict = f"within {TARGET:.0%}: {sum(one <= TARGET for one in off)} of {len(off)}"
        verdict += f"; worst {max(off):.0%} off" if off else ""
        section.write([f"{arguments.steps} steps. {verdict}.", "", *record.table(header, rows)])
    print(verdict)
    if not off:
        sys.exit("no case could be measured")


class VerbFailed(Exception):
    """A command's words, and what it said."""

    @property
    def why(self) -> str:
        return str(self).strip().splitlines()[-1][:200]


def speeds(root: Path, words: list[str], arguments: argparse.Namespace) -> tuple[float, float]:
    """Tokens/s that the plan gives the second run, and what it then does."""
    common = [
        *words,
        f"run.root={root}",
        f"cluster.device={arguments.device}",
        f"train.micro_batch={MICRO_BATCH}",
    ]
    common += [
        "local=true",
        f"train.duration={arguments.steps}steps",
        "optim.warmup=5steps",
        "trackers=[]",
    ]
    ranks = int(
        next(
            (word.partition("=")[2] for word in words if word.startswith("cluster.gpus_per_node=")),
            "1",
        )
    )
    batch = MICRO_BATCH * ranks
    verb("submit", *common, "run.name=first", f"train.global_batch={batch}")
    second = [*common, f"train.global_batch={2 * batch}", "run.seed=18"]
    predicted = json.loads(verb("plan", *second, "json=true"))["tokens_per_second"]
    verb("submit", *second, "run.name=second")
    measured = steady_tokens_per_second(RunLayout(root / "second"), 0)
    if predicted is None or measured is None:
        raise VerbFailed(f"no speed: predicted {predicted}, measured {measured}")
    return predicted, measured


def verb(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"hpc_llm.{name}", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise VerbFailed(f"{name} {' '.join(words)}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
