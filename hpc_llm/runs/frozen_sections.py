"""The sections of a frozen configuration that the watchdog reads, whichever version wrote it.

Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hpc_llm.config import building
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ClusterConfig, HalvingConfig, RecoveryConfig, RunSection
from hpc_llm.runs.layout import RunLayout


@dataclass(frozen=True)
class FrozenSections:
    """The sections that say where a run is and what is done when it fails."""

    run: RunSection
    cluster: ClusterConfig
    recovery: RecoveryConfig
    halving: HalvingConfig


def read(layout: RunLayout) -> FrozenSections:
    """The sections of a frozen run. OSError or ValueError if it is none, or a damaged one."""
    return of(json.loads(layout.config.read_text()))


def of(config: Any) -> FrozenSections:
    """The sections of a whole configuration as JSON has it. ValueError if it is none.

    A key that it lacks has its default, and one that this version does not know is passed over.
    """
    try:
        sections = {}
        for name, kind in building.field_types(FrozenSections).items():
            sections[name] = building.known(kind, config.get(name, {}))
        return building.build(FrozenSections, sections)
    except (InputError, AttributeError, TypeError) as error:
        raise ValueError(f"no configuration of a run: {error}") from None
