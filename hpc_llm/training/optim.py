"""Optimizers by name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import OptimConfig
from hpc_llm.storage import operators
from hpc_llm.training import muon, ops
from hpc_llm.training.parameter_groups import Named, parameter_groups

log = logging.getLogger(__name__)


def make(config: OptimConfig, named: Named, device: str, compiled: bool = False) -> torch.optim.Optimizer:
    """The optimizer `config.name` for `device` (cuda, cpu); compiled: it may use torch's compiler.

    Without its compiled operator an Adam falls back to torch's fused AdamW and says so; Lion has no such
    fallback: InputError.
    """
    if config.name == "muon":
        return muon.make(config, named, device, compiled)
    groups = parameter_groups(named, config.weight_decay)
    common: dict[str, Any] = {"lr": config.lr, "betas": tuple(config.betas)}
    adam = {**common, "eps": config.eps}
    operator = operators.needed(config.name, device)
    if operator is not None and not ops.load(operator, device):
        advice = "build it with `python -m hpc_llm.build` where a C++ compiler is"
        if config.name.endswith("_lion"):
            raise InputError(
                f"optim={config.name}: DeepSpeed's {operator} is not built; {advice}, or choose optim=torch_adam"
            )
        log.warning("DeepSpeed's %s is not built: using torch's fused AdamW instead; %s", operator, advice)
        operator = None
    # DeepSpeed's Adam for CPUs keeps beta^step as a running product but restarts it with pow() after a resume:
    # the last bit differs. An empty call at step 0 before every step makes it always use pow().
    if operator == "fused_adam":
        from deepspeed.ops.adam import FusedAdam

        fused = FusedAdam(groups, adam_w_mode=True, **adam)
        if device == "cpu":
            nothing = [[torch.empty(0)] for _ in range(4)]
            forget = (0, torch.zeros(1, dtype=torch.int32), nothing, config.lr, *config.betas, config.eps, 0, 1, 1, 0.0)
            _before_each_step(fused, lambda: fused.multi_tensor_adam(*forget))
        return fused
    if operator == "cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        offloaded = DeepSpeedCPUAdam(groups, adamw_mode=True, **adam)
        none = [torch.empty(0) for _ in range(4)]
        start = (offloaded.opt_id, 0, config.lr, *config.betas, config.eps, 0.0, True, *none)
        _before_each_step(offloaded, lambda: offloaded.ds_opt_adam.adam_update(*start))
        return offloaded
    if operator == "fused_lion":
        from deepspeed.ops.lion import FusedLion

        return FusedLion(groups, **common)
    if operator == "cpu_lion":
        from deepspeed.ops.lion import DeepSpeedCPULion

        return DeepSpeedCPULion(groups, **common)
    return torch.optim.AdamW(groups, fused=True, **adam)


@contextlib.contextmanager
def own_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep each group's own hyperparameters and step counts while DeepSpeed loads a universal checkpoint.

    At ZeRO 3 it gives all groups those of the first (weight decay on norms), and all states a shared step tensor, which
    then counts as many steps as there are states (0.19.8, stage3.py).
    """
    own = [
        {key: value for key, value in group.items() if key not in ("params", "step")}
        for group in optimizer.param_groups
    ]
    yield
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _before_each_step(optimizer: torch.optim.Optimizer, call: Callable[[], object]) -> None:
    def hook(*_: object) -> None:  # torch would take a return value for the step's new arguments
        call()

    optimizer.register_step_pre_hook(hook)
