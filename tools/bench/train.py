"""Our loop ÷ a bare PyTorch loop, with DeepSpeed's own share apart; appended to
benchmarks/training.md.

`python tools/bench/train.py [--quick] [--rounds N] [--device cuda --models mpt-125m,mpt-350m
--seq-len 2048]`

In a round every arm (see arms.py) is a fresh process. They take turns of a few steps each, so that
whatever else the machine does meets all of them; a turn in which other processes took more than
`--max-others` of the cores is taken again, and counted. "transformers, Trainer" wants `pip install
accelerate`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median

import record
from turns import ARMS, Round, in_turns, one_at_a_time

# "small" is the shape that the published CPU figures of other trainers were measured with.
SHAPES = {
    "small": ["model=mpt-tiny", "model.name=small", "model.vocab_size=8192", "train.seq_len=512"],
}
BATCH = {"small": 8, "mpt-tiny": 16}  # sequences per step; 8 for all others
RATIOS = [("ours", "bare"), ("deepspeed", "bare"), ("ours", "deepspeed")]
FUSED = [(f"{above}, FusedAdam", below) for above, below in RATIOS[:2]] + [
    ("ours, FusedAdam", "deepspeed, FusedAdam")
]
TARGET = 1.03
OURS_MORE = 1.3  # times the tokens/s of the best that transformers' model does
OURS = [name for name in ARMS if not name.startswith("transformers") and "compiled" not in name]
KEPT = "memory kept"  # ends the names of arms
QUIET = 0.1  # share of the cores that others may take before a figure decides nothing
INTRODUCTION = f"""
# Training steps

What a step of our loop costs beyond a bare PyTorch loop with the same model, weights, batches and optimizer, and how
much of that is DeepSpeed's own. The aim: ours ÷ bare ≤ {TARGET}. `tools/bench/arms.py` says what each arm does.

- A round starts one process per arm; they take turns of a few steps. A step's time runs from the beginning of a step
  to that of the next (on a GPU between events); the first step of a turn is left out. A round's figure is the median
  over the steps of its turns; ratios are taken within a round; shown are the median over rounds (least–greatest).
- `--alone`, for models that fill a GPU: in a round one arm after the other, each a process of its own, so that a drift
  of the machine does not meet all alike. In the sections of 26 Nov 2026 all rounds were turns of one process per arm:
  their spread is that of one process.
- On a CPU our ranks keep what a step frees, and so do bare and deepspeed, loops around our model: under tcmalloc where
  the machine line says so (training/allocator.py), else by glibc. transformers' arms do, in the same way, only where they
  are called "memory kept" (in sections before 25 Nov 2026 all did).
- One pass per step, unless the section says otherwise (of its first arm; others as their names say): all that a step
  costs beside the model weighs most. No checkpoint and no evaluation is included.
- "others" is the share of all cores that other processes took meanwhile, at worst; "turns" are those used of those
  taken: busy ones are taken again.
- `--clock cpu` takes the CPU time of a process's threads for its steps instead: a machine that others use disturbs it
  less, but only with `--threads 1` does it mean what a user waits for (waiting threads spin). Provisional.
- MFU = tokens/s × (6·N + 12·L·d·s) ÷ dense bf16 peak, N parameters, L layers, d width, s sequence length.
- memory: the plan's total against torch's peak of allocated tensors and all that is taken on the device (context and
  cache with it); on a CPU, for information, how much the process's peak resident memory grew.

Sections of a GPU name it.

Written by `tools/bench/train.py`; sections are only ever added.
"""


def lines_of(rounds: list[Round], arguments: argparse.Namespace) -> list[str]:
    """A case's tables: arms, ratios, raw rounds. The last round may lack arms."""
    arms = [
        name for name in arguments.arms.split(";") if any(name in each.step_s for each in rounds)
    ]
    failed = {name: why for each in rounds for name, why in each.failed.items()}
    impossible = [f"{name}: not possible, {why}" for name, why in failed.items()]
    if not arms:
        return impossible
    results = {name: found for each in reversed(rounds) for name, found in each.results.items()}
    first = results[arms[0]]
    plan = first["plan"]
    rows = []
    for name in arms:
        steps = [each.step_s[name] for each in rounds if name in each.step_s]
        speed = plan["tokens_per_step"] / median(steps)
        peak = plan["peak_tflops"]
        memory = results[name]["memory"]
        rows.append([
            name, record.spread([1000 * step for step in steps], 1), f"{speed:,.0f}",
            f"{speed * plan['flops_per_token'] / (peak * 1e12):.1%}" if peak else "–",
            f"{results[name]['plan']['memory_total'] / 2**30:.2f}",
            " / ".join(f"{size / 2**30:.2f}" for size in memory.values()),
            f"{results[name]['losses'][-1]:.4f}",
        ])  # fmt: skip
    theirs = [(name, "ours") for name in arms if name.startswith("transformers")]
    variants = [(name, "ours") for name in arms if name.startswith("ours:")]
    known = [*RATIOS, *FUSED, ("bare", "ours, compiled"), *theirs, *variants]
    ratios = {pair: found for pair in known if (found := _ratios(rounds, *pair))}
    fastest = {
        name: min(each.fastest_s[name] for each in rounds if name in each.fastest_s)
        for name in arms
    }
    busy = max(each.others for each in rounds)
    verdict = f"not decided, other processes took up to {busy:.0%} of the cores"
    if busy <= QUIET and ("ours", "bare") in ratios:
        verdict = "held" if median(ratios["ours", "bare"]) <= TARGET else "MISSED"
    against_bare = [f"ours ÷ bare ≤ {TARGET}: {verdict}"] if ("ours", "bare") in ratios else []
    own = any(name.startswith("ours") for name in arms)
    peers = [
        _against_peers(rounds, arms, group)
        for kept in (False, True)
        if own and (group := _peers(arms, kept))
    ]
    notes = [*impossible, *against_bare, *peers]
    way = "one process at a time" if arguments.alone else "processes that take turns"
    return [
        f"{plan['parameters'] / 1e6:.1f} M parameters, sequences of {plan['seq_lens'][0][1]:,} "
        f"tokens, {plan['tokens_per_step']:,} tokens per step in {plan['accumulation']} passes, "
        f"ZeRO-{plan['zero_stage']}, {first['threads']} threads, "
        + ("events on the GPU" if arguments.device == "cuda" else f"{arguments.clock} time")
        + f"; {len(rounds)} rounds, each of new processes: {way}.",
        "",
        *record.table(
            ["arm", "step ms", "tokens/s", "MFU", "planned GiB", "measured GiB", "loss"], rows
        ),
        "",
        *(_ratio_table(ratios, fastest) if ratios else []),
        *notes,
        *([""] if notes else []),
        *record.table(
            ["round", "others", "turns", *(f"{name}, ms" for name in arms)],
            [
                [number + 1, f"{each.others:.0%}", f"{arguments.turns}/{each.turns_taken}"]
                + [
                    f"{1000 * each.step_s[name]:.1f}" if name in each.step_s else "–"
                    for name in arms
                ]
                for number, each in enumerate(rounds)
            ],
        ),
    ]


def _ratios(rounds: list[Round], above: str, below: str) -> list[float]:
    return [
        each.step_s[above] / each.step_s[below]
        for each in rounds
        if {above, below} <= set(each.step_s)
    ]


def _ratio_table(
    ratios: dict[tuple[str, str], list[float]], fastest: dict[str, float]
) -> list[str]:
    rows = [
        [f"{above} ÷ {below}", record.spread(values, 3), f"{fastest[above] / fastest[below]:.3f}"]
        for (above, below), values in ratios.items()
    ]
    return [*record.table(["ratio", "median (least–greatest)", "of the fastest steps"], rows), ""]


def _peers(arms: list[str], kept: bool) -> list[str]:
    return [
        name for name in arms if name.startswith("transformers") and name.endswith(KEPT) is kept
    ]


def _against_peers(rounds: list[Round], arms: list[str], theirs: list[str]) -> str:
    """The best of ours ÷ the best of `theirs`, in tokens/s, within rounds."""
    ours = [name for name in arms if name.startswith("ours")]
    step_s = {
        name: median(each.step_s[name] for each in rounds if name in each.step_s)
        for name in [*ours, *theirs]
    }
    best, own = (min(group, key=step_s.__getitem__) for group in (theirs, ours))
    times = _ratios(rounds, best, own)
    if not times:
        return f"{own} against {best}: in no round both"
    held = "held" if median(times) >= OURS_MORE else "MISSED"
    return f"{own} ≥ {OURS_MORE} × {best} in tokens/s: {held}, {record.spread(times, 2)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", default="mpt-tiny,small", help="presets, or small")
    parser.add_argument("--precisions", help="default bf16,fp32; on a GPU bf16")
    parser.add_argument(
        "--arms",
        help="of " + "; ".join(ARMS) + " (separated by ;); 'ours: optim=muon' adds words",
        default=";".join(OURS),
    )
    parser.add_argument(
        "--words", nargs="*", default=[], help="further overrides, such as train.zero_stage=0"
    )
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--batch", type=int, help="sequences per step")
    parser.add_argument(
        "--micro-batch", type=int, help="sequences per pass; default all of a step's"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3, help="per arm and round")
    parser.add_argument(
        "--turn-steps", type=int, help="timed steps per turn; default 3, on a GPU 20"
    )
    parser.add_argument("--warmup", type=int, default=4, help="steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: for a machine that is not quiet",
    )
    parser.add_argument(
        "--max-others", type=float, default=QUIET, help="share of the cores, see above"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds to wait for quiet before turns"
    )
    parser.add_argument(
        "--alone",
        action="store_true",
        help="one arm at a time, for models that fill a GPU",
    )
    parser.add_argument(
        "--lock",
        type=Path,
        help="with --alone: held while an arm has the device, among several benches",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: mpt-tiny, bf16, 1 round, 1 turn"
    )
    parser.add_argument("--out", type=Path, default=record.ROOT / "benchmarks" / "training.md")
    arguments = parser.parse_args()
    arguments.turn_steps = arguments.turn_steps or (20 if arguments.device == "cuda" else 3)
    arguments.precisions = arguments.precisions or (
        "bf16" if arguments.device == "cuda" else "bf16,fp32"
    )
    if arguments.lock and not arguments.alone:
        parser.error("--lock: for --alone")
    if arguments.quick:
        arguments.rounds = 1
        arguments.turns = 1
        arguments.precisions = "bf16"
        arguments.models = arguments.models.partition(",")[0]

    for model in arguments.models.split(","):
        for precision in arguments.precisions.split(","):
            title = f"{model}, {precision}, {arguments.device}"
            section = record.Section(
                arguments.out, INTRODUCTION, title, ["torch", "deepspeed", "transformers"]
            )
            rounds = measure(words_of(model, precision, arguments), section, arguments)
            print("\n".join(lines_of(rounds, arguments)), flush=True)
            if not any(each.step_s for each in rounds):
                sys.exit("no arm could be measured")


def measure(
    words: list[str], section: record.Section, arguments: argparse.Namespace
) -> list[Round]:
    """All rounds; the section is written whenever there is more of one. An arm that fails is not
    tried again.
    """
    rounds: list[Round] = []
    for number in range(arguments.rounds):
        failed = {name for each in rounds for name in each.failed}
        arms = [name for name in arguments.arms.split(";") if name not in failed]
        if not arms:
            break
        done = list(rounds)
        for so_far in (one_at_a_time if arguments.alone else in_turns)(
            words, arms, number, arguments
        ):
            rounds = [*done, so_far]
            section.write(lines_of(rounds, arguments))
    return rounds


def words_of(model: str, precision: str, arguments: argparse.Namespace) -> list[str]:
    """Overrides: constant learning rate, all in one pass unless --micro-batch says less, no save or
    evaluation.
    """
    batch = arguments.batch or BATCH.get(model, 8)
    micro_batch = arguments.micro_batch or batch
    far = "1000000000steps"
    return [
        *SHAPES.get(model, [f"model={model}"]),
        *([f"train.seq_len={arguments.seq_len}"] if arguments.seq_len else []),
        *(
            f"train.global_batch={batch}",
            f"train.micro_batch={micro_batch}",
            f"train.precision={precision}",
        ),
        *(
            "optim.schedule=constant",
            "optim.warmup=1steps",
            f"train.eval_every={far}",
            f"checkpoint.every={far}",
        ),
        *arguments.words,
    ]


if __name__ == "__main__":
    main()
