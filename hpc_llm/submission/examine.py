"""Everything that is checked before a run is frozen: all mistakes at once, then the data, then the
plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from hpc_llm.checkpoint.errors import ManifestError
from hpc_llm.checkpoint.manifest import folder_of, newest_step, read, steps
from hpc_llm.config import computing
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import manifest
from hpc_llm.planning.choice import Saved
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.plan import DataFacts, RunPlan, make_plan
from hpc_llm.runs import freeze, preflight
from hpc_llm.runs.experience import Remembered
from hpc_llm.runs.layout import RootLayout
from hpc_llm.submission import dependency, machine
from hpc_llm.text import sources

_MOST_PROBLEMS = 20  # lines that a person reads; a sweep can have thousands


def examine(config: RunConfig) -> RunPlan:
    """The plan of `config` as far as it is known before its data is prepared; InputError with
    everything wrong.
    """
    return examine_all([config])[0]


def examine_all(configs: Sequence[RunConfig]) -> list[RunPlan]:
    """The plans of all runs; what they have in common (root, quota, data) is checked once."""
    look = _Look()
    problems: dict[str, None] = {}
    plans: list[RunPlan] = []
    for config in configs:
        try:
            plans.append(look.plan(config))
        except InputError as error:
            problems.update(dict.fromkeys(error.problems))
    if not problems and not configs[0].dry_run:
        room = preflight.room_problems(
            list(zip(configs, plans, strict=True)), lambda run: steps(run.checkpoints)
        )
        problems.update(dict.fromkeys(room))
    if problems:
        lines = list(problems)
        more = [f"… and {len(lines) - _MOST_PROBLEMS} more"] if len(lines) > _MOST_PROBLEMS else []
        raise InputError(lines[:_MOST_PROBLEMS] + more)
    return plans


def unplannable(config: RunConfig) -> list[str]:
    """What keeps this run from being planned, whatever the machine's folders and queues say."""
    try:
        data = known_data(config)
    except InputError:
        data = None  # the matter of all runs that read it
    try:
        _plan(config, data)
    except InputError as error:
        return list(error.problems)
    return []


class _Look:
    """Checks folders and data, each only once."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str | None], list[str]] = {}
        self._data: dict[str, DataFacts | InputError | None] = {}

    def plan(self, config: RunConfig) -> RunPlan:
        if problems := preflight.unknown_homes(config):
            raise InputError(problems)
        problems = preflight.python_problems(config)
        data = None
        plan = None
        if not config.dry_run:
            problems += self._place(config) or [
                *preflight.name_problems(config),
                *dependency.problems(config),
            ]
        try:
            data = self._known_data(config)
        except InputError as error:
            problems += error.problems
        try:
            plan = _plan(config, data)
        except InputError as error:
            problems += error.problems
        if problems or plan is None:
            raise InputError(problems)
        return plan

    def _place(self, config: RunConfig) -> list[str]:
        where = (config.run.root, config.run.group)
        if where not in self._places:
            self._places[where] = preflight.place_problems(config)
        return self._places[where]

    def _known_data(self, config: RunConfig) -> DataFacts | None:
        key = json.dumps(
            [config.run.root, config.dry_run, config.train.seq_len, dataclasses.asdict(config.data)]
        )
        if key not in self._data:
            try:
                self._data[key] = known_data(config)
            except InputError as error:
                self._data[key] = error
        found = self._data[key]
        if isinstance(found, InputError):
            raise found
        return found


def known_data(config: RunConfig) -> DataFacts | None:
    """Facts of the run's prepared data; None if the run may prepare it itself, or for a dry run."""
    directory = manifest.directory_for(config)
    if os.path.exists(directory / manifest.MANIFEST):  # noqa: PTH110 – Path.exists raises where one may not look
        manifest.check_recipe(manifest.read_manifest(directory), config.data, directory)
        return _counted(config, directory)
    if config.data.name == "stdlib":
        return None
    found = sources.sources(config.data)
    if missing := [each for each in found if not os.path.exists(each.path)]:  # noqa: PTH110
        raise InputError(f"{each.key}={each.path}: no such file or folder" for each in missing)
    if config.dry_run:
        return None
    words = " ".join(f"{each.key}={each.path}" for each in found)
    raise InputError(
        f"data={config.data.name}: {config.data.source if len(found) == 1 else 'this mix'} is not "
        f"prepared for this tokenizer; type: python -m hpc_llm.prepare data={config.data.name} "
        f"{words} (with the other keys given here)"
    )


def _counted(config: RunConfig, directory: Path) -> DataFacts:
    """Facts with the samples that the run makes of the data, and padding; without them if it is not
    packed yet.
    """
    facts = manifest.facts(directory)
    made = manifest.read_manifest(directory)
    seq_len = config.train.seq_len
    if seq_len < 1:
        return facts  # the plan refuses it
    if config.data.packing != "best_fit":
        counts = [manifest.num_samples(made, split, seq_len) for split in ("train", "heldout")]
        return dataclasses.replace(facts, samples=counts[0], heldout_samples=counts[1])
    from hpc_llm.data import packs  # imports numpy, only if needed

    with contextlib.suppress(OSError, ValueError):
        counts = [packs.num_rows(directory, made, split, seq_len) for split in ("train", "heldout")]
        padding = packs.wasted(directory, made, "train", seq_len)
        return dataclasses.replace(
            facts, samples=counts[0], heldout_samples=counts[1], padding=padding
        )
    return facts


def _plan(config: RunConfig, data: DataFacts | None) -> RunPlan:
    """make_plan with what this machine and the root know."""
    here, memory = machine.as_here(config)
    experience = _experience(config, computing.choose(here), computing.compiles(here))
    return make_plan(
        here, data, memory_available=memory, experience=experience, saved=_saved(config)
    )


def _saved(config: RunConfig) -> Saved | None:
    """The newest checkpoint of the run if it is there already; one that cannot be read is the
    ranks' to judge.
    """
    checkpoints = freeze.layout_for(config).checkpoints
    with contextlib.suppress(OSError, ManifestError):
        if step := newest_step(checkpoints):
            found = read(folder_of(checkpoints, step))
            return Saved(step, found.zero_stage, found.stages)
    return None


def _experience(config: RunConfig, attention: str, compiled: bool) -> Experience:
    root = RootLayout(Path(config.run.root).expanduser())
    if not os.path.isdir(root.experience):  # noqa: PTH112 – Path.is_dir raises where one may not look
        return NONE
    return Remembered(root, config, attention, compiled)
