"""Preparation as the user sees it: its progress and its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_llm.config.schema import RunConfig
from hpc_llm.data import manifest

_EVERY_S = 10.0  # lines in a log
_BAR = 40  # characters of the longest bar of the histogram

Report = Callable[[str, int, int, int], None]  # stage, bytes done, bytes in all, tokens


def prepare_shown(config: RunConfig, directory: Path) -> None:
    """data.pipeline.prepare with its progress shown; nothing is printed if the data is already
    prepared.
    """
    from hpc_llm.preparation.pipeline import (
        prepare,
    )  # numpy and sentencepiece: only now, so that mistakes show at once

    with progress() as report:
        prepare(config, directory, report, say)
    pack_shown(config, directory)


def pack_shown(config: RunConfig, directory: Path) -> None:
    """data.packs.ensure with its progress shown, if the run packs its documents."""
    if config.data.packing != "best_fit":
        return
    from hpc_llm.data import packs

    with progress() as report:
        packs.ensure(directory, config.train.seq_len, report)


def say(line: str) -> None:
    """A line for the user amid the progress."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Report]:
    """A bar in a terminal, else a line per stage and one every few seconds."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        tasks: dict[str, int] = {}
        begun: dict[str, float] = {}

        def bar(stage: str, done: int, total: int, tokens: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=None, rate="")
                begun[stage] = time.monotonic()
            rate = _rate(tokens, time.monotonic() - begun[stage])
            shown.update(tasks[stage], completed=done, total=total or None, rate=rate)  # type: ignore[arg-type]

        yield bar


def summary(made: manifest.Manifest) -> str:
    """What was prepared, for reading."""
    documents = made.documents
    tokens = made.tokens
    rejected = f"{documents['rejects']:,} rejected" + (
        f" (see {manifest.REJECTS})" if documents["rejects"] else ""
    )
    kept = f"{documents['train']:,} to train on, {documents['heldout']:,} held out"
    lines = [
        (
            f"documents        {documents['in']:,}: {kept}, {rejected}, "
            f"{documents['duplicates']:,} duplicates"
        ),
        f"tokens           {tokens['train']:,} to train on, {tokens['heldout']:,} held out",
        f"vocabulary       {_vocabulary(made)}, {made.bytes_per_token:.2f} bytes per token",
        (
            f"unigram entropy  {made.unigram_entropy:.3f} nats per token: the loss that training "
            "must beat"
        ),
        *(_sources(made) if len(made.sources) > 1 else []),
        *_histogram(made),
    ]
    return "\n".join(f"  {line}" for line in lines)


def _vocabulary(made: manifest.Manifest) -> str:
    wanted = made.recipe.get("vocab_size")
    fewer = made.recipe.get("tokenizer") is None and wanted is not None and made.vocab_size < wanted
    return f"{made.vocab_size:,} pieces" + (
        f" (of {wanted:,} wanted: the text yields no more)" if fewer else ""
    )


def _sources(made: manifest.Manifest) -> Iterator[str]:
    width = max(map(len, made.sources))
    for name, source in made.sources.items():
        counts = source.documents
        tokens = source.tokens
        out = (
            f"{counts['rejects']:,} rejected, {counts['duplicates']:,} duplicates, "
            f"{source.filtered:,} filtered"
        )
        yield (
            f"  {name:<{width}}  {tokens['train']:,} tokens to train on, {counts['in']:,} "
            f"documents, {out}"
        )


def _histogram(made: manifest.Manifest) -> Iterator[str]:
    """Documents by length, one line for each power of two."""
    lengths = [
        sum(column) for column in _columns([source.lengths for source in made.sources.values()])
    ]
    most = max(lengths, default=0)
    label = "lengths in tokens"
    for power, count in enumerate(lengths):
        if count:
            bar = "▇" * (_BAR * count // most)
            yield f"{label:<17}{2**power:>10,} – {2 ** (power + 1) - 1:<10,}  {count:>10,} {bar}"
            label = ""


def _columns(rows: list[list[int]]) -> Iterator[list[int]]:
    for index in range(max(map(len, rows), default=0)):
        yield [row[index] for row in rows if index < len(row)]


class _Lines:
    """Progress for a log."""

    def __init__(self) -> None:
        self._stage = ""
        self._begun = 0.0
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage = stage
            self._begun = now
            self._said = now
            self._first = done
            say(f"{stage} …" if total == 0 else f"{stage}: {total / 1e6:,.1f} MB")
        elif total and (now - self._said > _EVERY_S or (done == total and tokens)):
            self._said = now
            passed = now - self._begun
            left = passed * (total - done) / max(done - self._first, 1)
            rest = f", {_duration(left)} left" if done < total else f" in {_duration(passed)}"
            say(
                f"{stage}: {done / 1e6:,.1f} of {total / 1e6:,.1f} "
                f"MB{_rate(tokens, passed, ', ')}{rest}"
            )


def _rate(tokens: int, seconds: float, before: str = "") -> str:
    return f"{before}{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
