"""A search by results as its file has it, <root>/.searches/<sweep>.json."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import RunConfig
from hpc_llm.config.search_space import Dimension, Space
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import write_atomic
from hpc_llm.submission.cluster import with_site_defaults


@dataclass
class Search:
    """A search; its fields are those of its file."""

    sweep: str
    root: Path
    space: Space
    words: list[str]
    site: dict[str, str]  # of the environment that it began in
    python: str  # that began it
    asked: list[dict[str, Any]] = field(default_factory=list)  # key → value of each trial
    ended: dict[int, float | None] = field(default_factory=dict)  # losses of trials that are over
    # Trials that their user has cancelled since the words were last typed.
    cancelled: list[int] = field(default_factory=list)

    def config(self, chosen: Mapping[str, Any], number: int) -> RunConfig:
        """The run of a trial."""
        config = with_site_defaults(self.space.config(chosen), self.site)
        run = dataclasses.replace(
            config.run, root=str(self.root), sweep=self.sweep, name=f"trial-{number:04d}"
        )
        python = config.cluster.python or self.python
        return dataclasses.replace(
            config, run=run, cluster=dataclasses.replace(config.cluster, python=python)
        )

    def corners(self) -> list[dict[str, Any]]:
        """One choice for each combination of presets."""
        return corners(self.space.dimensions)

    def layout(self, number: int) -> RunLayout:
        """Where a trial lies, or will."""
        return RunLayout(self.root / self.sweep / f"trial-{number:04d}")

    def save(self) -> None:
        """Write the file."""
        write_atomic(
            RootLayout(self.root).search(self.sweep),
            json.dumps(dataclasses.asdict(self), default=str, indent=1),
        )


def read(path: Path) -> Search:
    """A search from its file."""
    plain = json.loads(path.read_text())
    dimensions = [Dimension(**dimension) for dimension in plain["space"]["dimensions"]]
    plain["space"] = Space(dimensions, plain["space"]["templates"])
    plain["root"] = Path(plain["root"])
    plain["ended"] = {int(number): loss for number, loss in plain["ended"].items()}
    return Search(**plain)


def corners(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """One choice for each combination of presets, the first value of everything else."""
    keys = []
    columns = []
    for dimension in space:
        keys.append(dimension.key)
        columns.append(_corner_values(dimension))
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]


def _corner_values(dimension: Dimension) -> list[Any]:
    if dimension.is_group:
        return dimension.choices
    if dimension.choices:
        return dimension.choices[:1]
    return [dimension.low]
