"""What every arm of the training benchmark starts from: a case, a clock, a model, batches of
made-up tokens.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_llm.config.schema import RunConfig
from hpc_llm.data import stream
from hpc_llm.data.loader import Batches, Share
from hpc_llm.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, Shard, SourceFacts
from hpc_llm.data.shards import ShardFile, dtype_for, shard_name
from hpc_llm.model.build import build_model
from hpc_llm.model.init import initialise_all
from hpc_llm.model.transformer import Transformer
from hpc_llm.planning.hardware import GIB, GPUS
from hpc_llm.planning.plan import RunPlan


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    arm: str  # one of arms.ARMS
    words: list[str]  # overrides that describe model, batch, precision, optimizer
    device: str  # cpu or cuda
    clock: str  # on a CPU: wall, or cpu, the CPU time of the process's threads
    warmup: int  # steps of the first turn
    turn_steps: (
        int  # steps timed per turn; one more comes before them, for caches and queues to fill
    )
    most_turns: int  # beside the first
    alive: bool = False  # on a CPU: watch the allocator, which takes time and memory of its own


class Enough(BaseException):
    """The parent said stop: the loop is left where its next step would begin."""


class Clock:
    """Notes where steps begin: by the CPU's clock, on a GPU by events, so that no step waits for
    the device.
    """

    def __init__(self, device: torch.device, case: Case) -> None:
        self._cuda = device.type == "cuda"
        self._case = case
        self._now = time.process_time if case.clock == "cpu" else time.perf_counter
        self._ticks: list[Any] = []
        self._left = 0
        self._turns = 0

    def tick(self) -> None:
        """Begin a step; between turns, wait to be told. Enough when told to stop."""
        if self._left == 0:
            self._note()
            print("\n@turn", json.dumps(self._seconds()[1:]), flush=True)
            if sys.stdin.readline().strip() != "go":
                raise Enough
            self._ticks = []
            self._left = self._case.turn_steps + 1 if self._turns else self._case.warmup
            self._turns += 1
        self._note()
        self._left -= 1

    def _note(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(self._now())

    def _seconds(self) -> list[float]:
        pairs = list(zip(self._ticks[:-1], self._ticks[1:], strict=True))
        if self._cuda:
            torch.cuda.synchronize()
            return [begun.elapsed_time(ended) / 1000 for begun, ended in pairs]
        return [ended - begun for begun, ended in pairs]


@dataclass
class Setting:
    """Everything that an arm starts from, and the losses it leaves."""

    config: RunConfig
    plan: RunPlan
    device: torch.device
    clock: Clock
    num_steps: int  # at most
    folder: Path
    losses: list[Any]

    @property
    def share(self) -> Share:
        return Share(0, 1, self.config.train.global_batch, self.plan.micro_batch)

    def model(self) -> Transformer:
        model = build_model(self.config, self.plan)
        initialise_all(model, self.config.model, self.config.run.seed)
        return model.to(self.device)

    def batches(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Tokens and targets of every step's passes, all read before the clock first ticks, which
        it does for each.
        """
        with Batches(stream.training(self.config, self.plan, self.folder), self.share) as batches:
            ready = [batches.step(step) for step in range(self.num_steps)]
        for passes in ready:
            self.clock.tick()
            yield [(self._here(tokens), self._here(targets)) for tokens, targets in passes]

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)


def make_shards(folder: Path, source: str, vocab_size: int, num_tokens: int) -> None:
    """One document of skewed random tokens: time per step does not depend on what they say."""
    tokens = (vocab_size * np.random.default_rng(0).random(num_tokens) ** 3).astype(np.int64)
    dtype = dtype_for(vocab_size)
    file = ShardFile(folder, shard_name("train", source, 0), source, dtype)
    file.append(tokens, np.array([num_tokens]), text_bytes=num_tokens)
    manifest = manifest_of({source: [file.close()]}, dtype.name, vocab_size)
    (folder / MANIFEST).write_text(manifest.to_json())


def manifest_of(shards: dict[str, list[Shard]], dtype: str, vocab_size: int) -> Manifest:
    """The manifest of training shards that nothing was tokenised for, by source."""
    facts = {
        source: SourceFacts(
            _counted(sum(shard.documents for shard in own)),
            0,
            {"train": sum(shard.tokens for shard in own), "heldout": 0},
            sum(shard.text_bytes for shard in own),
            [],
        )
        for source, own in shards.items()
    }
    return Manifest(
        version=FORMAT_VERSION,
        dtype=dtype,
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        eos_id=0,
        tokenizer="",
        tokenizer_sha256="",
        documents=_counted(sum(each.documents["in"] for each in facts.values())),
        tokens={"train": sum(each.tokens["train"] for each in facts.values()), "heldout": 0},
        bytes_per_token=1.0,
        unigram_entropy=math.log(vocab_size),
        recipe={},
        library="",
        sources=facts,
        shards={"train": [shard for own in shards.values() for shard in own], "heldout": []},
    )


def _counted(documents: int) -> dict[str, int]:
    return {"in": documents, "train": documents, "heldout": 0, "rejects": 0, "duplicates": 0}


def gpu_words(device: str) -> list[str]:
    """Tells the plan which GPU this is: its peak and memory."""
    if device == "cpu":
        return ["cluster.device=cpu"]
    name = torch.cuda.get_device_name().lower()
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    alike = [key for key in GPUS if key.split("-")[0] in name]
    nearest = min(alike, key=lambda key: abs(GPUS[key].memory_gib - total), default="null")
    return ["cluster.device=cuda", f"cluster.gpu={nearest}"]


def memory(device: torch.device) -> dict[str, int]:
    """Peak bytes: on a CPU the process's, on a GPU torch's tensors and, with context and cache, the
    device's.
    """
    if device.type == "cpu":
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    free, total = torch.cuda.mem_get_info()
    return {"peak": torch.cuda.max_memory_allocated(), "device": total - free}
