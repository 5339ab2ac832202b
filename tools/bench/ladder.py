"""Does the scaling fit of `compare` predict the next size? A ladder of tiny models on the standard
library's text.

`python tools/bench/ladder.py [--widths 32,48,64,96,128] [--next 192] [--steps 400]`

The prediction is written to benchmarks/sweeps.md before the next size is trained, and what came of
it after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
from sweeps import INTRODUCTION

TARGET = 0.02
SEEDS = (17, 18)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--widths",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[32, 48, 64, 96, 128],
    )
    parser.add_argument("--next", type=int, default=192)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--root", type=Path, help="keep the runs here, and go on with those that are there"
    )
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "sweeps.md")
    arguments = parser.parse_args()
    words = [
        *(
            "model.n_heads=2",
            "train.precision=fp32",
            "optim.lr=3e-3",
            "optim.warmup=50steps",
            "local=true",
        ),
        *(
            f"train.duration={arguments.steps}steps",
            "train.eval_batches=32",
            f"run.seed={SEEDS[0]},{SEEDS[1]}",
        ),
    ]
    with tempfile.TemporaryDirectory() as own:
        folder = arguments.root or Path(own)
        words.append(f"run.root={folder}")
        verb(
            "submit",
            "-m",
            *words,
            "run.sweep=ladder",
            f"model.d_model={','.join(map(str, arguments.widths))}",
        )
        fixed = [word for word in words if not word.startswith("run.seed")]
        plan = json.loads(verb("plan", *fixed, f"model.d_model={arguments.next}", "json=true"))
        report = compared(folder / "ladder", plan["parameters"])
        (ladder,) = report["ladders"]
        fit = ladder["fit"]
        predicted = fit["next_loss"]
        say(arguments.out, "a ladder, predicted", [
            (f"Widths {', '.join(map(str, arguments.widths))}, 4 layers, {plan['tokens']:,} "
            "tokens, two seeds, fp32."),
            "",
            *record.table(["width", "runs", "held-out loss"], [
                [row["values"]["model.d_model"], row["complete"], f"{row['heldout_loss']['mean']:.4f}"]
                for row in report["combinations"]
            ]),
            "",
            f"Predicted for width {arguments.next} ({plan['parameters']:,} parameters), before it "
            f"is trained: {predicted['value']:.4f} (95 %: {predicted['low']:.4f} to "
            f"{predicted['high']:.4f}).",
            f"Exponent b = {fit['b']['value']:.3f}, constant c = "
            f"{fit['c']['value'] if fit['c'] else 0:.3f}, largest error at the sizes that were "
            f"fitted {fit['residual']:.2%}.",
        ])  # fmt: skip
        verb("submit", "-m", *words, "run.sweep=next", f"model.d_model={arguments.next}")
        (row,) = compared(folder / "next", None)["combinations"]
        measured = row["heldout_loss"]["mean"]
        error = predicted["value"] / measured - 1
        say(arguments.out, "a ladder, measured", [
            f"Width {arguments.next}: {measured:.4f} over {row['complete']} runs; the prediction "
            f"above is off by {error:+.2%}. Within {TARGET:.0%}: "
            f"{'held' if abs(error) <= TARGET else 'MISSED'}",
        ])  # fmt: skip


def compared(sweep: Path, size: int | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        verb("compare", str(sweep), "--json", *(["--next", str(size)] if size else []))
    )
    return found


def verb(name: str, *words: str) -> str:
    command = [sys.executable, "-m", f"hpc_llm.{name}", *words]
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def say(out: Path, title: str, lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)
    record.append(out, INTRODUCTION, title, lines, ["torch", "deepspeed"])


if __name__ == "__main__":
    main()
