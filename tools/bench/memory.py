"""What the plan says a rank will take against what it takes; appended to benchmarks/memory.md.

`python tools/bench/memory.py [--models mpt-125m,llama-125m] [--device cuda --batch 8]`

Every case is a fresh process with a few steps of our loop, on one rank; one that cannot run is a
row that says so.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record
from train import words_of
from turns import ArmFailed, Runner

from hpc_llm.planning.memory import CONTEXT_BYTES

GIB = 2**30
TARGET = {"cpu": 0.2, "cuda": 0.1}
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buckets", "overhead")
HEADER = [
    *("model", "precision", "ZeRO", "checkpointing", "most at", *PARTS),
    *(
        "planned GiB",
        "measured GiB",
        "planned ÷ measured",
        "tensors planned",
        "tensors alive",
        "planned ÷ alive",
    ),
]
INTRODUCTION = f"""
# Memory, planned and measured

The plan's bytes per rank ÷ those that a run takes, over a few steps of our loop with one rank.

- On a CPU: by how much the process's peak resident memory grew over that of its imports, to be met within
  {TARGET["cpu"]:.0%}. Ranks there run under tcmalloc where the machine line says so; glibc's heap took
  up to 2.5 times what is alive.
- On a GPU: the peak of torch's allocator, within {TARGET["cuda"]:.0%}; the plan's share for the CUDA context, which
  the allocator does not see, is left out.
- tensors: most bytes of tensors alive at once, by torch's profiler in a second run, as torch's allocator counts them
  on a GPU; the plan's share for a process and its heap is left out.

Parts are those of the moment of a step at which the plan has most: the loss, the begin of backward, its end (gradients)
or the optimizer's step. In sections before 26 Nov 2026 they were added up whenever they live.

With one rank ZeRO saves nothing: what its stages differ in is what DeepSpeed allocates beside.

Written by `tools/bench/memory.py`; sections are only ever added.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", default="mpt-tiny,mpt-125m,llama-125m")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="sequences per step, one pass")
    parser.add_argument(
        "--words", nargs="*", default=[], help="further overrides, such as train.loss_chunk=1024"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "memory.md")
    arguments = parser.parse_args()
    title = f"{arguments.models}, {arguments.device}"
    section = record.Section(arguments.out, INTRODUCTION, title, ["torch", "deepspeed"])
    lists = (arguments.models, arguments.precisions, arguments.stages)
    rows: list[list[str]] = []
    off = []
    off_tensors = []
    for model, precision, stage in itertools.product(*(one.split(",") for one in lists)):
        if (precision, stage) == ("bf16", "0"):
            continue  # DeepSpeed has none
        for checkpointing in ("false", "true"):
            case = [model, precision, stage, "yes" if checkpointing == "true" else "no"]
            try:
                taken = Taken.of(model, precision, stage, checkpointing, arguments)
            except ArmFailed as failure:
                print(failure, flush=True)
                rows.append(
                    [*case, f"not possible: {failure.why}", *["–"] * (len(HEADER) - len(case) - 1)]
                )
            else:
                rows.append([*case, *taken.row()])
                off.append(abs(taken.planned / taken.measured - 1))
                off_tensors.append(abs(taken.tensors / taken.alive - 1))
            print(*rows[-1], flush=True)
            verdict = (
                f"Within {TARGET[arguments.device]:.0%}: {within(TARGET[arguments.device], off)}. "
            )
            verdict += f"Tensors within {TARGET['cuda']:.0%}: {within(TARGET['cuda'], off_tensors)}"
            section.write([
                f"{arguments.batch} sequences of {arguments.seq_len} tokens. {verdict}.",
                "",
                *record.table(HEADER, rows),
            ])  # fmt: skip
    print(verdict)
    if not off:
        sys.exit("no case could be measured")


@dataclass(frozen=True)
class Taken:
    """Bytes of a case, planned and measured."""

    plan: dict[str, Any]  # planning.memory.MemoryEstimate
    planned: int
    measured: int
    tensors: int  # planned
    alive: int  # measured

    @classmethod
    def of(
        cls,
        model: str,
        precision: str,
        stage: str,
        checkpointing: str,
        arguments: argparse.Namespace,
    ) -> Taken:
        """By running it, on a CPU twice: the profiler takes memory of its own. ArmFailed where it
        does not run.
        """
        result = measured(model, precision, stage, checkpointing, arguments)
        planned = result["plan"]["memory_total"] - (
            CONTEXT_BYTES if arguments.device == "cuda" else 0
        )
        taken = alive = result["memory"]["peak"]
        if arguments.device == "cpu":
            alive = measured(model, precision, stage, checkpointing, arguments, alive=True)[
                "memory"
            ]["alive"]
        return cls(result["plan"]["memory"], planned, taken, result["plan"]["tensors"], alive)

    def row(self) -> list[str]:
        return [
            self.plan["moment"],
            *(f"{self.plan[part] / GIB:.2f}" for part in PARTS),
            *(f"{size / GIB:.2f}" for size in (self.planned, self.measured)),
            f"{self.planned / self.measured:.2f}",
            *(f"{size / GIB:.2f}" for size in (self.tensors, self.alive)),
            f"{self.tensors / self.alive:.2f}",
        ]


def within(target: float, off: list[float]) -> str:
    if not off:
        return "0 of 0"
    return f"{sum(one <= target for one in off)} of {len(off)}; worst {max(off):.0%} off"


def measured(
    model: str,
    precision: str,
    stage: str,
    checkpointing: str,
    arguments: argparse.Namespace,
    alive: bool = False,
) -> Any:
    """The result of arms.py."""
    more = [f"train.zero_stage={stage}", f"train.activation_checkpointing={checkpointing}"]
    arguments.turns = 1
    arguments.turn_steps = 1
    arguments.warmup = 3
    arguments.clock = "wall"
    arguments.micro_batch = None
    runner = Runner.start("ours", [*words_of(model, precision, arguments), *more], arguments, alive)
    runner.build()
    runner.read("@turn")
    runner.turn()  # warm-up: all there is has been allocated
    runner.stop()
    return runner.result


if __name__ == "__main__":
    main()
