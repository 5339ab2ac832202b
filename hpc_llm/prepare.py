"""`python -m hpc_llm.prepare data=… [+cluster=NAME] [key=value…]`: from a corpus to shards.

It trains a tokenizer, unless one is given, and tokenises the corpus.

`python -m hpc_llm.prepare inspect=DIR [step=K rows=N]`: what step K of a run, or of prepared data,
trains on.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from hpc_llm.config import hints, verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import MANIFEST, read_manifest
from hpc_llm.data.recipe import directory_for
from hpc_llm.preparation.progress import room_for
from hpc_llm.runs import preflight
from hpc_llm.storage.files import restrict_access


def main(argv: list[str] | None = None) -> int:
    """Prepare what `argv` describes.

    0 when the data is there, 2 with a line per mistake where the input is wrong.
    """
    if argv is None:
        argv = sys.argv[1:]
    if argv and argv[0].startswith("join="):  # a task of the array that this very verb submitted
        return verbs.run("prepare", _join, argv, hydra=False)
    return verbs.run("prepare", _prepare, argv)


def _prepare(argv: list[str]) -> int:
    if any(word.startswith("inspect=") for word in argv):
        return _inspect(argv)
    from hpc_llm.config import checks  # not at the top: a task of the array needs no Hydra
    from hpc_llm.config.compose import compose

    config = compose(argv)
    problems = [*checks.problems(config), *preflight.unknown_homes(config)]
    problems += preflight.group_problems(config.run.group)
    if problems:
        raise InputError(problems)
    restrict_access(config.run.group)
    directory = Path(os.path.abspath(directory_for(config)))  # noqa: PTH100 – resolve() would follow links
    if config.cluster.launcher == "slurm":
        return _on_cluster(config, directory, argv)
    if config.dry_run:
        _list_corpus(config, directory)
        return 0
    return _here(config, directory, argv)


def _here(config: RunConfig, directory: Path, argv: list[str]) -> int:
    from hpc_llm.preparation.progress import prepare_shown, summary

    was_prepared = (directory / MANIFEST).exists()
    started = time.monotonic()
    prepare_shown(config, directory)
    seconds = time.monotonic() - started
    manifest = read_manifest(directory)
    if config.json:
        print(manifest.to_json(), end="")
        return 0
    if was_prepared:
        print(f"already prepared: {directory}")
    else:
        print(f"prepared in {seconds:.1f} s: {directory}")
    print(summary(manifest))
    if config.data.packing == "best_fit":
        from hpc_llm.data.packs import wasted

        padding = wasted(directory, manifest, "train", config.train.seq_len)
        print(
            f"  packed           rows of {config.train.seq_len:,} tokens, {padding:.2%} of their "
            "positions padding"
        )
    print(f"next: {hints.command('submit', *argv)}")
    return 0


def _inspect(argv: list[str]) -> int:
    from hpc_llm.data import inspect
    from hpc_llm.preparation.inspection import read_words

    asked = read_words(argv)
    width = shutil.get_terminal_size((120, 24)).columns
    lines = inspect.lines(asked.config, asked.plan, asked.directory, asked.step, asked.rows, width)
    for line in lines:
        print(line)
    return 0


def _list_corpus(config: RunConfig, directory: Path) -> None:
    """Print what would be read, and where the shards would lie."""
    from hpc_llm.text import sources

    for source in sources.sources(config.data):
        files = sources.files(source)
        num_bytes = sum(file.num_bytes for file in files)
        print(f"# {source.name}: {len(files):,} files, {num_bytes / 1e6:,.1f} MB on disk")
    print(f"# into {directory}")


def _on_cluster(config: RunConfig, directory: Path, argv: list[str]) -> int:
    from hpc_llm.slurm import client
    from hpc_llm.submission import cluster, prepare_array, report

    config = cluster.with_site_defaults(config, os.environ)
    try:
        if config.dry_run:
            _list_corpus(config, directory)
            print(prepare_array.script_text(config, directory), end="")
            return 0
        if config.test_only:
            print(prepare_array.estimate(config, directory))
            return 0
        with room_for(directory):
            submitted = prepare_array.submit(config, directory)
    except client.SlurmUnavailable as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    if submitted is None:
        return _here(config, directory, argv)
    if config.json:
        report.print_notes(submitted.notes, sys.stderr)
        print(json.dumps({"job_id": submitted.job_id, "directory": str(directory)}))
        return 0
    what = "under way already" if submitted.earlier else "submitted"
    print(f"{what}: array {submitted.job_id}, into {directory}")
    report.print_notes(submitted.notes)
    _print_next(submitted.job_id, directory, argv)
    return 0


def _print_next(job_id: int, directory: Path, argv: list[str]) -> None:
    again = hints.command("prepare", *argv)
    print("next:")
    print(f"  squeue --jobs={job_id}")
    print(f"  tail -f {shlex.quote(f'{directory}.logs')}/{job_id}_*.log")
    print(f"  {again}      # sums up once it is done; goes on where it was if that was killed")


def _join(argv: list[str]) -> int:
    from hpc_llm.submission import prepare_array

    work = Path(argv[0].partition("=")[2])
    with room_for(work):
        prepare_array.join(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
