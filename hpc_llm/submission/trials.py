"""The trials of a search: which are to be submitted now, and what has become of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hpc_llm.config.schema import RunConfig
from hpc_llm.recovery import run_record
from hpc_llm.runs import event_names
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import SUBMISSIONS
from hpc_llm.submission.examine import unplannable
from hpc_llm.submission.sampler import Trial, ask
from hpc_llm.submission.search_file import Search
from hpc_llm.trackers import jsonl


def next_trials(search: Search) -> list[RunConfig]:
    """The trials to submit now.

    Those that were asked for and never submitted, and as many new ones as there is place for. None
    where the user has cancelled the newest ones.
    """
    trials = list(_trials(search))
    limits = search.config(search.corners()[0], 0)
    assert limits.search.trials is not None
    submitted = [number for number in range(len(trials)) if is_sent(search, number)]
    newest = submitted[-limits.search.parallel :]
    if newest and set(newest) <= set(search.cancelled):
        return []
    unsent = []
    for number in range(len(trials)):
        if number not in search.ended and number not in submitted:
            unsent.append(number)
    running = sum(trial.running for trial in trials)
    num = min(limits.search.parallel - running, limits.search.trials - len(trials))
    if num > 0:
        unsent += range(len(trials), len(trials) + num)
        search.asked += ask(search.space.dimensions, trials, num, limits.run.seed)
    return [search.config(search.asked[number], number) for number in unsent]


def _trials(search: Search) -> Iterator[Trial]:
    """Every trial that was asked for; what has ended meanwhile is noted in the search."""
    for number, chosen in enumerate(search.asked):
        if number not in search.ended and is_sent(search, number):
            layout = search.layout(number)
            run = run_record.read_record(layout).summary
            if run.final == event_names.CANCELLED and not run.completed:
                search.cancelled.append(number)
            if run.completed:
                search.ended[number] = _heldout_loss(layout)
            elif run.final is not None:
                search.ended[number] = None
        yield Trial(chosen, search.ended.get(number), running=number not in search.ended)


def is_sent(search: Search, number: int) -> bool:
    """Whether the trial was submitted, or waits for room."""
    layout = search.layout(number)
    if not layout.config.exists():
        return False
    story = run_record.read_record(layout).story
    return bool(story.attempts) or story.last_sending(*SUBMISSIONS, event_names.WAITING) is not None


def _heldout_loss(layout: RunLayout) -> float | None:
    """The last that was measured; None if there is none, or it is not finite."""
    loss = math.nan
    for row in jsonl.read(layout.metrics):
        loss = float(row.get("heldout_loss", loss))
    return loss if math.isfinite(loss) else None


def drop_unsound(search: Search, configs: Sequence[RunConfig]) -> Iterator[str]:
    """End trials that cannot be (too large for the memory, for example), without a loss.

    A line for each.
    """
    for config in configs:
        problems = unplannable(config)
        if problems:
            search.ended[number_of(config)] = None
            yield f"{config.run.name} cannot be: {'; '.join(problems)}"


def sound_ones(search: Search, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Those that have not ended."""
    return [config for config in configs if number_of(config) not in search.ended]


def number_of(config: RunConfig) -> int:
    """3 of trial-0003."""
    return int(str(config.run.name).rpartition("-")[2])
