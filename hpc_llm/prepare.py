"""`python -m hpc_llm.prepare data=… [key=value…]`: train a tokenizer and tokenise a corpus into shards.

`python -m hpc_llm.prepare inspect=DIR [step=K rows=N]`: what step K of a run, or of prepared data, trains on.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig


def main(words: list[str] | None = None) -> int:
    """Prepare what `words` say; 0 when the data is there, 2 with a line per mistake where the input is wrong."""
    return verbs.run("prepare", _prepare, words)


def _prepare(words: list[str]) -> int:
    if any(word.startswith("inspect=") for word in words):
        return _inspect(words)
    from hpc_llm.config import checks
    from hpc_llm.config.compose import compose
    from hpc_llm.data.manifest import MANIFEST, directory_for
    from hpc_llm.runs import preflight
    from hpc_llm.storage.files import restrict_access

    config = compose(words)
    if problems := [*checks.problems(config), *preflight.unknown_homes(config)]:
        raise InputError(problems)
    directory = directory_for(config)
    known = (directory / MANIFEST).exists()
    restrict_access(config.run.group)
    started = time.monotonic()
    prepare_shown(config, directory)
    seconds = time.monotonic() - started
    print(f"already prepared: {directory}" if known else f"prepared in {seconds:.1f} s: {directory}")
    _summary(directory, words)
    return 0


def _inspect(words: list[str]) -> int:
    from hpc_llm.data import inspect
    from hpc_llm.launch import inspected

    asked = inspected.ask(words)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in inspect.lines(asked.config, asked.plan, asked.directory, asked.step, asked.rows, width):
        print(line)
    return 0


def prepare_shown(config: RunConfig, directory: Path) -> None:
    """data.pipeline.prepare with its progress shown; nothing is printed where the data is there already."""
    from hpc_llm.data.pipeline import prepare  # numpy and sentencepiece: only now, so that mistakes show at once

    with _progress() as on_progress:
        prepare(config, directory, on_progress)
    pack_shown(config, directory)


def pack_shown(config: RunConfig, directory: Path) -> None:
    """data.packs.ensure with its progress shown, where the run packs its documents."""
    if config.data.packing != "best_fit":
        return
    from hpc_llm.data import packs

    with _progress() as on_progress:
        packs.ensure(directory, config.train.seq_len, on_progress)


def _summary(directory: Path, words: list[str]) -> None:
    from hpc_llm.data.manifest import REJECTS, read_manifest

    made = read_manifest(directory)
    documents, tokens = made.documents, made.tokens
    rejected = f"{documents['rejects']:,} rejected" + (f" (see {REJECTS})" if documents["rejects"] else "")
    kept = f"{documents['train']:,} to train on, {documents['heldout']:,} held out"
    print(f"  documents        {documents['in']:,}: {kept}, {rejected}")
    print(f"  tokens           {tokens['train']:,} to train on, {tokens['heldout']:,} held out")
    print(f"  vocabulary       {made.vocab_size:,} pieces, {made.bytes_per_token:.2f} bytes per token")
    print(f"  unigram entropy  {made.unigram_entropy:.3f} nats per token: the loss that training must beat")
    print(f"next: {shlex.join(['python', '-m', 'hpc_llm.submit', *words])}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar where a person watches, else one line a stage."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                print(f"{stage} …" if total == 0 else f"{stage}: {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)
                seen.add(stage)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, int] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=None)
            progress.update(tasks[stage], completed=done, total=total or None)  # type: ignore[arg-type]

        yield bar


if __name__ == "__main__":
    sys.exit(main())
