"""Runs of any version can be looked after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_llm.config.building import to_dict
from hpc_llm.config.schema import RecoveryConfig
from hpc_llm.runs import frozen_sections
from hpc_llm.runs.layout import RunLayout
from tests.configs import make_config

CLUSTER = {"name": "a", "launcher": "slurm", "nodes": 2, "gpus_per_node": 4}


def test_what_is_frozen_is_what_is_read(tmp_path: Path) -> None:
    config = make_config(
        "cluster=a100x64", "recovery.max_hangs=7", "halving.rungs=[100steps]", "run.sweep=s"
    )
    layout = RunLayout(tmp_path)
    layout.config.write_text(json.dumps(to_dict(config)))
    found = frozen_sections.read(layout)
    assert (found.run, found.cluster, found.recovery, found.halving) == (
        config.run,
        config.cluster,
        config.recovery,
        config.halving,
    )


def test_keys_of_other_versions_are_passed_over_or_have_their_defaults() -> None:
    old = frozen_sections.of(
        {
            "run": {"max_gpu_hours": 5},
            "cluster": {**CLUSTER, "flash": True},
            "recovery": {"max_hangs": 7},
        }
    )
    assert (old.run.max_gpu_hours, old.recovery, old.halving.rungs) == (
        5.0,
        RecoveryConfig(max_hangs=7),
        [],
    )
    assert (old.cluster.world_size, old.cluster.held_gpus) == (8, 8)


@pytest.mark.parametrize(
    "damaged", [{}, [], None, {"cluster": 3}, {"cluster": {**CLUSTER, "nodes": "two"}}]
)
def test_what_is_no_configuration_is_refused(damaged: object) -> None:
    with pytest.raises(ValueError, match="no configuration of a run"):
        frozen_sections.of(damaged)
