"""Everything that is checked before a run is frozen, and its plan.

All mistakes are reported at once. A run is planned once, here, and travels on as a PlannedRun; it
is planned again only where its data has been prepared in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hpc_llm.checkpoint.errors import ManifestError, OtherFormat
from hpc_llm.checkpoint.manifest import folder_of, newest_step, read, steps
from hpc_llm.config import computing, hints
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import manifest, recipe
from hpc_llm.planning.choice import Saved
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.runs import extension, identity, preflight
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.submission import machine
from hpc_llm.text import sources

_MOST_PROBLEMS = 20  # lines that a person reads; a sweep can have thousands
_Item = TypeVar("_Item")


def examine(config: RunConfig) -> PlannedRun:
    """`config` planned, as far as that is known before its data is prepared.

    InputError with everything that is wrong.
    """
    return examine_all([config])[0]


def examine_all(configs: Sequence[RunConfig]) -> list[PlannedRun]:
    """All runs planned; what they have in common (root, quota, data) is checked once.

    InputError with the mistakes of all of them.
    """
    runs = _collect(configs, _Checks().examine)
    _require_room(runs)
    return runs


def examine_again(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The same runs; those whose data was prepared in between are examined again.

    InputError with the mistakes of all of them.
    """
    again = _collect(runs, _Checks().examine_again)
    if again != list(runs):
        _require_room(again)
    return again


def unplannable(config: RunConfig) -> list[str]:
    """What keeps this run from being planned, whatever the machine's folders and queues say."""
    try:
        data = known_data(config)
    except InputError:
        data = None  # the matter of all runs that read it
    try:
        _plan(config, identity.layout_for(config), data)
    except InputError as error:
        return list(error.problems)
    return []


def _collect(items: Sequence[_Item], examine: Callable[[_Item], PlannedRun]) -> list[PlannedRun]:
    """What `examine` makes of each item; InputError with the mistakes of all, each of them once."""
    runs = []
    problems: dict[str, None] = {}
    for item in items:
        try:
            runs.append(examine(item))
        except InputError as error:
            problems.update(dict.fromkeys(error.problems))
    _refuse(list(problems))
    return runs


def _require_room(runs: Sequence[PlannedRun]) -> None:
    """InputError where the checkpoints of all runs together find no room."""
    if not runs[0].config.dry_run:
        _refuse(preflight.room_problems(runs, lambda run: steps(run.checkpoints)))


def _refuse(problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:_MOST_PROBLEMS]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"… and {len(problems) - _MOST_PROBLEMS} more")
    raise InputError(shown)


class _Checks:
    """Checks of one submission, which looks at each folder and at each data only once."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str | None], list[str]] = {}
        self._data: dict[str, DataFacts | InputError | None] = {}

    def examine(self, config: RunConfig) -> PlannedRun:
        """The run planned; InputError with everything that is wrong with it."""
        if problems := preflight.unknown_homes(config):
            raise InputError(problems)
        return self._examine(config, identity.layout_for(config))

    def examine_again(self, run: PlannedRun) -> PlannedRun:
        """The run, planned again unless it was planned with the data that is there now."""
        with contextlib.suppress(InputError):  # which the examination reports beside the rest
            if _is_planned_with(run.plan, self._known_data(run.config)):
                return run
        return self._examine(run.config, run.layout)

    def _examine(self, config: RunConfig, layout: RunLayout) -> PlannedRun:
        problems = preflight.python_problems(config)
        data = None
        plan = None
        if not config.dry_run:
            problems += self._folder_problems(config, layout)
        try:
            data = self._known_data(config)
        except InputError as error:
            problems += error.problems
        try:
            plan = _plan(config, layout, data)
        except InputError as error:
            problems += error.problems
        if plan is not None and not config.dry_run:
            problems += _length_problems(config, plan, layout)
        if problems or plan is None:
            raise InputError(problems)
        return PlannedRun(config, plan, layout)

    def _folder_problems(self, config: RunConfig, layout: RunLayout) -> list[str]:
        place = (config.run.root, config.run.group)
        if place not in self._places:
            self._places[place] = preflight.place_problems(config)
        if problems := self._places[place]:
            return problems
        from hpc_llm.submission import dependency  # it reads ledgers, which a dry run does not

        return preflight.name_problems(config, layout) + dependency.problems(config, layout)

    def _known_data(self, config: RunConfig) -> DataFacts | None:
        key = json.dumps(
            [config.run.root, config.dry_run, config.train.seq_len, dataclasses.asdict(config.data)]
        )
        if key not in self._data:
            try:
                self._data[key] = known_data(config)
            except InputError as error:
                self._data[key] = error
        data = self._data[key]
        if isinstance(data, InputError):
            raise data
        return data


def known_data(config: RunConfig) -> DataFacts | None:
    """Facts of the run's prepared data; None if the run may prepare it itself, or for a dry run.

    InputError where it must be prepared first, or is other data than the run asks for.
    """
    directory = recipe.directory_for(config)
    if os.path.exists(directory / manifest.MANIFEST):  # noqa: PTH110 – Path.exists raises where one may not look
        recipe.check_recipe(manifest.read_manifest(directory), config.data, directory)
        return _counted(config, directory)
    if config.data.name == "stdlib":
        return None
    corpus = sources.sources(config.data)
    missing = []
    for source in corpus:
        if not os.path.exists(source.path):  # noqa: PTH110 – as above
            missing.append(f"{source.key}={source.path}: no such file or folder")
    if missing:
        raise InputError(missing)
    if config.dry_run:
        return None
    words = [f"data={config.data.name}", *(f"{source.key}={source.path}" for source in corpus)]
    what = str(config.data.source) if len(corpus) == 1 else "this mix"
    raise InputError(
        f"data={config.data.name}: {what} is not prepared for this tokenizer; type: "
        f"{hints.command('prepare', *words)} (with the other keys given here)"
    )


def _counted(config: RunConfig, directory: Path) -> DataFacts:
    """Facts with the number of samples that the run makes of the data, and the share of padding.

    Without them where the data is not packed yet.
    """
    facts = manifest.facts(directory)
    prepared = manifest.read_manifest(directory)
    seq_len = config.train.seq_len
    if seq_len < 1:
        return facts  # the plan refuses it
    if config.data.packing != "best_fit":
        return dataclasses.replace(
            facts,
            samples=manifest.num_samples(prepared, "train", seq_len),
            heldout_samples=manifest.num_samples(prepared, "heldout", seq_len),
        )
    from hpc_llm.data import packs  # imports numpy, only if needed

    with contextlib.suppress(OSError, ValueError):
        return dataclasses.replace(
            facts,
            samples=packs.num_rows(directory, prepared, "train", seq_len),
            heldout_samples=packs.num_rows(directory, prepared, "heldout", seq_len),
            padding=packs.wasted(directory, prepared, "train", seq_len),
        )
    return facts


def _length_problems(config: RunConfig, plan: RunPlan, layout: RunLayout) -> list[str]:
    try:
        extension.of(config.optim, plan, layout)
    except InputError as error:
        return list(error.problems)
    return []


def _is_planned_with(plan: RunPlan, data: DataFacts | None) -> bool:
    """Whether the plan was made with this data; None is data that is still to be prepared."""
    if data is None:
        return not plan.data_digests
    return (plan.data_directory, plan.data_digests, plan.unigram_entropy, plan.padding) == (
        data.directory,
        data.digests,
        data.unigram_entropy,
        data.padding,
    )


def _plan(config: RunConfig, layout: RunLayout, data: DataFacts | None) -> RunPlan:
    """make_plan with what this machine and the root know."""
    here, memory = machine.as_here(config)
    experience = _experience(config, computing.choose(here), computing.compiles(here))
    saved = _saved(layout.checkpoints)
    return make_plan(here, data, memory_available=memory, experience=experience, saved=saved)


def _saved(checkpoints: Path) -> Saved | None:
    """The newest checkpoint of the run if it is there already.

    One that cannot be read is left for the ranks to judge. InputError: another version wrote it.
    """
    try:
        step = newest_step(checkpoints)
        if step == 0:
            return None
        checkpoint = read(folder_of(checkpoints, step))
    except OtherFormat as error:
        raise InputError(
            f"{error}: submit from a checkout of that version, or choose another run.name"
        ) from None
    except (OSError, ManifestError):
        return None
    return Saved(step, checkpoint.zero_stage, checkpoint.stages)


def _experience(config: RunConfig, attention: str, compiled: bool) -> Experience:
    root = RootLayout(Path(config.run.root).expanduser())
    if not os.path.isdir(root.experience):  # noqa: PTH112 – Path.is_dir raises where one may not look
        return NONE
    from hpc_llm.runs.experience import Remembered  # only if a run has left some

    return Remembered(root, config, attention, compiled)
