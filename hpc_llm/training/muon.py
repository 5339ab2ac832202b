"""Muon (kellerjordan.github.io/posts/muon) for hidden matrices, AdamW for the rest, as DeepSpeed runs it under ZeRO.

DeepSpeed recognises Muon by the optimizer's class and orthogonalises inside ZeRO, where the matrices are whole.
"""

from __future__ import annotations

from typing import Any

import torch

from hpc_llm.config.schema import OptimConfig
from hpc_llm.training import startup
from hpc_llm.training.parameter_groups import Named, is_hidden, parameter_groups


def make(config: OptimConfig, named: Named, device: str, compiled: bool) -> torch.optim.Optimizer:
    """The optimizer; config refuses what it cannot do. A group's `lr_factor` multiplies the schedule's lr.

    compiled: whether torch's compiler may be used. On a CPU it is not: that takes longer than it saves.
    """
    with startup.compiling_later() if compiled and device != "cpu" else startup.compiling_never():
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
    adam: dict[str, Any] = {"use_muon": False, "lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    return MuonWithAuxAdam([hidden, *({**group, **adam} for group in parameter_groups(rest, config.weight_decay))])
