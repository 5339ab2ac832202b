"""Blocks are compiled, once for all of them, and the loss; both compute the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpc_llm.model.build import build_model
from hpc_llm.model.compiler import uncompiled
from hpc_llm.model.init import initialise
from hpc_llm.model.transformer import Transformer
from tests.configs import make_config

pytestmark = pytest.mark.slow
WORDS = (
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=3",
    "model.vocab_size=128",
    "train.seq_len=16",
)


def model(compiled: bool, chunk: int | None) -> Transformer:
    config = make_config(*WORDS)
    plan = SimpleNamespace(
        activation_checkpointing=True, attention="sdpa", compile=compiled, loss_chunk=chunk
    )
    made = build_model(config, plan)
    for name, parameter in made.named_parameters():
        initialise(name, parameter, config.model, seed=1)
    return made


@pytest.mark.parametrize("chunk", [None, 16])
def test_one_compiled_block_serves_all_and_gives_the_same_loss_and_gradients(
    chunk: int | None,
) -> None:
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 128, (2, 2, 16))
    torch.compiler.reset()
    counters.clear()
    losses = []
    for made in (compiled := model(True, chunk), plain := model(False, chunk)):
        losses.append(made(tokens, targets))
        losses[-1].backward()
    assert counters["stats"]["unique_graphs"] == 2  # a block and the loss
    torch.testing.assert_close(*losses)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_within_uncompiled_hooks_of_parts_are_called_and_afterwards_a_block_is_compiled_again() -> (
    None
):
    made = model(True, None)
    tokens = torch.randint(0, 128, (2, 16))
    met = []
    compiled = made.blocks[1].forward
    hook = made.blocks[1].norm_1.register_forward_hook(lambda *_: met.append("norm_1"))
    with uncompiled(made):
        made.logits(tokens)
    assert met == ["norm_1"]
    assert made.blocks[1].forward is compiled
    hook.remove()


COMPILED = """
import torch
from hpc_llm.model.compiler import compile_forward
assert " " in torch.__file__, torch.__file__
module = torch.nn.Linear(4, 4)
compile_forward(module)
x = torch.ones(2, 4)
expected = torch.nn.functional.linear(x, module.weight, module.bias).exp()
torch.testing.assert_close(module(x).exp(), expected)
gelu = torch.nn.GELU()
compile_forward(gelu)
torch.testing.assert_close(gelu(x), torch.nn.functional.gelu(x))
"""


def test_torch_and_its_cache_may_lie_below_a_folder_with_a_space(tmp_path: Path) -> None:
    packages = tmp_path / "site packages"
    packages.mkdir()
    (packages / "torch").symlink_to(Path(torch.__file__).parent)
    cache = tmp_path / "its cache"
    path = os.pathsep.join([str(packages), str(Path(__file__).resolve().parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", COMPILED], env=environment, check=True)
    assert list(cache.rglob("*.so"))
