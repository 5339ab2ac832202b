"""A search by results: the watchdog tells Optuna what trials came to, and submits those that it
asks for next.

A search is one file, <root>/.searches/<sweep>.json, with the space as it was composed when it
began; its trials are runs of that sweep like any others, called trial-0000, trial-0001, … A trial
is written down before it is submitted, and submitted until its ledger says so: killed anywhere, the
next pass goes on. Words that are typed again change `search.*` alone: losses of another training
are never told to the same study.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.config.building import changes, to_dict
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.config.search_space import ASKED, Dimension, Space, compose_space
from hpc_llm.recovery import look
from hpc_llm.runs import event_names, freeze
from hpc_llm.runs.freeze import identity
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.story import SUBMISSIONS
from hpc_llm.slurm.client import SlurmError
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.locks import Busy, locked, one_at_a_time
from hpc_llm.submission import cluster
from hpc_llm.submission.examine import unplannable
from hpc_llm.submission.sampler import Trial, ask, require
from hpc_llm.trackers import jsonl

_MOST_KEYS = 4  # named in a line


@dataclass
class Search:
    """A search as its file has it. asked: key → value of each trial; ended: the losses of those
    that are over.
    """

    sweep: str
    root: Path
    space: Space
    words: list[str]
    site: dict[str, str]  # of the environment that it began in
    python: str  # that began it
    asked: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[int, float | None] = field(default_factory=dict)
    cancelled: list[int] = field(
        default_factory=list
    )  # by their user, since the words were last typed

    def config(self, chosen: Mapping[str, Any], number: int) -> RunConfig:
        """The run of a trial."""
        config = cluster.with_site_defaults(self.space.config(chosen), self.site)
        run = dataclasses.replace(
            config.run, root=str(self.root), sweep=self.sweep, name=f"trial-{number:04d}"
        )
        python = config.cluster.python or self.python
        return dataclasses.replace(
            config, run=run, cluster=dataclasses.replace(config.cluster, python=python)
        )

    def layout(self, number: int) -> RunLayout:
        return RunLayout(self.root / self.sweep / f"trial-{number:04d}")

    def save(self) -> None:
        write_atomic(
            RootLayout(self.root).search(self.sweep),
            json.dumps(dataclasses.asdict(self), default=str, indent=1),
        )


@contextlib.contextmanager
def begin(
    words: list[str], environment: Mapping[str, str]
) -> Iterator[tuple[Search, list[RunConfig]]]:
    """The search that `words` describe, begun or as far as it has come, and its trials to submit
    now.

    Written down, and nobody else's meanwhile, unless it is a dry run or a test. InputError where
    the space cannot be composed, another search has the name, or not one of its first trials can be
    planned.
    """
    require()
    space = compose_space(words)
    first = space.config(_corner(space.dimensions))
    if first.cluster.launcher == "local":
        raise InputError(
            "search.trials: a search needs a cluster, and a watchdog that submits its trials"
        )
    sweep = first.run.sweep or first.run.name
    if sweep is None:
        raise InputError(
            "run.name: missing; a search needs a name, for its trials come one after another"
        )
    site = {name: value for name, value in environment.items() if name.startswith("SBATCH_")}
    found = Search(sweep, freeze.root_of(first), space, words, site, sys.executable)
    path = RootLayout(found.root).search(sweep)
    kept = not (first.dry_run or first.test_only)
    if kept:
        freeze.make_folder(found.root, first.run.group)
        path.parent.mkdir(exist_ok=True)
    busy = f"run.name={sweep}: another submission or a watchdog is at this search"
    with one_at_a_time(path.with_suffix(".lock"), busy) if kept else contextlib.nullcontext():
        if path.exists():
            found = _taken_up(_read(path), found)
        wanted = next_trials(found)
        ended = dict(found.ended)
        lines = list(_drop_unsound(found, wanted))
        if wanted and lines and not _sound_ones(found, wanted):
            raise InputError(lines)
        for line in lines:
            print(f"{sweep}: {line}", file=sys.stderr)
        if kept and (found.asked or ended):
            found.save()
        yield found, _sound_ones(found, wanted)


def _taken_up(earlier: Search, typed: Search) -> Search:
    """The search as it began, with the `search.*` that is typed now: InputError where the words
    mean another one.
    """
    what = (
        f"run.name={typed.sweep}: {RootLayout(typed.root).search(typed.sweep)} is a search of "
        "another"
    )
    if earlier.space.dimensions != typed.space.dimensions:
        raise InputError(f"{what} space; choose another run.name, or remove it")
    pairs = [
        (earlier.config(chosen, 0), typed.config(chosen, 0))
        for chosen in _corners(typed.space.dimensions)
    ]
    if changed := other_training(pairs):
        raise InputError(
            f"{what} training ({_some(changed)}); choose another run.name, or remove it"
        )
    if late := ignored_changes(pairs):
        print(f"{typed.sweep}: goes on as it began; without effect: {_some(late)}", file=sys.stderr)
    space = earlier.space.asked_as(typed.space)
    return dataclasses.replace(earlier, space=space, words=typed.words, cancelled=[])


def _some(changed: Sequence[str]) -> str:
    return "; ".join([*changed[:_MOST_KEYS], *(["…"] if len(changed) > _MOST_KEYS else [])])


def next_trials(search: Search) -> list[RunConfig]:
    """Those to submit now: asked for and never submitted, and as many new ones as there is place
    for.

    None where the user has cancelled the newest ones.
    """
    trials = list(_trials(search))
    limits = search.config(_corner(search.space.dimensions), 0)
    assert limits.search.trials is not None
    newest = [number for number, _ in enumerate(trials) if _sent(search, number)][
        -limits.search.parallel :
    ]
    if newest and set(newest) <= set(search.cancelled):
        return []
    unsent = [
        number
        for number, _ in enumerate(trials)
        if number not in search.ended and not _sent(search, number)
    ]
    running = sum(trial.running for trial in trials)
    num = min(limits.search.parallel - running, limits.search.trials - len(trials))
    if num > 0:
        unsent += range(len(trials), len(trials) + num)
        search.asked += ask(search.space.dimensions, trials, num, limits.run.seed)
    return [search.config(search.asked[number], number) for number in unsent]


def go_on(root: Path) -> Iterator[str]:
    """Submit the next trials of every search below `root`; a line for each that got any, or could
    not.
    """
    for path in sorted(RootLayout(root).searches.glob("*.json")):
        try:
            with locked(path.with_suffix(".lock"), timeout_s=0):
                yield from _next(_read(path))
        except Busy:
            continue  # its user is at it
        except SlurmError:
            raise
        except (
            Exception
        ) as error:  # whatever is wrong with one search, all other runs need their watchdog
            yield f"{path.stem}: passed over ({error})"


def _next(search: Search) -> Iterator[str]:
    before = (len(search.asked), len(search.ended))
    wanted = next_trials(search)
    for line in _drop_unsound(search, wanted):
        yield f"{search.sweep}: {line}"
    if before != (len(search.asked), len(search.ended)):
        search.save()
    if sound := _sound_ones(search, wanted):
        mask = os.umask(0o077)
        try:
            cluster.submit(sound, search.words)
        finally:
            os.umask(mask)
        yield f"{search.sweep}: {len(sound)} trials submitted, {len(search.ended)} ended"
        first = search.layout(0)
        newest = search.layout(_number(sound[-1]))
        if first.code.exists() and first.code_hash() != newest.code_hash():
            yield f"{search.sweep}: {newest.name} runs another version of hpc_llm than {first.name}"


def _drop_unsound(search: Search, configs: Sequence[RunConfig]) -> Iterator[str]:
    """Trials that cannot be (too large for the memory, for example) have ended without a loss; a
    line for each.
    """
    for config in configs:
        if problems := unplannable(config):
            search.ended[_number(config)] = None
            yield f"{config.run.name} cannot be: {'; '.join(problems)}"


def _sound_ones(search: Search, configs: Sequence[RunConfig]) -> list[RunConfig]:
    return [config for config in configs if _number(config) not in search.ended]


def _number(config: RunConfig) -> int:
    return int(str(config.run.name).rpartition("-")[2])


def _trials(search: Search) -> Iterator[Trial]:
    """Every trial that was asked for; what has ended meanwhile is noted."""
    for number, chosen in enumerate(search.asked):
        if number not in search.ended and _sent(search, number):
            run = look.read_record(search.layout(number)).facts
            if run.final == event_names.CANCELLED and not run.completed:
                search.cancelled.append(number)
            if run.completed or run.final is not None:
                search.ended[number] = (
                    _heldout_loss(search.layout(number)) if run.completed else None
                )
        yield Trial(chosen, search.ended.get(number), running=number not in search.ended)


def _sent(search: Search, number: int) -> bool:
    """Whether the trial was submitted, or waits for room."""
    layout = search.layout(number)
    if not layout.config.exists():
        return False
    story = look.read_record(layout).story
    return bool(story.attempts) or story.last_sending(*SUBMISSIONS, event_names.WAITING) is not None


def _heldout_loss(layout: RunLayout) -> float | None:
    losses = [
        float(row["heldout_loss"]) for row in jsonl.read(layout.metrics) if "heldout_loss" in row
    ]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def _corner(space: Sequence[Dimension]) -> dict[str, Any]:
    return _corners(space)[0]


def _corners(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """One choice for each combination of presets."""
    columns = [
        one.choices if one.is_group else [one.choices[0] if one.choices else one.low]
        for one in space
    ]
    return [
        dict(zip((one.key for one in space), values, strict=True))
        for values in itertools.product(*columns)
    ]


def _read(path: Path) -> Search:
    plain = json.loads(path.read_text())
    dimensions = [Dimension(**one) for one in plain["space"]["dimensions"]]
    space = Space(dimensions, plain["space"]["templates"])
    ended = {int(number): loss for number, loss in plain["ended"].items()}
    return Search(**{**plain, "root": Path(plain["root"]), "space": space, "ended": ended})


# -- The words of a search typed again: in which keys they mean another training, and which of them
# come too late.


def other_training(pairs: Iterable[tuple[RunConfig, RunConfig]]) -> list[str]:
    """`key=before, now value` of what decides what is learned, over all pairs of a trial then and
    now.
    """
    return list(
        dict.fromkeys(
            line for then, now in pairs for line in changes(identity(then), identity(now))
        )
    )


def ignored_changes(pairs: Iterable[tuple[RunConfig, RunConfig]]) -> list[str]:
    """The same of every other key, but for those that each typing of the words says anew."""
    lines = (line for then, now in pairs for line in changes(to_dict(then), to_dict(now)))
    return [
        line
        for line in dict.fromkeys(lines)
        if line.partition("=")[0].partition(".")[0] not in ASKED
    ]
