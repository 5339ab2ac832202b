"""`python -m hpc_llm.prepare data=… [+cluster=NAME] [key=value…]`: train a tokenizer, tokenise a corpus into shards.

`python -m hpc_llm.prepare inspect=DIR [step=K rows=N]`: what step K of a run, or of prepared data, trains on.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig


def main(words: list[str] | None = None) -> int:
    """Prepare what `words` say; 0 when the data is there, 2 with a line per mistake where the input is wrong."""
    words = sys.argv[1:] if words is None else words
    if words and words[0].startswith("join="):  # a task of the array that this very verb submitted
        return verbs.run("prepare", _join, words, hydra=False)
    return verbs.run("prepare", _prepare, words)


def _prepare(words: list[str]) -> int:
    if any(word.startswith("inspect=") for word in words):
        return _inspect(words)
    from hpc_llm.config import checks
    from hpc_llm.config.compose import compose
    from hpc_llm.data.manifest import directory_for
    from hpc_llm.runs import preflight
    from hpc_llm.storage.files import restrict_access

    config = compose(words)
    if problems := [*checks.problems(config), *preflight.unknown_homes(config)]:
        raise InputError(problems)
    restrict_access(config.run.group)
    directory = Path(os.path.abspath(directory_for(config)))  # noqa: PTH100 – resolve() would follow links
    if config.cluster.launcher == "slurm":
        return _on_cluster(config, directory, words)
    if config.dry_run:
        _listed(config, directory)
        return 0
    return _here(config, directory, words)


def _here(config: RunConfig, directory: Path, words: list[str]) -> int:
    from hpc_llm.data.manifest import MANIFEST, read_manifest
    from hpc_llm.launch.show_preparation import prepare_shown, summary

    known = (directory / MANIFEST).exists()
    started = time.monotonic()
    prepare_shown(config, directory)
    seconds = time.monotonic() - started
    made = read_manifest(directory)
    if config.json:
        print(made.to_json(), end="")
        return 0
    print(f"already prepared: {directory}" if known else f"prepared in {seconds:.1f} s: {directory}")
    print(summary(made))
    if config.data.packing == "best_fit":
        from hpc_llm.data.packs import wasted

        padding = wasted(directory, made, "train", config.train.seq_len)
        print(f"  packed           rows of {config.train.seq_len:,} tokens, {padding:.2%} of their positions padding")
    print(f"next: {shlex.join(['python', '-m', 'hpc_llm.submit', *words])}")
    return 0


def _inspect(words: list[str]) -> int:
    from hpc_llm.data import inspect
    from hpc_llm.launch import inspected

    asked = inspected.ask(words)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in inspect.lines(asked.config, asked.plan, asked.directory, asked.step, asked.rows, width):
        print(line)
    return 0


def _listed(config: RunConfig, directory: Path) -> None:
    """What would be read, and where the shards would lie."""
    from hpc_llm.data import sources

    for source in sources.sources(config.data):
        files = sources.files(source)
        print(f"# {source.name}: {len(files):,} files, {sum(file.num_bytes for file in files) / 1e6:,.1f} MB on disk")
    print(f"# into {directory}")


def _on_cluster(config: RunConfig, directory: Path, words: list[str]) -> int:
    from hpc_llm.launch import cluster, preparation
    from hpc_llm.slurm import client

    config = cluster.with_site_defaults(config, os.environ)
    try:
        if config.dry_run:
            _listed(config, directory)
            print(preparation.script_text(config, directory), end="")
        elif config.test_only:
            print(preparation.estimate(config, directory))
        elif (submitted := preparation.submit(config, directory)) is None:
            return _here(config, directory, words)
        elif config.json:
            print(json.dumps({"job_id": submitted.job_id, "directory": str(directory)}))
        else:
            _say(submitted.job_id, directory, "under way already" if submitted.found else "submitted", words)
    except client.SlurmUnavailable as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


def _say(job_id: int, directory: Path, what: str, words: list[str]) -> None:
    print(f"{what}: array {job_id}, into {directory}")
    print("next:")
    print(f"  squeue --jobs={job_id}")
    print(f"  tail -f {shlex.quote(f'{directory}.logs')}/{job_id}_*.log")
    again = shlex.join(["python", "-m", "hpc_llm.prepare", *words])
    print(f"  {again}      # sums up once it is done; goes on where it was if that was killed")


def _join(words: list[str]) -> int:
    from hpc_llm.launch import preparation

    preparation.join(Path(words[0].partition("=")[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
