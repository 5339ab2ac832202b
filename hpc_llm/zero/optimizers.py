"""The optimizer of a run, made by its name in the configuration."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hpc_llm.config import hints
from hpc_llm.config.errors import InputError
from hpc_llm.config.optimizers import Optimizer, optimizer
from hpc_llm.config.schema import OptimConfig
from hpc_llm.zero import kernels, start_up
from hpc_llm.zero.parameter_groups import Named, is_hidden, parameter_groups

log = logging.getLogger(__name__)


def make(
    config: OptimConfig, named: Named, device: str, compiled: bool = False
) -> torch.optim.Optimizer:
    """The optimizer `config.name` for `device` (cuda, cpu); compiled: it may use torch's compiler.

    InputError if there is none of that name. Without its compiled operator an Adam falls back to
    torch's fused AdamW and says so; Lion has no such fallback: InputError.
    """
    row = optimizer(config.name)
    constructor = row.constructor(device)
    kernel = row.kernel(device)
    if kernel is not None and not kernels.load(kernel, device):
        constructor = _fallback(row, kernel)
    return CONSTRUCTORS[constructor](config, named, device, compiled)


def _fallback(row: Optimizer, kernel: str) -> str:
    """What replaces an optimizer whose kernel is not built; InputError if nothing does."""
    build = hints.command("build", f"optim={row.name}")
    advice = f"build it with `{build}` where a C++ compiler is"
    if row.fallback is None:
        raise InputError(
            f"optim={row.name}: DeepSpeed's {kernel} is not built; {advice}, or choose "
            "optim=torch_adam"
        )
    log.warning(
        "DeepSpeed's %s is not built: using torch's fused AdamW instead; %s", kernel, advice
    )
    return row.fallback


def make_fused_adam(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """DeepSpeed's FusedAdam (AdamW)."""
    from deepspeed.ops.adam import FusedAdam

    groups = parameter_groups(named, config.weight_decay)
    fused = FusedAdam(groups, adam_w_mode=True, **_of_adam(config))
    if device == "cpu":
        _restart_powers_of_fused(fused, config)
    return fused


def make_cpu_adam(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """DeepSpeed's AdamW in host memory."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    groups = parameter_groups(named, config.weight_decay)
    offloaded = DeepSpeedCPUAdam(groups, adamw_mode=True, **_of_adam(config))
    _restart_powers_of_offloaded(offloaded, config)
    return offloaded


def make_fused_lion(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """DeepSpeed's FusedLion."""
    from deepspeed.ops.lion import FusedLion

    groups = parameter_groups(named, config.weight_decay)
    return FusedLion(groups, **_of_lion(config))


def make_cpu_lion(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """DeepSpeed's Lion in host memory."""
    from deepspeed.ops.lion import DeepSpeedCPULion

    groups = parameter_groups(named, config.weight_decay)
    return DeepSpeedCPULion(groups, **_of_lion(config))


def make_torch_adam(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """torch's fused AdamW."""
    groups = parameter_groups(named, config.weight_decay)
    return torch.optim.AdamW(groups, fused=True, **_of_adam(config))


def _of_lion(config: OptimConfig) -> dict[str, Any]:
    """Lion's arguments."""
    return {"lr": config.lr, "betas": tuple(config.betas)}


def _of_adam(config: OptimConfig) -> dict[str, Any]:
    """Adam's arguments."""
    return {**_of_lion(config), "eps": config.eps}


@contextlib.contextmanager
def own_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, loading a universal checkpoint leaves each group its own hyperparameters and steps.

    At ZeRO 3 it gives all groups those of the first (weight decay on norms), and all states a
    shared step tensor, which then counts as many steps as there are states (0.19.8, stage3.py).
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


def _restart_powers_of_fused(optimizer: Any, config: OptimConfig) -> None:
    """Make FusedAdam on a CPU compute beta^step with pow() at every step.

    DeepSpeed's Adams for CPUs keep beta^step as a running product, but restart it with pow() after
    a resume: the last bit differs. An empty call at step 0 before every step makes them always use
    pow().
    """
    nothing = [[torch.empty(0)] for _ in range(4)]
    no_overflow = torch.zeros(1, dtype=torch.int32)
    step = 0
    adamw = 1
    bias_correction = 1
    weight_decay = 0.0
    forget = (
        0,
        no_overflow,
        nothing,
        config.lr,
        *config.betas,
        config.eps,
        step,
        adamw,
        bias_correction,
        weight_decay,
    )
    _before_each_step(optimizer, lambda: optimizer.multi_tensor_adam(*forget))


def _restart_powers_of_offloaded(optimizer: Any, config: OptimConfig) -> None:
    """Make DeepSpeedCPUAdam compute beta^step with pow() at every step, as above."""
    nothing = [torch.empty(0) for _ in range(4)]
    step = 0
    weight_decay = 0.0
    bias_correction = True
    forget = (
        optimizer.opt_id,
        step,
        config.lr,
        *config.betas,
        config.eps,
        weight_decay,
        bias_correction,
        *nothing,
    )
    _before_each_step(optimizer, lambda: optimizer.ds_opt_adam.adam_update(*forget))


def _before_each_step(optimizer: torch.optim.Optimizer, call: Callable[[], object]) -> None:
    def hook(*_: object) -> None:  # torch would take a return value for the step's new arguments
        call()

    optimizer.register_step_pre_hook(hook)


def make_muon(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """Muon for the hidden matrices, AdamW for the rest (kellerjordan.github.io/posts/muon).

    DeepSpeed recognises Muon by the optimizer's class, and orthogonalises inside ZeRO, where the
    matrices are whole. A group's `lr_factor` multiplies the schedule's rate. What it cannot do is
    refused by the rules on the configuration.
    compiled: whether torch's compiler may be used. On a CPU it is not: compiling takes longer than
    it saves.
    """
    compiling = start_up.compiling_never
    if compiled and device != "cpu":
        compiling = start_up.compiling_later
    with compiling():
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
    assert config.muon_lr is not None and config.muon_momentum is not None
    hidden: list[nn.Parameter] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        parameter.use_muon = is_hidden(name, parameter)  # type: ignore[attr-defined]
        if parameter.use_muon:  # type: ignore[attr-defined]
            hidden.append(parameter)
        else:
            rest.append((name, parameter))
    muon: dict[str, Any] = {
        "params": hidden,
        "use_muon": True,
        "lr": config.muon_lr,
        "lr_factor": config.muon_lr / config.lr,
        "momentum": config.muon_momentum,
        "weight_decay": config.weight_decay,
    }
    adam: dict[str, Any] = {
        "use_muon": False,
        "lr": config.lr,
        "betas": tuple(config.betas),
        "eps": config.eps,
    }
    adam_groups = parameter_groups(rest, config.weight_decay)
    return MuonWithAuxAdam([muon, *({**group, **adam} for group in adam_groups)])


Constructor = Callable[[OptimConfig, Named, str, bool], torch.optim.Optimizer]
# By the kernel that runs, or by the optimizer's name where it is torch's own.
CONSTRUCTORS: dict[str, Constructor] = {
    "fused_adam": make_fused_adam,
    "cpu_adam": make_cpu_adam,
    "fused_lion": make_fused_lion,
    "cpu_lion": make_cpu_lion,
    "torch_adam": make_torch_adam,
    "muon": make_muon,
}
