"""Rules on the model's shape and its step: what breaks them, and the line that says so."""

from __future__ import annotations

import pytest

from hpc_llm.config.checks import problems
from hpc_llm.config.computing import choose, compiles, loss_chunk
from tests.configs import make_config

MUON = ("optim=muon", "train.zero_stage=1")

# words → what is found: nothing else
BROKEN: list[tuple[list[str], list[str]]] = [
    (["model.n_heads=3"], ["model.n_heads=3: a divisor of model.d_model=256 is expected"]),
    (
        ["model.n_kv_heads=3"],
        ["model.n_kv_heads=3: a divisor of model.n_heads=4 is expected, or null"],
    ),
    (
        ["model.positions=rope", "model.d_model=36"],
        [
            "model.positions=rope: rotates pairs, so a head needs an even size, not 9 "
            "(model.d_model=36 ÷ model.n_heads=4)"
        ],
    ),
    (
        ["model.positions=rope", "model.alibi_bias_max=16"],
        ["model.alibi_bias_max=16: has an effect with model.positions=alibi alone"],
    ),
    (
        ["model.rope_theta=500000"],
        ["model.rope_theta=500000: has an effect with model.positions=rope alone"],
    ),
    (
        ["model.d_ffn=512", "model.expansion_ratio=3"],
        ["model.expansion_ratio=3: has no effect beside model.d_ffn=512"],
    ),
    (
        ["model.norm=layernorm", "train.precision=fp32"],
        [
            "model.norm=layernorm: has an effect with train.precision=bf16 alone; in fp32 it is "
            "model.norm=low_precision_layernorm"
        ],
    ),
    (
        ["model.sliding_window=256"],
        [
            (
                "model.sliding_window=256: has no effect on train.seq_len=256; give fewer tokens, "
                "or null"
            )
        ],
    ),
    (
        ["train.loss_chunk=4096"],
        [
            (
                "train.loss_chunk=4096: has no effect on 4096 tokens, a whole pass of a rank; give "
                "fewer, or null"
            )
        ],
    ),
    (
        ["train.loss_chunk=1024", "train.micro_batch=4"],
        [
            (
                "train.loss_chunk=1024: has no effect on 1024 tokens, a whole pass of a rank; give "
                "fewer, or null"
            )
        ],
    ),
    (
        ["model.positions=rope", "train.attention=folded"],
        [
            (
                "train.attention=folded: folds ALiBi into the heads, and model.positions=rope; use "
                "train.attention=auto"
            )
        ],
    ),
    (
        ["train.attention=flex", "cluster.device=cpu"],
        [
            (
                "train.attention=flex: needs a GPU to train, and cluster.device=cpu; use blocked, "
                "folded or auto"
            )
        ],
    ),
    (
        ["train.attention=flash", "train.precision=fp32"],
        [
            "train.attention=flash: flash-attn computes in bf16 alone, and train.precision=fp32; "
            "use train.attention=auto"
        ],
    ),
    (
        ["train.attention=flex", "cluster=a100x8", "train.global_batch=64", "model.n_heads=32"],
        [
            "train.attention=flex: has no kernel for heads of 8 (model.d_model ÷ model.n_heads), "
            "only from 16 on; use train.attention=auto"
        ],
    ),
    (
        ["train.attention=flash", "cluster=a100x8", "train.global_batch=64", "model.d_model=2048"],
        [
            "train.attention=flash: has no kernel for heads of 512 (model.d_model ÷ "
            "model.n_heads), only up to 256; use train.attention=auto"
        ],
    ),
    (
        ["train.attention=folded", "model.max_seq_len=131072", "train.seq_len=131072"],
        [
            "train.attention=folded: is exact in bf16 up to 65536 tokens, and "
            "train.seq_len=131072; use train.attention=flex"
        ],
    ),
]

WORKS = [
    ["model.positions=rope", "model.rope_theta=500000", "model.n_kv_heads=1"],
    [
        "model.d_ffn=700",
        "model.ffn=swiglu",
        "model.norm=rmsnorm",
        "model.tied=false",
        "model.bias=true",
    ],
    [
        "model.sliding_window=255",
        "train.loss_chunk=4095",
        "train.attention=folded",
        "model.norm=layernorm",
    ],
    ["cluster=a100x8", "train.attention=flex", "train.global_batch=64"],
    ["cluster=a100x8", "train.attention=flash", "train.global_batch=64"],
    [*MUON],
    ["model=llama-tiny"],
]


@pytest.mark.parametrize(("words", "lines"), BROKEN, ids=[" ".join(words) for words, _ in BROKEN])
def test_a_broken_rule_is_said_in_one_line(words: list[str], lines: list[str]) -> None:
    assert problems(make_config(*words)) == lines


@pytest.mark.parametrize("words", WORKS, ids=" ".join)
def test_what_works_is_not_complained_of(words: list[str]) -> None:
    assert problems(make_config(*words)) == []


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        (["cluster.device=cpu"], "blocked"),
        (["cluster.device=cpu", "model=mpt-7b-8k", "train.seq_len=4096"], "sdpa"),
        (["cluster.device=cpu", "model=mpt-7b-8k"], "folded"),
        (["model=mpt-7b", "cluster=a100x64"], "flex"),
        (["model=mpt-7b-8k", "cluster=a100x64"], "flex"),
        (["model=mpt-7b-8k", "cluster=a100x64", "train.precision=fp32"], "folded"),
        (["model=mpt-7b", "cluster=a100x64", "train.precision=fp32"], "sdpa"),
        (["model=mpt-7b", "cluster=a100x64", "model.n_heads=512"], "sdpa"),
        (["model=mpt-7b-8k", "cluster=a100x64", "train.attention=folded"], "folded"),
        (["model=llama-8b", "cluster=a100x64"], "sdpa"),
        (["model=llama-8b", "cluster=a100x64", "data.packing=best_fit"], "flex"),
        (["model=llama-8b", "cluster=a100x64", "model.sliding_window=512"], "flex"),
    ],
)
def test_attention_is_chosen_by_shape_unless_it_is_given(words: list[str], backend: str) -> None:
    assert choose(make_config(*words)) == backend


@pytest.mark.parametrize(
    ("words", "compiled"),
    [
        (["cluster.device=cpu"], False),
        (["cluster.device=cpu", "train.compile=true"], True),
        (["cluster=a100x64"], True),
        (["cluster=local-slurm", "cluster.device=auto", "cluster.gpu_request=none"], False),
        (["cluster=a100x64", "cluster.device=auto", "cluster.gpu_request=none"], True),
        (["cluster=a100x64", "train.compile=false"], False),
    ],
)
def test_a_gpus_steps_are_compiled_unless_it_is_said(words: list[str], compiled: bool) -> None:
    assert compiles(make_config(*words)) is compiled


@pytest.mark.parametrize(
    ("words", "chunk"),
    [
        (["cluster.device=cpu"], 2048),
        (["cluster.device=cpu", "train.compile=true"], None),
        (["cluster.device=cpu", "train.loss_chunk=null"], None),
        (["cluster.device=cpu", "train.loss_chunk=1000", "train.compile=true"], 1000),
        (["cluster=a100x64"], None),
        (["cluster=a100x64", "train.compile=false"], None),
        (["cluster=a100x64", "train.loss_chunk=1024"], 1024),
    ],
)
def test_an_eager_loss_on_a_cpu_is_in_chunks_unless_it_is_said(
    words: list[str], chunk: int | None
) -> None:
    assert loss_chunk(make_config(*words)) == chunk
