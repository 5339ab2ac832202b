"""run.depends_on: the run, or all runs of the sweep, that must be complete before this one begins."""

from __future__ import annotations

from pathlib import PurePath

from hpc_llm.config.schema import RunConfig
from hpc_llm.runs import freeze, ledger
from hpc_llm.runs.layout import RunLayout, SweepLayout


def problems(config: RunConfig) -> list[str]:
    """What can be checked before submission: it must be below the same root, and be another run."""
    name = config.run.depends_on
    if name is None:
        return []
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not (waits_for := runs(config)):
        return [
            f"run.depends_on={name}: no run or sweep of that name lies in {freeze.root_of(config)}; submit it first, "
            "or give its path below run.root (a run's name, SWEEP or SWEEP/RUN)"
        ]
    if freeze.layout_for(config) in waits_for:
        return [f"run.depends_on={name}: the run would wait for itself"]
    return []


def runs(config: RunConfig) -> list[RunLayout]:
    """The runs that it names; none if it is not set."""
    path = freeze.root_of(config) / str(config.run.depends_on)
    return [RunLayout(path)] if RunLayout(path).config.exists() else SweepLayout(path).runs()


def complete(run: RunLayout) -> bool:
    return ledger.is_complete(ledger.read(run.ledger))
