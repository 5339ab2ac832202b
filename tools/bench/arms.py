"""The same optimizer steps three ways: bare PyTorch, DeepSpeed's engine in a bare loop, and our loop.

`python tools/bench/arms.py CASE_JSON` runs one arm of one case in this process and prints what it measured as JSON
on its last line. All arms share model, initial weights, batches, learning rate, clipping and the kind of optimizer;
each ticks one clock where a step begins.

- bare: forward, backward, clip_grad_norm_, torch's fused AdamW. In bf16 by hand what mixed precision takes: bf16
  weights, fp32 master weights that the optimizer updates, gradients cast to fp32. Batches lie ready in memory.
- deepspeed: `engine(…)`, `engine.backward`, `engine.step` with the settings of our runs. Batches lie ready in memory.
- ours: training.loop.Trainer.train with its data loader, metrics.jsonl, TensorBoard and fence; no save in between.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_llm.config.compose import compose
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.loader import Batches, Passes, Share
from hpc_llm.data.manifest import FORMAT_VERSION, MANIFEST, Manifest, facts
from hpc_llm.data.shards import ShardSet, ShardWriter
from hpc_llm.model.init import initialise
from hpc_llm.model.transformer import Transformer
from hpc_llm.planning.hardware import GIB, GPUS
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.runs.attempts import Fence, claim
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training import device as devices

Loop = Callable[["Setting"], None]


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    arm: str  # bare, deepspeed or ours
    words: list[str]  # overrides that describe model, batch, precision, optimizer
    device: str  # cpu or cuda
    warmup: int  # steps left out
    steps: int  # steps timed


class Clock:
    """Notes where steps begin: on the CPU by its clock, on a GPU by events, so that nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._ticks = device.type == "cuda", []

    def tick(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every step that began and ended with a tick."""
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
    shards: ShardSet
    device: torch.device
    clock: Clock
    num_steps: int  # warm-up included
    folder: Path
    losses: list[float]

    @property
    def share(self) -> Share:
        return Share(0, 1, self.config.train.global_batch, self.plan.micro_batch)

    def model(self) -> Transformer:
        model = Transformer(self.config.model, self.config.train.seq_len, self.plan.activation_checkpointing)
        for name, parameter in model.named_parameters():
            initialise(name, parameter, self.config.model, self.config.run.seed)
        return model.to(self.device)

    def batches(self) -> list[Passes]:
        """All batches, read before the clock starts."""
        with Batches(self.shards, self.config.run.seed, self.config.train.seq_len, self.share) as batches:
            return [batches.step(step) for step in range(self.num_steps)]


def bare(setting: Setting) -> None:
    optim, device, bf16 = setting.config.optim, setting.device, setting.config.train.precision == "bf16"
    model, losses = setting.model(), []
    masters = {name: torch.nn.Parameter(p.detach().clone()) if bf16 else p for name, p in model.named_parameters()}
    decayed = [p for name, p in masters.items() if p.dim() >= 2 and not name.endswith("wte.weight")]
    rest = [p for name, p in masters.items() if p.dim() < 2 or name.endswith("wte.weight")]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True)
    if bf16:
        model.bfloat16()
        for master in masters.values():
            master.grad = torch.empty_like(master)
    weights, master_list = list(model.parameters()), list(masters.values())
    for ((tokens, targets),) in setting.batches():
        setting.clock.tick()
        loss = model(tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True)) / targets.numel()
        loss.backward()
        if bf16:
            torch._foreach_copy_([master.grad for master in master_list], [weight.grad for weight in weights])
        torch.nn.utils.clip_grad_norm_(master_list, optim.grad_clip or math.inf)
        optimizer.step()
        if bf16:
            with torch.no_grad():
                torch._foreach_copy_(weights, master_list)
        model.zero_grad()
        losses.append(loss.detach())
    setting.clock.tick()
    setting.losses += [float(loss) for loss in losses]


def deepspeed_alone(setting: Setting) -> None:
    import deepspeed

    from hpc_llm.training import optim
    from hpc_llm.training.engine import deepspeed_settings

    config, device, losses = setting.config, setting.device, []
    model = setting.model()
    optimizer = optim.make(config.optim, model.named_parameters(), device.type)
    settings = {**deepspeed_settings(config, setting.plan), "gradient_clipping": config.optim.grad_clip}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for ((tokens, targets),) in setting.batches():
        setting.clock.tick()
        loss = engine(tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True)) / targets.numel()
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    setting.clock.tick()
    setting.losses += [float(loss) for loss in losses]


class Enough(Exception):
    """The timed steps are done: the loop is left where it would go on."""


class TimedBatches(Batches):
    """The run's own loader; every step of the loop begins by asking it."""

    clock: Clock
    num_steps: int

    def step(self, step: int) -> Passes:
        self.clock.tick()
        if step == self.num_steps:
            raise Enough
        return super().step(step)


def ours(setting: Setting) -> None:
    from hpc_llm.trackers import jsonl
    from hpc_llm.training import loop
    from hpc_llm.training.engine import Engine
    from hpc_llm.training.stop import StopFlag

    config, plan, layout = setting.config, setting.plan, RunLayout(setting.folder / "run")
    layout.make_folders()
    number = claim(layout)
    attempt = loop.Attempt(
        number=number,
        rank=0,
        checkpoints=layout.checkpoints,
        metrics=layout.metrics,
        tensorboard=layout.tensorboard,
        known_steps=0,
        check_fence=Fence(layout, number).check,
        record=lambda *_, **__: None,
    )
    engine = Engine(
        config,
        plan,
        lambda: Transformer(config.model, config.train.seq_len, plan.activation_checkpointing),
        setting.device,
        rank=0,
    )
    with TimedBatches(setting.shards, config.run.seed, config.train.seq_len, setting.share) as batches:
        batches.clock, batches.num_steps = setting.clock, setting.num_steps
        metrics = loop.open_metrics(config, plan, attempt, setting.device, 0)
        try:
            loop.Trainer(config, plan, attempt, engine, batches, [], StopFlag()).train(0, metrics)
        except Enough:
            metrics.flush()
        metrics.close()
    setting.losses += [row["loss"] for row in jsonl.read(layout.metrics)]


ARMS: dict[str, Loop] = {"bare": bare, "deepspeed": deepspeed_alone, "ours": ours}


def make_shards(folder: Path, vocab_size: int, num_tokens: int) -> ShardSet:
    """Skewed random tokens in the project's own format: time per step does not depend on what they say."""
    tokens = (vocab_size * np.random.default_rng(0).random(num_tokens) ** 3).astype(np.int64)
    with ShardWriter(folder, "train", vocab_size) as writer:
        writer.append(tokens, text_bytes=num_tokens)
    manifest = Manifest(
        version=FORMAT_VERSION,
        dtype=writer.dtype.name,
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        eos_id=0,
        tokenizer_sha256="",
        documents={"in": 1, "train": 1, "heldout": 0, "rejects": 0},
        tokens={"train": num_tokens, "heldout": 0},
        bytes_per_token=1.0,
        unigram_entropy=math.log(vocab_size),
        recipe={},
        sentencepiece="",
        shards={"train": writer.shards, "heldout": []},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return ShardSet(folder, "train", manifest)


def gpu_words(device: str) -> list[str]:
    """Tells the plan which GPU this is: its peak and memory."""
    if device == "cpu":
        return ["cluster.device=cpu"]
    name, total = torch.cuda.get_device_name().lower(), torch.cuda.get_device_properties(0).total_memory / GIB
    alike = [key for key in GPUS if key.split("-")[0] in name]
    nearest = min(alike, key=lambda key: abs(GPUS[key].memory_gib - total), default="null")
    return ["cluster.device=cuda", f"cluster.gpu={nearest}"]


def memory(device: torch.device) -> dict[str, int]:
    """Peak bytes: on a CPU the process's, on a GPU torch's tensors and, with context and cache, the device's."""
    if device.type == "cpu":
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    free, total = torch.cuda.mem_get_info()
    return {"peak": torch.cuda.max_memory_allocated(), "device": total - free}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    device = devices.choose_device(case.device, 0)
    num_steps = case.warmup + case.steps
    words = [*case.words, f"train.duration={num_steps + 1}steps", *gpu_words(case.device), f"data.out={folder}"]
    config = compose(words)
    tokens = (num_steps + 2) * config.train.global_batch * config.train.seq_len + 1
    shards = make_shards(folder, config.model.vocab_size, tokens)
    plan = make_plan(config, facts(folder))
    assert plan.accumulation == 1
    setting = Setting(config, plan, shards, device, Clock(device), num_steps, folder, [])
    if case.arm != "bare":  # what DeepSpeed imports is no part of the memory that a model takes
        import hpc_llm.training.loop  # noqa: F401
    before = memory(device)
    if case.arm == "bare":
        ARMS[case.arm](setting)
    else:
        with devices.process_group(RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0), device):
            ARMS[case.arm](setting)
    after = memory(device)
    seconds = setting.clock.seconds()[case.warmup :]
    return {
        "step_s": statistics.median(seconds),
        "steps_s": [round(value, 6) for value in seconds],
        "losses": setting.losses,
        "memory": after if device.type == "cuda" else {"peak": after["peak"] - before["peak"]},
        "plan": {**asdict(plan), "memory_total": plan.memory.total},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    case = Case(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        print("\n" + json.dumps(measure(case, Path(folder))), flush=True)
