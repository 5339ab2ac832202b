"""Initial weights: a function of the seed and the parameter's name alone."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from hpc_llm.config.schema import ModelConfig

_RESIDUAL = ("out_proj.weight", "down_proj.weight")  # the two that write into the residual stream


def initialise_all(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """`initialise` for all parameters of `model`.

    On as many threads as torch uses, since drawing uses only one.
    """
    longest_first = sorted(model.named_parameters(), key=lambda named: -named[1].numel())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        drawn = [
            pool.submit(initialise, name, parameter, config, seed)
            for name, parameter in longest_first
        ]
    for future in drawn:
        future.result()


@torch.no_grad()
def initialise(name: str, parameter: Tensor, config: ModelConfig, seed: int) -> None:
    """Fill `parameter` in place: ones for norms, zeros for biases, else normal(0, init_std).

    With scale_residual_init projections into the residual stream are scaled by 1/sqrt(2·n_layers)
    (GPT-2). Drawn on the CPU, so that every device starts from the same numbers.
    """
    if parameter.dim() == 1:
        is_bias = name.endswith(".bias")
        parameter.fill_(0.0 if is_bias else 1.0)
        return
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    std = config.init_std
    if config.scale_residual_init and name.endswith(_RESIDUAL):
        std = config.init_std / (2 * config.n_layers) ** 0.5
    if parameter.is_cpu and parameter.dtype == torch.float32:  # the same numbers, without a copy
        parameter.normal_(0.0, std, generator=generator)
    else:
        parameter.copy_(torch.normal(0.0, std, parameter.shape, generator=generator))
