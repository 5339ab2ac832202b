"""A search by results: the watchdog tells Optuna what trials came to, and submits those that it asks for next.

A search is one file, <root>/.searches/<sweep>.json, with the space as it was composed when it began; its trials are
runs of that sweep like any others, called trial-0000, trial-0001, … A trial is written down before it is submitted, and
submitted until its ledger says so: killed anywhere, the next pass goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.config.compose import Space, compose_space
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.space import Dimension
from hpc_llm.launch import cluster
from hpc_llm.launch.sampler import Trial, ask, require
from hpc_llm.launch.submission import examine_all
from hpc_llm.recovery import facts
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import write_atomic
from hpc_llm.trackers import jsonl


@dataclass
class Search:
    """A search as its file has it. asked: key → value of each trial; ended: the losses of those that are over."""

    sweep: str
    root: Path
    space: Space
    words: list[str]
    site: dict[str, str]  # of the environment that it began in
    python: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[int, float | None] = field(default_factory=dict)

    def config(self, chosen: Mapping[str, Any], number: int) -> RunConfig:
        """The run of a trial."""
        config = cluster.with_site_defaults(self.space.config(chosen), self.site)
        run = dataclasses.replace(config.run, root=str(self.root), sweep=self.sweep, name=f"trial-{number:04d}")
        python = config.cluster.python or self.python
        return dataclasses.replace(config, run=run, cluster=dataclasses.replace(config.cluster, python=python))

    def layout(self, number: int) -> RunLayout:
        return RunLayout(self.root / self.sweep / f"trial-{number:04d}")

    def save(self) -> None:
        path = RootLayout(self.root).search(self.sweep)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(dataclasses.asdict(self), default=str, indent=1))


def begin(words: list[str], environment: Mapping[str, str]) -> tuple[Search, list[RunConfig]]:
    """The search that `words` describe, begun or as far as it has come, and its trials to submit now.

    Nothing is written. InputError where the space cannot be composed, or another search has the name.
    """
    require()
    space = compose_space(words)
    first = space.config(_corner(space.dimensions))
    if first.cluster.launcher == "local":
        raise InputError("search.trials: a search needs a cluster, and a watchdog that submits its trials")
    sweep = first.run.sweep or first.run.name
    if sweep is None:
        raise InputError("run.name: missing; a search needs a name, for its trials come one after another")
    site = {name: value for name, value in environment.items() if name.startswith("SBATCH_")}
    found = Search(sweep, freeze.root_of(first), space, words, site, sys.executable)
    path = RootLayout(found.root).search(sweep)
    if path.exists():
        earlier = _read(path)
        if earlier.space.dimensions != space.dimensions:
            raise InputError(
                f"run.name={sweep}: {path} is a search of another space; choose another run.name, or remove it"
            )
        found.asked, found.ended = earlier.asked, earlier.ended
    return found, next_trials(found)


def next_trials(search: Search) -> list[RunConfig]:
    """Those to submit now: asked for and never submitted, and as many new ones as there is place for."""
    trials = list(_trials(search))
    unsent = [number for number, _ in enumerate(trials) if number not in search.ended and not _sent(search, number)]
    limits = search.config(_corner(search.space.dimensions), 0)
    assert limits.search.trials is not None
    running = sum(trial.running for trial in trials)
    num = min(limits.search.parallel - running, limits.search.trials - len(trials))
    if num > 0:
        unsent += range(len(trials), len(trials) + num)
        search.asked += ask(search.space.dimensions, trials, num, limits.run.seed)
    return [search.config(search.asked[number], number) for number in unsent]


def go_on(root: Path) -> Iterator[str]:
    """Submit the next trials of every search below `root`; a line for each that got any, or could not."""
    for path in sorted(RootLayout(root).searches.glob("*.json")):
        try:
            yield from _next(_read(path))
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            yield f"{path.stem}: passed over ({error})"


def _next(search: Search) -> Iterator[str]:
    before = (len(search.asked), len(search.ended))
    configs = next_trials(search)
    if configs or before != (len(search.asked), len(search.ended)):
        search.save()
    if sound := list(_sound(search, configs)):
        cluster.submit(sound, search.words, code=_code(search))
        yield f"{search.sweep}: {len(sound)} trials submitted, {len(search.ended)} ended"


def _sound(search: Search, configs: Sequence[RunConfig]) -> Iterator[RunConfig]:
    """Those that can be planned; the others have ended without a loss (too large for the memory, for example)."""
    for config in configs:
        try:
            examine_all([config])
        except InputError:
            search.ended[int(str(config.run.name).rpartition("-")[2])] = None
            search.save()
        else:
            yield config


def _trials(search: Search) -> Iterator[Trial]:
    """Every trial that was asked for; what has ended meanwhile is noted."""
    for number, chosen in enumerate(search.asked):
        if number not in search.ended and _sent(search, number):
            run = facts.read(search.layout(number)).facts
            if run.completed or run.final is not None:
                search.ended[number] = _heldout_loss(search.layout(number)) if run.completed else None
        yield Trial(chosen, search.ended.get(number), running=number not in search.ended)


def _sent(search: Search, number: int) -> bool:
    """Whether the trial was submitted, or waits for room."""
    layout = search.layout(number)
    if not layout.config.exists():
        return False
    record = facts.read(layout)
    return any(event.event in (*facts.SUBMISSIONS, facts.WAITING) for event in record.events)


def _heldout_loss(layout: RunLayout) -> float | None:
    losses = [float(row["heldout_loss"]) for row in jsonl.read(layout.metrics) if "heldout_loss" in row]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def _code(search: Search) -> Path | None:
    """The snapshot that the first trial runs: all have the same."""
    first = search.layout(0).code
    return first.resolve() if first.exists() else None


def _corner(space: Sequence[Dimension]) -> dict[str, Any]:
    return {one.key: one.choices[0] if one.choices else one.low for one in space}


def _read(path: Path) -> Search:
    plain = json.loads(path.read_text())
    dimensions = [Dimension(**one) for one in plain["space"]["dimensions"]]
    space = Space(dimensions, plain["space"]["templates"])
    ended = {int(number): loss for number, loss in plain["ended"].items()}
    return Search(**{**plain, "root": Path(plain["root"]), "space": space, "ended": ended})
