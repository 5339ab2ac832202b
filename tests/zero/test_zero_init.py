"""What ZeRO 3 makes of a model while it is built: its weights are parts, and nothing else is
another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest

from hpc_llm.model.build import build_model
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training import device as devices
from tests.configs import make_config

pytestmark = pytest.mark.slow

FAR = 1024  # tokens: bf16 counts to 256


@pytest.fixture
def one_rank() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        device = devices.choose_device("cpu", 0)
        with devices.process_group(RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0), device):
            yield


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("heads", [4, 6])
def test_biases_of_alibi_are_exact_far_away_too(heads: int) -> None:
    """DeepSpeed's Init makes every new float tensor a bf16 one, positions too."""
    import deepspeed

    from hpc_llm.zero import patches

    patches.apply_to_process()
    config = make_config(
        f"model.n_heads={heads}",
        "model.d_model=96",
        f"model.max_seq_len={FAR}",
        f"train.seq_len={FAR}",
    )
    plan = SimpleNamespace(
        activation_checkpointing=False, attention="sdpa", compile=False, loss_chunk=None
    )
    with deepspeed.zero.Init(
        config_dict_or_path={
            "train_batch_size": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 3},
        }
    ):
        found = build_model(config, plan).constant
    wanted = build_model(config, plan).constant
    assert found is not None and wanted is not None
    assert found.float().equal(wanted)
