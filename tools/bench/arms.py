"""The same optimizer steps: bare PyTorch, DeepSpeed's engine in a bare loop, our loop, and
transformers' model in each.

`python tools/bench/arms.py CASE_JSON` runs one arm in this process. It says `@ready 0` and waits
for a line on its standard input before it takes memory of the device; then come turns: a line
`@turn SECONDS_JSON` after each, then it waits for `go` or `stop`; `@result JSON` comes last. All
arms share batches, learning rate, clipping and AdamW, and ours the model and its first weights too;
each ticks one clock where a step begins.

- bare: forward, backward, clip_grad_norm_, torch's fused AdamW. In bf16 it does by hand what mixed
  precision takes:
  bf16 weights, fp32 master weights that the optimizer updates, gradients cast to fp32. Batches lie
  ready in memory.
- deepspeed: `engine(…)`, `engine.backward`, `engine.step` with the settings of our runs, and
  gradients reduced as
  DeepSpeed does it. Batches lie ready in memory.
- transformers…: its model of the same architecture with weights that it draws, in the first two
  loops, under
  torch.compile in both, and in its Trainer. On a CPU glibc hands memory back after every step, as
  it does for whoever uses these; +kept: malloc as of our own ranks.
- ours: training.loop.Trainer.train with its data loader, metrics.jsonl, TensorBoard and fence; it
  saves nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from alive import Alive
from setting import Case, Clock, Enough, Setting, gpu_words, make_shards, memory

from hpc_llm.config.compose import compose
from hpc_llm.data import stream
from hpc_llm.data.loader import Batches, Passes
from hpc_llm.data.manifest import facts
from hpc_llm.model.build import build_model
from hpc_llm.planning.plan import make_plan
from hpc_llm.runs.attempts import Fence, claim
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training import device as devices


def bare(setting: Setting) -> None:
    bare_loop(setting, setting.model())


def bare_loop(setting: Setting, model: torch.nn.Module) -> None:
    """The loop around any model that gives the sum of its losses for (tokens, targets)."""
    optim = setting.config.optim
    bf16 = setting.config.train.precision == "bf16"
    masters = {
        name: torch.nn.Parameter(p.detach().clone()) if bf16 else p
        for name, p in model.named_parameters()
    }
    decayed = [p for name, p in masters.items() if p.dim() >= 2 and not name.endswith("wte.weight")]
    rest = [p for name, p in masters.items() if p.dim() < 2 or name.endswith("wte.weight")]
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True
    )
    if bf16:
        model.bfloat16()
        for master in masters.values():
            master.grad = torch.empty_like(master)
    weights = list(model.parameters())
    master_list = list(masters.values())
    for passes in setting.batches():
        total = torch.zeros((), device=setting.device)
        for number, (tokens, targets) in enumerate(passes):
            loss = model(tokens, targets) / setting.plan.tokens_per_step
            loss.backward()
            total += loss.detach()
            if bf16:
                sums = [master.grad for master in master_list]
                found = [weight.grad for weight in weights]
                (torch._foreach_add_ if number else torch._foreach_copy_)(sums, found)
                if number < len(passes) - 1:
                    model.zero_grad()
        torch.nn.utils.clip_grad_norm_(master_list, optim.grad_clip or math.inf)
        optimizer.step()
        if bf16:
            with torch.no_grad():
                torch._foreach_copy_(weights, master_list)
        model.zero_grad()
        setting.losses.append(total)


def deepspeed_alone(setting: Setting) -> None:
    import deepspeed

    from hpc_llm.model.transformer import Block

    model = setting.model()
    if (
        setting.plan.zero_stage == 3
    ):  # as our engine does: else the compiler stops at every weight that is gathered
        deepspeed.utils.set_z3_leaf_modules(model, [Block])
    deepspeed_loop(setting, model)


def deepspeed_loop(setting: Setting, model: torch.nn.Module) -> None:
    import deepspeed

    from hpc_llm.zero import optimizers, patches
    from hpc_llm.zero.engine import deepspeed_settings

    patches.apply_to_process()
    config = setting.config
    need_operator(setting)
    optimizer = optimizers.make(config.optim, list(model.named_parameters()), setting.device.type)
    settings = {
        **deepspeed_settings(config, setting.plan),
        "gradient_clipping": config.optim.grad_clip,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for passes in setting.batches():
        total = torch.zeros((), device=setting.device)
        for tokens, targets in passes:
            loss = engine(tokens, targets) / setting.plan.tokens_per_step
            engine.backward(loss, scale_wrt_gas=False)
            engine.step()
            total += loss.detach()
        setting.losses.append(total)


def need_operator(setting: Setting) -> None:
    """End where DeepSpeed's optimizer is not built: what takes its place would be measured under
    its name.
    """
    from hpc_llm.storage import operators
    from hpc_llm.zero import kernels

    optim = setting.config.optim
    device = "cpu" if optim.offloaded else setting.device.type
    operator = operators.needed(optim.name, device)
    if operator is not None and not kernels.load(operator, device):
        sys.exit(
            f"OperatorError: python -m hpc_llm.build optim={optim.name} "
            f"cluster.device={setting.device.type}"
        )


class TimedBatches(Batches):
    """The run's own loader; every step of the loop begins by asking it."""

    clock: Clock

    def step(self, step: int) -> Passes:
        self.clock.tick()
        return super().step(step)


def ours(setting: Setting) -> None:
    from hpc_llm.trackers import jsonl
    from hpc_llm.training import loop
    from hpc_llm.training.attempt import Attempt
    from hpc_llm.training.stop import StopFlag
    from hpc_llm.zero.engine import Engine

    config = setting.config
    plan = setting.plan
    layout = RunLayout(setting.folder / "run")
    need_operator(setting)
    layout.make_folders()
    number = claim(layout)
    attempt = Attempt(
        number=number,
        rank=0,
        checkpoints=layout.checkpoints,
        metrics=layout.metrics,
        tracker_folder=layout.tracker_folder,
        known_steps=0,
        check_fence=Fence(layout, number).check,
        record=lambda *_, **__: None,
        skipped=(),
        divergence=layout.divergence(number),
        beat=lambda *_: None,
    )
    engine = Engine(
        config,
        plan,
        lambda: build_model(config, plan),
        setting.device,
        rank=0,
    )
    pinned = setting.device.type == "cuda"
    with TimedBatches(
        stream.training(config, plan, setting.folder), setting.share, pinned=pinned
    ) as batches:
        batches.clock = setting.clock
        metrics = loop.open_metrics(config, plan, attempt, setting.device, 0)
        try:
            loop.Trainer(
                config, plan, attempt, engine, batches, [], StopFlag(hold_on_sigterm=False)
            ).train(0, metrics)
        finally:
            metrics.close()
            setting.losses += [row["loss"] for row in jsonl.read(layout.metrics)]


class Theirs(torch.nn.Module):
    """The same architecture in transformers, asked as its users ask it: it shifts the labels
    itself.
    """

    def __init__(self, setting: Setting, *, compiled: bool = False) -> None:
        super().__init__()
        model = transformers_model(setting)
        self.model: Any = torch.compile(model) if compiled else model

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return loss * targets.numel()


def transformers_model(setting: Setting) -> torch.nn.Module:
    """Its model of the same architecture, on the device; SystemExit where it has none."""
    with (
        setting.device
    ):  # it draws its weights there: for 3 B parameters one core would take half a minute
        return _transformers_model(setting)


def _transformers_model(setting: Setting) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, MptConfig, MptForCausalLM

    model = setting.config.model
    made: torch.nn.Module
    if (model.positions, model.norm, model.ffn) == ("rope", "rmsnorm", "swiglu"):
        made = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=model.d_model,
                num_attention_heads=model.n_heads,
                num_key_value_heads=model.kv_heads,
                num_hidden_layers=model.n_layers,
                intermediate_size=model.ffn_size,
                vocab_size=model.vocab_size,
                max_position_embeddings=model.max_seq_len,
                rms_norm_eps=model.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
                tie_word_embeddings=model.tied,
                use_cache=False,
            )
        )
    elif (model.positions, model.ffn) == ("alibi", "gelu"):
        made = MptForCausalLM(
            MptConfig(
                d_model=model.d_model,
                n_heads=model.n_heads,
                n_layers=model.n_layers,
                vocab_size=model.vocab_size,
                max_seq_len=model.max_seq_len,
                attn_config={"attn_pdrop": 0},
            )
        )
    else:
        sys.exit(f"transformers has no model like {model.name}")
    if setting.plan.activation_checkpointing:
        made.gradient_checkpointing_enable()  # type: ignore[operator]
    return made.to(setting.device).train()


def transformers_trainer(setting: Setting) -> None:
    """As its documentation has it: fp32 weights, and autocast where it is bf16."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config = setting.config
    losses = setting.losses
    clock = setting.clock
    with Batches(stream.training(config, setting.plan, setting.folder), setting.share) as batches:
        steps = [
            [tokens.clone() for tokens, _ in batches.step(step)]
            for step in range(setting.num_steps)
        ]
        rows = [row for passes in steps for tokens in passes for row in tokens]

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

    class Recorded(Trainer):
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            found = super().compute_loss(*given, **more)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    arguments = TrainingArguments(
        output_dir=str(setting.folder / "trainer"),
        per_device_train_batch_size=setting.plan.micro_batch,
        gradient_accumulation_steps=setting.plan.accumulation,
        max_steps=setting.num_steps,
        learning_rate=config.optim.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=config.optim.grad_clip,
        bf16=config.train.precision == "bf16",
        use_cpu=setting.device.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    Recorded(
        transformers_model(setting), arguments, train_dataset=data, callbacks=[Ticks()]
    ).train()  # type: ignore[arg-type]


ARMS: dict[str, Callable[[Setting], None]] = {
    "bare": bare,
    "deepspeed": deepspeed_alone,
    "ours": ours,
    "transformers": lambda setting: bare_loop(setting, Theirs(setting)),
    "transformers-compiled": lambda setting: bare_loop(setting, Theirs(setting, compiled=True)),
    "transformers-trainer": transformers_trainer,
    "transformers-deepspeed": lambda setting: deepspeed_loop(setting, Theirs(setting)),
    "transformers-deepspeed-compiled": lambda setting: deepspeed_loop(
        setting, Theirs(setting, compiled=True)
    ),
}
NO_DEEPSPEED = ("bare", "transformers", "transformers-compiled", "transformers-trainer")


def measure(case: Case, folder: Path) -> dict[str, Any]:
    arm, _, kept = case.arm.partition("+")
    theirs = arm.startswith("transformers")
    os.environ["DS_ACCELERATOR"] = case.device
    # What imports take is no part of a model's memory, and no device is needed for them.
    if arm not in NO_DEEPSPEED:
        import hpc_llm.training.loop  # noqa: F401
    if theirs:
        from transformers import LlamaForCausalLM, MptForCausalLM, Trainer  # noqa: F401
    if case.device == "cuda":
        importlib.import_module("torch._inductor.compile_fx")
    print("\n@ready 0", flush=True)
    if not sys.stdin.readline():
        sys.exit("whoever started this is gone")
    device = devices.choose_device(case.device, 0)
    if kept or not theirs:
        devices.keep_memory(device)
    num_steps = case.warmup + case.most_turns * (case.turn_steps + 1) + 1
    words = [
        *case.words,
        f"train.duration={num_steps + 1}steps",
        *gpu_words(case.device),
        f"data.out={folder}",
    ]
    config = compose(words)
    tokens = num_steps * config.train.global_batch * config.train.seq_len + 1
    make_shards(folder, config.data.name, config.model.vocab_size, tokens)
    plan = make_plan(config, facts(folder))
    clock = Clock(device, case)
    setting = Setting(config, plan, device, clock, num_steps, folder, [])
    distributed: Any = contextlib.nullcontext()
    if arm not in NO_DEEPSPEED:
        distributed = devices.process_group(RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0), device)
    before = memory(device)["peak"]
    watched = Alive() if case.alive else contextlib.nullcontext()
    with watched as alive, distributed, contextlib.suppress(Enough):
        ARMS[arm](setting)
    measured = memory(device)
    if device.type == "cpu":
        measured["peak"] -= before
    if alive is not None:
        measured["alive"] = alive.peak
    return {
        "losses": [float(loss) for loss in setting.losses[: case.warmup]],
        "memory": measured,
        "plan": {**asdict(plan), "memory_total": plan.memory.total, "tensors": plan.memory.tensors},
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        outcome = measure(Case(**json.loads(sys.argv[1])), Path(name))
    print("\n@result", json.dumps(outcome), flush=True)
    os._exit(0)  # at once: the next arm waits for the device
