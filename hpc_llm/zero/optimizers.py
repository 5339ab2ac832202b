"""Optimizers by name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import OptimConfig
from hpc_llm.storage import operators
from hpc_llm.zero import kernels, start_up

log = logging.getLogger(__name__)


def make(
    config: OptimConfig, named: Named, device: str, compiled: bool = False
) -> torch.optim.Optimizer:
    """The optimizer `config.name` for `device` (cuda, cpu); compiled: it may use torch's compiler.

    Without its compiled operator an Adam falls back to torch's fused AdamW and says so; Lion has no
    such fallback: InputError.
    """
    if config.name == "muon":
        return make_muon(config, named, device, compiled)
    groups = parameter_groups(named, config.weight_decay)
    common: dict[str, Any] = {"lr": config.lr, "betas": tuple(config.betas)}
    adam = {**common, "eps": config.eps}
    operator = operators.needed(config.name, device)
    if operator is not None and not kernels.load(operator, device):
        advice = "build it with `python -m hpc_llm.build` where a C++ compiler is"
        if config.name.endswith("_lion"):
            raise InputError(
                f"optim={config.name}: DeepSpeed's {operator} is not built; {advice}, or choose "
                "optim=torch_adam"
            )
        log.warning(
            "DeepSpeed's %s is not built: using torch's fused AdamW instead; %s", operator, advice
        )
        operator = None
    # DeepSpeed's Adam for CPUs keeps beta^step as a running product but restarts it with pow()
    # after a resume: the last bit differs. An empty call at step 0 before every step makes it
    # always use pow().
    if operator == "fused_adam":
        from deepspeed.ops.adam import FusedAdam

        fused = FusedAdam(groups, adam_w_mode=True, **adam)
        if device == "cpu":
            nothing = [[torch.empty(0)] for _ in range(4)]
            forget = (
                0,
                torch.zeros(1, dtype=torch.int32),
                nothing,
                config.lr,
                *config.betas,
                config.eps,
                0,
                1,
                1,
                0.0,
            )
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
    """Keep each group's own hyperparameters and step counts while DeepSpeed loads a universal
    checkpoint.

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


def _before_each_step(optimizer: torch.optim.Optimizer, call: Callable[[], object]) -> None:
    def hook(*_: object) -> None:  # torch would take a return value for the step's new arguments
        call()

    optimizer.register_step_pre_hook(hook)


# -- Muon (kellerjordan.github.io/posts/muon) for hidden matrices, AdamW for the rest, as DeepSpeed
# runs it under ZeRO.
#
# DeepSpeed recognises Muon by the optimizer's class and orthogonalises inside ZeRO, where the
# matrices are whole.


def make_muon(
    config: OptimConfig, named: Named, device: str, compiled: bool
) -> torch.optim.Optimizer:
    """The optimizer; config refuses what it cannot do. A group's `lr_factor` multiplies the
    schedule's lr.

    compiled: whether torch's compiler may be used. On a CPU it is not: that takes longer than it
    saves.
    """
    with start_up.compiling_later() if compiled and device != "cpu" else start_up.compiling_never():
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
    assert config.muon_lr is not None and config.muon_momentum is not None
    for name, parameter in named:
        parameter.use_muon = is_hidden(name, parameter)  # type: ignore[attr-defined]
    hidden: dict[str, Any] = {
        "params": [parameter for name, parameter in named if is_hidden(name, parameter)],
        "use_muon": True,
        "lr": config.muon_lr,
        "lr_factor": config.muon_lr / config.lr,
        "momentum": config.muon_momentum,
        "weight_decay": config.weight_decay,
    }
    rest = [(name, parameter) for name, parameter in named if not is_hidden(name, parameter)]
    adam: dict[str, Any] = {
        "use_muon": False,
        "lr": config.lr,
        "betas": tuple(config.betas),
        "eps": config.eps,
    }
    return MuonWithAuxAdam(
        [hidden, *({**group, **adam} for group in parameter_groups(rest, config.weight_decay))]
    )


# -- Which parameters an optimizer treats alike.


Named = Sequence[tuple[str, nn.Parameter]]
_TABLES = ("wte.weight", "wpe.weight")  # looked up, not multiplied, even if tied


def parameter_groups(named: Named, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and embeddings do not. Groups in a fixed order, empty ones left
    out.

    A parameter counts as a matrix by its full shape, even if ZeRO-3 holds only a part of it.
    """
    decayed = [parameter for name, parameter in named if is_matrix(name, parameter)]
    rest = [parameter for name, parameter in named if not is_matrix(name, parameter)]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2 and not name.endswith(_TABLES)


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix inside the model: neither an embedding nor the output matrix."""
    return is_matrix(name, parameter) and not name.endswith("lm_head.weight")
