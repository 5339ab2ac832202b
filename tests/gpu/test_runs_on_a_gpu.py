"""Whole runs as a user starts them: they train, evaluate and save, with what `auto` chooses on a
GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.trackers import jsonl

WORDS = (
    *(
        "model.d_model=128",
        "model.n_heads=2",
        "model.n_layers=2",
        "model.vocab_size=512",
        "data.vocab_size=512",
    ),
    *(
        "train.global_batch=8",
        "train.eval_batches=1",
        "train.eval_every=10steps",
        "checkpoint.every=10steps",
    ),
    *(
        "optim=torch_adam",
        "optim.warmup=2steps",
        "trackers=[]",
        "cluster.device=cuda",
        "local=true",
    ),
)
KINDS = {
    "alibi": (),
    "rope": ("model=llama-tiny", "model.n_kv_heads=1", "model.d_ffn=null"),
    "packed": ("data.packing=best_fit",),
    "lengths": ("train.seq_len=256", "train.seq_len_warmup={64: 6steps, 128: 12steps}"),
    "ZeRO 3, checkpointed": ("train.zero_stage=3", "train.activation_checkpointing=true"),
}


def submit(root: Path, *words: str) -> str:
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *WORDS,
        f"run.root={root}",
        "run.name=one",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_evaluates_and_saves(kind: str, tmp_path: Path) -> None:
    submit(tmp_path, *KINDS[kind], "train.duration=20steps")
    layout = RunLayout(tmp_path / "one")
    rows = list(jsonl.read(layout.metrics))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert [row["step"] for row in rows if "heldout_loss" in row] == [10, 20]
    saved = [
        event.facts["step"] for event in ledger.read(layout.ledger) if event.event == "checkpointed"
    ]
    assert saved == [10, 20]
