"""Muon under ZeRO is the plain algorithm on whole matrices, whatever the ranks and passes; it
resumes to the bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpc_llm.model.init import initialise
from hpc_llm.model.transformer import Transformer
from hpc_llm.planning.schedule import learning_rate
from hpc_llm.zero.parameter_groups import is_hidden, parameter_groups
from tests.chaos.local_runs import STEPS as RUN_STEPS
from tests.chaos.local_runs import run
from tests.configs import make_config
from tests.zero.engine_ranks import Case, trained
from tests.zero.engine_worker import SEQ_LEN, STEPS, global_batch, plan_for

MUON = ("optim=muon", "optim.muon_lr=0.02", "optim.lr=0.01", "model.tied=false")
# Losses near 5 nats; Newton-Schulz in fp32 on a CPU magnifies differences of the last bit. bf16
# rounds as in test_exact_step.py.
TOLERANCE = {"fp32": 1e-4, "bf16": 4e-3}


@cache
def losses(world_size: int) -> dict[Case, list[list[float]]]:
    micro = {1: (8, 3), 2: (4, 3)}[world_size]
    return trained(
        world_size,
        [(name, stage, m, *MUON) for name in TOLERANCE for stage in (1, 2) for m in micro],
    )


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five steps of the quintic Newton-Schulz iteration, on the matrix as it is."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


@cache
def plain_losses() -> list[float]:
    """The same training in plain torch, in one big batch."""
    config, plan = plan_for("fp32", 1, 8, 1, *MUON)
    optim = config.optim
    model = Transformer(config.model, SEQ_LEN)
    named = list(model.named_parameters())
    for name, parameter in named:
        initialise(name, parameter, config.model, config.run.seed)
    hidden = [parameter for name, parameter in named if is_hidden(name, parameter)]
    assert len(hidden) == 4 * config.model.n_layers
    rest = parameter_groups(
        [(name, p) for name, p in named if not is_hidden(name, p)], optim.weight_decay
    )
    adam = torch.optim.AdamW(rest, betas=(optim.betas[0], optim.betas[1]), eps=optim.eps)
    momenta = [torch.zeros_like(parameter) for parameter in hidden]
    found = []
    for step in range(STEPS):
        rate = learning_rate(optim, step, STEPS, plan.warmup_steps)
        for group in adam.param_groups:
            group["lr"] = rate
        tokens, targets = global_batch(step)
        loss = torch.nn.functional.cross_entropy(
            model.logits(tokens).flatten(0, 1), targets.flatten()
        )
        model.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for parameter, momentum in zip(hidden, momenta, strict=True):
                assert parameter.grad is not None
                momentum.lerp_(parameter.grad, 0.05)
                update = orthogonalised(parameter.grad.lerp(momentum, 0.95))
                muon_rate = rate * 0.02 / 0.01
                parameter.mul_(1 - muon_rate * optim.weight_decay).sub_(muon_rate * update)
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_muon_under_zero_gives_the_losses_of_the_plain_algorithm(
    precision: str, world_size: int
) -> None:
    cases = {case: value for case, value in losses(world_size).items() if case[0] == precision}
    assert len(cases) == 4
    for case, found in cases.items():
        here = torch.tensor(found)[:, 0]
        torch.testing.assert_close(
            here,
            torch.tensor(plain_losses()),
            rtol=TOLERANCE[precision],
            atol=0,
            msg=lambda text, case=case: f"{case}: {text}",
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "stage", "ranks"), [("bf16", 1, 2), ("bf16", 2, 1), ("fp32", 2, 2)]
)
def test_a_killed_run_ends_bit_for_bit_as_an_undisturbed_one(
    tmp_path: Path, precision: str, stage: int, ranks: int
) -> None:
    words = (
        *MUON,
        f"train.precision={precision}",
        f"train.zero_stage={stage}",
        f"cluster.gpus_per_node={ranks}",
    )
    plain = run(tmp_path, "plain", *words)
    assert plain.status == 0, plain.output
    hurt = run(
        tmp_path, "hurt", *words, faults=[{"attempt": 1, "rank": 0, "kind": "kill", "step": 5}]
    )
    assert hurt.status == 0, hurt.output
    assert hurt.named("resumed")[-1]["step"] == 4
    assert hurt.losses == plain.losses
    assert sorted(hurt.losses) == list(range(1, RUN_STEPS + 1))
    assert hurt.final_state == plain.final_state


def test_hidden_matrices_are_muons_and_all_else_is_adams() -> None:
    config = make_config("model=llama-tiny", "model.bias=true", "model.positions=learned").model
    names = [
        name
        for name, parameter in Transformer(config, 8).named_parameters()
        if is_hidden(name, parameter)
    ]
    kinds = ("attn.Wqkv", "attn.out_proj", "ffn.gate_up_proj", "ffn.down_proj")
    assert names == [
        f"blocks.{layer}.{kind}.weight" for layer in range(config.n_layers) for kind in kinds
    ]


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    config = make_config("model=llama-tiny", "model.bias=true", "model.positions=learned").model
    named = list(Transformer(config, 8).named_parameters())
    decayed, rest = parameter_groups(named, 0.1)
    names = {id(parameter): name for name, parameter in named}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in rest["params"]} == {
        name
        for name in names.values()
        if "norm" in name or name.endswith(("bias", "wte.weight", "wpe.weight"))
    }
