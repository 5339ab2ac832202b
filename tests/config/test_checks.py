"""Every rule on the configuration alone: what breaks it, and the line that says so."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import replace
from functools import cache
from types import FrameType
from typing import Any

import pytest

from hpc_llm.config import checks, cluster_checks, optim_checks, ranges
from hpc_llm.config.checks import padded_vocab, problems
from hpc_llm.config.schema import RunConfig
from tests.configs import make_config

POSITIVE = "a number above 0"
NOT_NEGATIVE = "0 or more"
FRACTION = "between 0 and 1"
MUON = ("optim=muon", "train.zero_stage=1")
CLUSTER = "cluster=a100x8"  # on it no key is without effect

RULES = (checks, cluster_checks, optim_checks, ranges)

# word → what is allowed
OUT_OF_RANGE = {
    "run.seed=-1": "a whole number from 0 to 2^63 - 1",
    "run.max_gpu_hours=-0.5": POSITIVE,
    "model.d_model=0": POSITIVE,
    "model.n_heads=-4": POSITIVE,
    "model.n_layers=0": POSITIVE,
    "model.vocab_size=-1": POSITIVE,
    "model.max_seq_len=0": POSITIVE,
    "model.expansion_ratio=0": POSITIVE,
    "model.alibi_bias_max=-8.0": POSITIVE,
    "model.clip_qkv=0.0": POSITIVE,
    "model.init_std=-0.02": POSITIVE,
    "model.n_kv_heads=-1": POSITIVE,
    "model.d_ffn=-8": POSITIVE,
    "model.rope_theta=0.0": POSITIVE,
    "model.norm_eps=0.0": POSITIVE,
    "model.sliding_window=0": POSITIVE,
    "model.logit_scale=0.0": POSITIVE,
    "model.logit_soft_cap=-1.0": POSITIVE,
    "model.z_loss=-0.1": NOT_NEGATIVE,
    "train.loss_chunk=0": POSITIVE,
    "optim.muon_lr=0.0": POSITIVE,
    "optim.muon_momentum=1.0": "in [0, 1)",
    "data.vocab_size=0": POSITIVE,
    "data.workers=0": POSITIVE,
    "data.heldout_fraction=1.0": FRACTION,
    "data.tokenizer_sample_mb=inf": POSITIVE,
    "data.max_reject_fraction=1.5": "from 0 to 1",
    "optim.lr=inf": POSITIVE,
    "optim.eps=nan": POSITIVE,
    "optim.weight_decay=-0.1": NOT_NEGATIVE,
    "optim.grad_clip=inf": NOT_NEGATIVE,
    "optim.betas=[0.9, 1.0]": "two numbers in [0, 1)",
    "optim.min_lr_ratio=1.1": "from 0 to 1",
    "optim.decay_fraction=0.0": FRACTION,
    "train.seq_len=-2": POSITIVE,
    "train.global_batch=0": POSITIVE,
    "train.micro_batch=-3": POSITIVE,
    "train.eval_batches=0": POSITIVE,
    "train.zero_stage=4": "0, 1, 2, 3 or auto",
    "checkpoint.keep=0": POSITIVE,
    "cluster.nodes=0": POSITIVE,
    "cluster.spare_nodes=-1": NOT_NEGATIVE,
    "cluster.gpus_per_node=-1": POSITIVE,
    "cluster.cpus_per_gpu=0": POSITIVE,
    "cluster.threads_per_rank=0": POSITIVE,
    "cluster.time_min=-60": POSITIVE,
    "cluster.array_throttle=0": POSITIVE,
    "cluster.signal_lead_s=65536": "seconds from 0 to 65535 (Slurm's limit)",
    "cluster.expected_mfu=1.01": "above 0, at most 1",
    "cluster.gpu_memory_gib=0.0": POSITIVE,
    "cluster.gpu_peak_tflops=-1.0": POSITIVE,
    "recovery.max_crashes=-1": NOT_NEGATIVE,
    "recovery.max_no_progress=-1": NOT_NEGATIVE,
    "recovery.max_hangs=-1": NOT_NEGATIVE,
    "recovery.max_node_failures=-1": NOT_NEGATIVE,
    "recovery.max_launch_failures=-1": NOT_NEGATIVE,
    "recovery.max_out_of_memory=-1": NOT_NEGATIVE,
    "recovery.max_divergences=-1": NOT_NEGATIVE,
    "recovery.max_preemptions=-1": NOT_NEGATIVE,
    "recovery.max_admin_cancels=-1": NOT_NEGATIVE,
    "recovery.start_timeout_s=9.0": "10 seconds or more",
    "recovery.spike_threshold=0.0": POSITIVE,
    "recovery.max_excluded_nodes=-1": NOT_NEGATIVE,
    "recovery.hang_floor_s=9.9": "10 seconds or more",
    "recovery.node_exclusion_h=0.0": POSITIVE,
    "halving.keep=1.0": "above 0 and below 1",
    "search.trials=0": POSITIVE,
    "search.parallel=0": POSITIVE,
    "trackers.tensorboard.every=0": POSITIVE,
}

AT_THE_EDGE = (
    *(
        "run.seed=0",
        "data.max_reject_fraction=1",
        "optim.weight_decay=0",
        "optim.grad_clip=0",
        "optim.betas=[0,0]",
    ),
    *(
        "optim.min_lr_ratio=0",
        "train.seq_len=1",
        "train.global_batch=8",
        "train.micro_batch=1",
        "train.zero_stage=3",
    ),
    *(
        "checkpoint.keep=1",
        "cluster.signal_lead_s=65535",
        "cluster.expected_mfu=1",
        "recovery.max_crashes=0",
    ),
    *("recovery.hang_floor_s=10", "recovery.max_preemptions=0", "recovery.max_excluded_nodes=0"),
    *(
        "recovery.max_no_progress=0",
        "run.max_gpu_hours=0.1",
        "data.workers=auto",
        "train.eval_batches=1",
    ),
)

# words → what is found: nothing else
BROKEN: list[tuple[list[str], list[str]]] = [
    (
        ["train.seq_len=1024"],
        [
            (
                "train.seq_len=1024: at most model.max_seq_len=512 of mpt-tiny; lower it or set "
                "model.max_seq_len=1024"
            ),
        ],
    ),
    (
        ["data.vocab_size=null"],
        [
            (
                "data.vocab_size=null: the number of pieces to train, or data.tokenizer=PATH of a "
                "SentencePiece model"
            )
        ],
    ),
    (
        ["data.vocab_size=5000"],
        [
            (
                "model.vocab_size=4096: 5120 is expected, the tokenizer's data.vocab_size=5000 "
                "padded to a multiple of 128"
            ),
        ],
    ),
    (
        ["data.vocab_size=1000"],
        [
            (
                "model.vocab_size=4096: 1024 is expected, the tokenizer's data.vocab_size=1000 "
                "padded to a multiple of 128"
            ),
        ],
    ),
    (
        ["cluster.exports={2A: x}", CLUSTER],
        ["cluster.exports.2A: a variable's name has letters, digits and '_'"],
    ),
    (
        ["cluster.exports.WANDB_API_KEY=x", CLUSTER],
        [
            (
                "cluster.exports.WANDB_API_KEY: no secret is written to a file; export it in the "
                "shell you submit from"
            ),
        ],
    ),
    (
        ["cluster.threads_per_rank=20", CLUSTER],
        [
            (
                "cluster.threads_per_rank=20: at most cluster.cpus_per_gpu=16, the CPUs that a "
                "rank gets"
            )
        ],
    ),
    (
        ["cluster.gpu_request=gpus", CLUSTER],
        [
            (
                "cluster.gpu_request='gpus': gpus-per-node, gres, either with Slurm's "
                "word for the type (gpus-per-node:h100, gres:a100), or none"
            )
        ],
    ),
    (
        ["cluster.gpu_request='gres:a100 --uid=0'", CLUSTER],
        [
            (
                "cluster.gpu_request='gres:a100 --uid=0': gpus-per-node, gres, "
                "either with Slurm's word for the type (gpus-per-node:h100, gres:a100), or none"
            )
        ],
    ),
    (
        ["train.zero_stage=0"],
        [
            "train.zero_stage=0: DeepSpeed cannot accumulate bf16 gradients in fp32 at stage 0; "
            "use train.zero_stage=1, 2 or 3, or train.precision=fp32",
        ],
    ),
    (
        ["optim=cpu_adam", "train.zero_stage=0", "train.precision=fp32"],
        ["optim=cpu_adam: offloading needs train.zero_stage=1, 2 or 3"],
    ),
    (
        ["cluster.nodes=2"],
        ["cluster.nodes=2: 1 on cluster=local; ranks are cluster.gpus_per_node=N"],
    ),
    (
        ["test_only=true", "dry_run=true", CLUSTER],
        ["test_only=true: asks Slurm, and dry_run=true asks nobody; give one of them"],
    ),
    (
        ["local=true", CLUSTER],
        [f"local=true: is for a run here, and {CLUSTER} is Slurm's; give one of them"],
    ),
    (
        ["cluster.mem=lots", CLUSTER],
        ["cluster.mem='lots': as Slurm spells it, for example 480G; 0 is all of a node's"],
    ),
    (
        ["test_only=true"],
        ["test_only=true: asks Slurm, so it needs a cluster, for example +cluster=a100x64"],
    ),
    (
        ["data=files"],
        ["data.source: missing; give a folder or a file of text with data.source=PATH"],
    ),
    (
        ["data=files", "data.sources={a b: {path: x}}"],
        [
            (
                "data.sources='a b': up to 100 letters, digits, '.', '_' and '-' are expected, "
                "since it names files"
            )
        ],
    ),
    (["data.eos_token=x"], ["data.eos_token=x: has an effect with data.tokenizer=PATH alone"]),
    (["data.split=line"], ["data.split=line: has no effect, data=stdlib is read in its own way"]),
    (
        ["data=files", "data.sources.a.path=x", "data.sources.b.path=y", "data.text_field=body"],
        ["data.text_field=body: has no effect, each of data.sources has its own"],
    ),
    (
        [
            "data=files",
            "data.sources.a.path=x",
            "data.sources.a.min_chars=9",
            "data.sources.a.max_chars=3",
        ],
        ["data.sources.a.min_chars=9: at most data.sources.a.max_chars=3 is expected"],
    ),
    (
        ["data=files", "data.source=x", "data.min_chars=0"],
        ["data.min_chars=0: a number above 0 is expected, or null"],
    ),
    (
        ["data.source=/text"],
        ["data.source=/text: data=stdlib has its own source; use data=files data.source=…"],
    ),
    (
        ["optim.decay_fraction=0.5"],
        ["optim.decay_fraction=0.5: has an effect with optim.schedule=wsd alone"],
    ),
    (
        ["recovery.notify=['http://example.org/x']", CLUSTER],
        [
            (
                "recovery.notify=['http://example.org/x']: an https:// address, a command's words, "
                "or [$VARIABLE]"
            )
        ],
    ),
    (
        ["recovery.max_divergences=5"],
        ["recovery.max_divergences=5: has an effect with recovery.on_divergence=skip alone"],
    ),
    (["search.parallel=2"], ["search.parallel=2: has an effect with search.trials alone"]),
    (
        ["search.trials=9", CLUSTER],
        ["search.trials=9: has no effect on a single run; submit a sweep (-m)"],
    ),
    (
        ["search.trials=9", "run.sweep=s"],
        [
            (
                "search.trials: has no effect on cluster=local, where no watchdog submits trials; "
                "choose a cluster"
            )
        ],
    ),
    (
        ["search.trials=9", "halving.rungs=[100steps]", "run.sweep=s", CLUSTER],
        [
            (
                "halving.rungs: has no effect on a search, which learns from whole runs; leave out "
                "one of the two"
            )
        ],
    ),
    (
        ["optim.schedule=constant", "optim.min_lr_ratio=0.2"],
        ["optim.min_lr_ratio=0.2: has no effect with optim.schedule=constant"],
    ),
    (
        ["optim=fused_lion", "optim.eps=1e-6"],
        ["optim.eps=1e-06: has no effect with optim=fused_lion, which divides by nothing"],
    ),
    (["halving.keep=0.25"], ["halving.keep=0.25: has an effect with halving.rungs alone"]),
    (
        ["halving.rungs=[100steps]", CLUSTER],
        ["halving.rungs: has no effect on a single run; submit a sweep (-m)"],
    ),
    (
        ["halving.rungs=[100steps]", "run.sweep=s"],
        [
            (
                "halving.rungs: has no effect on cluster=local, where no watchdog stops runs; "
                "choose a Slurm cluster"
            )
        ],
    ),
    (
        ["recovery.notify=[mail-me]"],
        [
            (
                "recovery.notify: has no effect on cluster=local, where no watchdog looks on; "
                "choose a Slurm cluster"
            )
        ],
    ),
    (
        ["data.tokenizer=/t.model", "data.tokenizer_sample_mb=64"],
        [
            (
                "data.tokenizer_sample_mb=64.0: has no effect with data.tokenizer=/t.model, which "
                "is trained already"
            )
        ],
    ),
    (
        ["recovery.successor=true"],
        ["recovery.successor=true: has no effect on cluster=local; choose a Slurm cluster"],
    ),
    (
        ["cluster.partition=gpu", "cluster.setup=[module load cuda]", "cluster.signal_lead_s=60"],
        [
            "cluster.partition=gpu: has no effect on cluster=local; choose a Slurm cluster",
            (
                "cluster.setup=['module load cuda']: has no effect on cluster=local; choose a "
                "Slurm cluster"
            ),
            "cluster.signal_lead_s=60: has no effect on cluster=local; choose a Slurm cluster",
        ],
    ),
    (["optim.muon_lr=0.01"], ["optim.muon_lr=0.01: has an effect with optim=muon alone"]),
    (["optim.muon_momentum=0.9"], ["optim.muon_momentum=0.9: has an effect with optim=muon alone"]),
    ([*MUON, "optim.muon_lr=null"], ["optim.muon_lr=null: a number is expected with optim=muon"]),
    (
        ["optim=muon", "train.zero_stage=3"],
        ["optim=muon: works with train.zero_stage=1 or 2, not 3"],
    ),
    (
        [*MUON, "optim.grad_clip=1.0"],
        [
            "optim.grad_clip=1: DeepSpeed would clip Muon's updates, whose size is fixed, instead "
            "of gradients; use optim.grad_clip=0 with optim=muon"
        ],
    ),
]

NAMES = [
    "a b",
    "a;rm -rf",
    "$HOME",
    "../up",
    "a/b",
    ".hidden",
    "-flag",
    "имя",
    "x" * 101,
    "",
    "a\nb",
    "`id`",
    "a'b",
    "=,a b",
]


@cache
def found_out_of_range() -> list[str]:
    return problems(make_config(CLUSTER, *OUT_OF_RANGE))


@pytest.mark.parametrize(("word", "allowed"), OUT_OF_RANGE.items())
def test_a_value_out_of_range_is_named_with_what_is_allowed(word: str, allowed: str) -> None:
    assert found_out_of_range().count(f"{word}: {allowed} is expected") == 1


def test_every_range_has_a_row_above() -> None:
    assert {word.partition("=")[0] for word in OUT_OF_RANGE} == set(ranges.RANGES)


def test_the_edges_of_the_ranges_are_allowed() -> None:
    assert problems(make_config(CLUSTER, *AT_THE_EDGE)) == []


@pytest.mark.parametrize(("words", "lines"), BROKEN, ids=[words[0] for words, _ in BROKEN])
def test_a_broken_rule_is_said_in_one_line(words: list[str], lines: list[str]) -> None:
    assert problems(make_config(*words)) == lines


def named(name: str) -> RunConfig:
    config = make_config()
    return replace(config, run=replace(config.run, name=name))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_a_shell_would_take_apart_is_refused(name: str) -> None:
    (line,) = problems(named(name))
    assert line.startswith(
        f"run.name={name!r}: up to 100 letters, digits, '.', '_', '=', ',' and '-', of which a "
        "letter"
    )
    example = line.rpartition("for example ")[2]
    assert problems(named(example)) == []


@pytest.mark.parametrize("name", ["a", "mpt-7b_lr1e-3.v2", "7b", "_x", "X" * 100, "lr=1e-4,seed=2"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert problems(named(name)) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train.precision=fp32", "train.zero_stage=0"],
        ["optim=cpu_adam", "train.zero_stage=2"],
        ["optim=fused_lion", "optim.schedule=constant"],
        ["optim.schedule=wsd", "optim.decay_fraction=0.5"],
        ["data.vocab_size=4000"],
        ["data.vocab_size=null", "data.tokenizer=/t.model"],
        ["train.seq_len=512"],
        [
            CLUSTER,
            "cluster.gpu_request=gres:a100",
            "cluster.partition=gpu",
            "cluster.exports.NCCL_DEBUG=WARN",
        ],
        [CLUSTER, "test_only=true", "cluster.nodes=2"],
        ["cluster.array_throttle=4", "recovery.max_preemptions=3"],
        [CLUSTER, "recovery.notify=[mail-me]", "recovery.max_preemptions=3"],
    ],
)
def test_what_works_is_not_complained_of(words: list[str]) -> None:
    assert problems(make_config(*words)) == []


@pytest.mark.parametrize(
    ("pieces", "rows"), [(1, 128), (128, 128), (129, 256), (50_277, 50_304), (50_432, 50_432)]
)
def test_embeddings_are_padded_to_128_rows(pieces: int, rows: int) -> None:
    assert padded_vocab(pieces) == rows


def test_every_rule_is_broken_above() -> None:
    """Each `yield` of RULES is reached by the tables of this file: a rule without a row fails."""
    rules: set[tuple[str, int]] = set()
    for module in RULES:
        tree = ast.parse(inspect.getsource(module))
        yields = [node for node in ast.walk(tree) if isinstance(node, ast.Yield)]
        rules |= {(module.__name__, node.lineno) for node in yields}
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            reached.add((frame.f_globals["__name__"], frame.f_lineno))
        return trace

    tables = [[*OUT_OF_RANGE, CLUSTER], ["run.name=' '"], *(words for words, _ in BROKEN)]
    configs = [make_config(*words) for words in tables]
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for config in configs:
            problems(config)
    finally:
        sys.settrace(before)
    assert len(rules) > 10
    assert rules <= reached
