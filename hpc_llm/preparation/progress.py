"""Preparation as the user sees it: its progress and its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_llm.config.errors import NoRoom
from hpc_llm.config.printable import printable, steered
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import manifest
from hpc_llm.data.manifest import Manifest, SourceFacts
from hpc_llm.storage.files import lack_of_room

if TYPE_CHECKING:
    from hpc_llm.data.packs import OnProgress

_EVERY_S = 10.0  # lines in a log
_BAR = 40  # characters of the longest bar of the histogram


def prepare_shown(config: RunConfig, directory: Path) -> None:
    """Prepare the data of a run, with progress; nothing is printed if that is done already."""
    # This imports numpy and sentencepiece: only now, so that mistakes show at once.
    from hpc_llm.preparation.pipeline import prepare

    with room_for(directory), progress() as report:
        prepare(config, directory, report, say)
    pack_shown(config, directory)


def pack_shown(config: RunConfig, directory: Path) -> None:
    """Pack the documents of prepared data, with progress, if the run packs them."""
    if config.data.packing != "best_fit":
        return
    from hpc_llm.data import packs

    with room_for(directory), progress() as report:
        packs.ensure(directory, config.train.seq_len, report)


@contextmanager
def room_for(directory: Path) -> Iterator[None]:
    """NoRoom, with the path and the remedy, where there is no room for what is prepared."""
    try:
        yield
    except Exception as error:
        full = lack_of_room(error)
        if full is None:
            raise
        where = full.filename or directory
        raise NoRoom(
            f"{where}: {full.strerror}; free space or quota there, or choose another data.out; the "
            "same command goes on from what is done"
        ) from error


def say(line: str) -> None:
    """A line for the user amid the progress."""
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[OnProgress]:
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
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(file=steered(sys.stderr))
    ) as shown:
        tasks: dict[str, int] = {}
        begun: dict[str, float] = {}

        def bar(stage: str, done: int, total: int, tokens: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=None, rate="")
                begun[stage] = time.monotonic()
            rate = _rate(tokens, time.monotonic() - begun[stage])
            shown.update(tasks[stage], completed=done, total=total or None, rate=rate)  # type: ignore[arg-type]

        yield bar


def summary(made: Manifest) -> str:
    """What was prepared, for reading."""
    documents = made.documents
    tokens = made.tokens
    kept = f"{documents['train']:,} to train on, {documents['heldout']:,} held out"
    rejected = f"{documents['rejects']:,} rejected"
    if documents["rejects"]:
        rejected += f" (see {manifest.REJECTS})"
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
    ]
    if len(made.sources) > 1:
        lines += _source_lines(made.sources)
    lines += _histogram(made)
    return "\n".join(f"  {line}" for line in lines)


def _vocabulary(made: Manifest) -> str:
    pieces = f"{made.vocab_size:,} pieces"
    wanted = made.recipe.get("vocab_size")
    trained = made.recipe.get("tokenizer") is None
    if trained and wanted is not None and made.vocab_size < wanted:
        return f"{pieces} (of {wanted:,} wanted: the text yields no more)"
    return pieces


def _source_lines(sources: dict[str, SourceFacts]) -> Iterator[str]:
    width = max(map(len, sources))
    for name, source in sources.items():
        documents = source.documents
        yield (
            f"  {name:<{width}}  {source.tokens['train']:,} tokens to train on, "
            f"{documents['in']:,} documents, {documents['rejects']:,} rejected, "
            f"{documents['duplicates']:,} duplicates, {source.filtered:,} filtered"
        )


def _histogram(made: Manifest) -> Iterator[str]:
    """Documents by length, one line for each power of two."""
    counts = _documents_by_length(made)
    most = max(counts, default=0)
    label = "lengths in tokens"
    for power, count in enumerate(counts):
        if count:
            bar = "▇" * (_BAR * count // most)
            yield f"{label:<17}{2**power:>10,} – {2 ** (power + 1) - 1:<10,}  {count:>10,} {bar}"
            label = ""


def _documents_by_length(made: Manifest) -> list[int]:
    """Over all sources, [i]: documents of 2^i to 2^(i+1) − 1 tokens."""
    counts: list[int] = []
    for source in made.sources.values():
        counts += [0] * (len(source.lengths) - len(counts))
        for power, count in enumerate(source.lengths):
            counts[power] += count
    return counts


class _Lines:
    """Progress for a log."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = 0.0
        self._printed = 0.0
        self._done_before = 0  # bytes, by a preparation that was killed

    def __call__(self, stage: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage = stage
            self._began = now
            self._printed = now
            self._done_before = done
            say(f"{stage}: {total / 1e6:,.1f} MB" if total else f"{stage} …")
        elif total and (now - self._printed > _EVERY_S or (done == total and tokens)):
            self._printed = now
            say(self._line(done, total, tokens, now - self._began))

    def _line(self, done: int, total: int, tokens: int, passed_s: float) -> str:
        line = f"{self._stage}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        rate = _rate(tokens, passed_s)
        if rate:
            line += f", {rate}"
        if done >= total:
            return f"{line} in {_duration(passed_s)}"
        left_s = passed_s * (total - done) / max(done - self._done_before, 1)
        return f"{line}, {_duration(left_s)} left"


def _rate(tokens: int, seconds: float) -> str:
    if not tokens or seconds <= 0:
        return ""
    return f"{tokens / seconds:,.0f} tokens/s"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
