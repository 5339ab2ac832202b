"""Real runs on this machine for the chaos tests: tiny, deterministic, comparable bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_llm.checkpoint import manifest
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Event
from hpc_llm.storage.files import sha256_file
from hpc_llm.trackers import jsonl
from tests.chaos import warm_ranks

FAULTS = Path(__file__).parent / "faults"
STEPS = 8
TINY = (
    *(
        "model.d_model=32",
        "model.n_heads=2",
        "model.n_layers=1",
        "model.vocab_size=512",
        "model.max_seq_len=64",
    ),
    *(
        "train.seq_len=16",
        "train.global_batch=4",
        f"train.duration={STEPS}steps",
        "train.eval_batches=1",
    ),
    *(
        "optim.warmup=2steps",
        "checkpoint.every=2steps",
        "trackers=[]",
        "cluster.device=cpu",
        "local=true",
    ),
    "recovery.max_crashes=20",
)


@dataclass(frozen=True)
class Finished:
    """What a run left: exit status, output, and its directory."""

    status: int
    output: str
    layout: RunLayout
    last: int = STEPS

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step, exact."""
        return {
            int(row["step"]): row["loss"]
            for row in jsonl.read(self.layout.metrics)
            if "loss" in row
        }

    @property
    def events(self) -> list[Event]:
        return ledger.read(self.layout.ledger)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [found.facts for found in self.events if found.event == event]

    @property
    def final_state(self) -> dict[str, str]:
        """SHA-256 by file of the last checkpoint: weights, master weights and optimizer states of
        every rank.
        """
        found = manifest.read(manifest.folder_of(self.layout.checkpoints, self.last))
        return {entry.name: entry.sha256 for entry in found.files}

    @property
    def final_tensors(self) -> dict[str, bytes]:
        """Every tensor of the last checkpoint by its place in the states, as bytes."""
        import torch

        found: dict[str, bytes] = {}

        def walk(value: Any, place: str) -> None:
            if isinstance(value, torch.Tensor):
                found[place] = (
                    value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                )
            elif isinstance(value, dict):
                for key, inner in value.items():
                    walk(inner, f"{place}/{key}")
            elif isinstance(value, (list, tuple)):
                for index, inner in enumerate(value):
                    walk(inner, f"{place}/{index}")

        for name in self.final_state:
            walk(
                torch.load(
                    manifest.folder_of(self.layout.checkpoints, self.last) / name,
                    weights_only=False,
                ),
                name,
            )
        return found


def run(
    root: Path,
    name: str,
    *words: str,
    faults: list[dict[str, Any]] | None = None,
    warm: bool = True,
) -> Finished:
    """`submit` in the foreground, as a user types it, with `faults` (faults/sitecustomize.py).

    warm: its ranks have torch already (warm_ranks.py).
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(FAULTS),
        "HPC_LLM_FAULTS": json.dumps(faults or []),
        "PYTHONWARNINGS": "ignore",
    }
    if warm:
        environment |= warm_ranks.environment()
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *TINY,
        f"run.root={root}",
        f"run.name={name}",
        *words,
    ]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Finished(done.returncode, done.stdout, RunLayout(root / name))


def damage(run: Finished, step: int, how: str) -> None:
    """Truncate a file of checkpoint `step`, or flip one bit in the middle of it."""
    folder = manifest.folder_of(run.layout.checkpoints, step)
    largest = max(manifest.read(folder).files, key=lambda entry: entry.bytes)
    path = folder / largest.name
    content = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert sha256_file(path) != largest.sha256
