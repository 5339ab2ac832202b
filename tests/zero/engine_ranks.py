"""Starts engine_worker.py once per rank; and the same training in plain torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.chaos import warm_ranks

WORKER = Path(__file__).with_name("engine_worker.py")
Case = tuple[Any, ...]  # precision, ZeRO stage, micro-batch, further words


def trained(
    world_size: int, cases: Sequence[Case], what: str = "losses", device: str = "cpu"
) -> dict[Case, list[Any]]:
    """Case → per step [loss, gradient norm], or `what` else engine_worker has; all in one set of
    processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONWARNINGS": "ignore",
    }
    environment["ENGINE_WORKER_DEVICE"] = device
    if device == "cpu":
        environment |= warm_ranks.environment(str(WORKER))
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                str(rank),
                str(world_size),
                str(port),
                json.dumps(cases),
                what,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(world_size)
    ]
    output = [process.communicate(timeout=300)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks), output
    found = json.loads(output[0].split("RESULT ")[1].splitlines()[0])
    return dict(zip(cases, found, strict=True))


@cache
def plain_losses(*words: str, precision: str = "fp32") -> list[list[float]]:
    """The same training in plain torch, in one big batch: AdamW, clipping, no DeepSpeed and no loop
    of ours.

    In bf16 the model is a copy, rounded for each step, of fp32 weights that are trained.
    """
    from hpc_llm.model.init import initialise
    from hpc_llm.model.transformer import Transformer
    from hpc_llm.planning.schedule import learning_rate
    from tests.zero.engine_worker import SEQ_LEN, STEPS, global_batch, plan_for

    config, plan = plan_for(precision, 1, 8, 1, *words)
    model = Transformer(config.model, SEQ_LEN, attention=plan.attention)
    for name, parameter in model.named_parameters():
        initialise(name, parameter, config.model, config.run.seed)
    master = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if precision == "bf16":
        model.bfloat16()
    decayed = [p for name, p in master.items() if p.dim() == 2 and name != "wte.weight"]
    rest = [p for name, p in master.items() if p.dim() == 1 or name == "wte.weight"]
    groups = [
        {"params": decayed, "weight_decay": config.optim.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=tuple(config.optim.betas), eps=config.optim.eps)
    found = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step, STEPS, plan.warmup_steps)
        model.load_state_dict(master)
        model.zero_grad()
        tokens, targets = global_batch(step)
        loss = torch.nn.functional.cross_entropy(
            model.logits(tokens).flatten(0, 1).float(), targets.flatten()
        )
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            master[name].grad = parameter.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(master.values(), config.optim.grad_clip)
        optimizer.step()
        found.append([loss.item(), norm.item()])
    return found
