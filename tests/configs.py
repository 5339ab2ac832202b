"""Configurations for tests: composed as a user's command line is, and composed once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from hpc_llm.config.compose import compose
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.runs.identity import layout_for
from hpc_llm.runs.planned import PlannedRun

CONF = Path(__file__).resolve().parent.parent / "conf"


@cache
def make_config(*words: str) -> RunConfig:
    """The frozen configuration of `words`, for example `make_config("model=mpt-7b",
    "train.zero_stage=1")`.
    """
    return compose(list(words))


def planned(config: RunConfig, plan: RunPlan | None = None) -> PlannedRun:
    """The run of `config` as an examination makes it, with its own plan unless one is given."""
    if plan is None:
        plan = make_plan(config, None)
    return PlannedRun(config, plan, layout_for(config))


def presets(group: str) -> list[str]:
    """Names of the shipped presets of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def slurm_clusters() -> list[str]:
    """Names of the shipped Slurm clusters."""
    return [name for name in presets("cluster") if _cluster(name)["launcher"] == "slurm"]


def _cluster(name: str) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((CONF / "cluster" / f"{name}.yaml").read_text())
    return loaded
