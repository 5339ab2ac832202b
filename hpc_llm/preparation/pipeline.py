"""Corpus → shards: who prepares, where, and when it is done; the work itself is in stages.py.

The bytes depend only on the corpus and its recipe (data/recipe.py): not on workers, machines, file
times or interruptions. Work is done in a folder beside the target (workspace.py) that is renamed
into place at the end: prepared data is complete, or not there.
"""

from __future__ import annotations

import os
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig, RunConfig
from hpc_llm.data import manifest
from hpc_llm.data.packs import OnProgress
from hpc_llm.data.recipe import check_recipe, recipe_of
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.preparation import stages
from hpc_llm.preparation.claims import Claims
from hpc_llm.preparation.jobs import FinishedElsewhere, JobRunner, Say
from hpc_llm.preparation.workers import Workers
from hpc_llm.preparation.workspace import Workspace
from hpc_llm.storage.files import share_with_group
from hpc_llm.storage.locks import one_writer
from hpc_llm.text import sources, tokenizer
from hpc_llm.text.sources import InputFile


def _silent(*_: object) -> None: ...


def prepare(
    config: RunConfig, directory: Path, on_progress: OnProgress = _silent, say: Say = _silent
) -> DataFacts:
    """Tokenise the corpus of `config.data` into `directory`, unless that is done already.

    Safe to call from several processes at once, and to kill: the next call continues. InputError
    for a corpus, a tokenizer or a folder that cannot be used.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 – resolve() would follow links
    if known := prepared(config.data, directory):
        Workspace.clear(directory)
        return known
    with one_writer(
        directory,
        "data.out",
        lambda: on_progress("waiting for another preparation of this data", 0, 0, 0),
    ):
        if known := prepared(config.data, directory):
            return known
        with Workers(config.data.workers) as workers:
            stages.run(config.data, begin(config, directory), JobRunner(workers, on_progress, say))
    return manifest.facts(directory)


def prepared(config: DataConfig, directory: Path) -> DataFacts | None:
    """Facts of a folder with the requested data; None if nothing is there.

    InputError if it holds something else.
    """
    if not (directory / manifest.MANIFEST).exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(
                f"data.out={directory}: exists and is no prepared data; name a new or an empty "
                "folder"
            )
        return None
    check_recipe(manifest.read_manifest(directory), config, directory)
    return manifest.facts(directory)


def begin(config: RunConfig, directory: Path) -> Workspace:
    """List the corpus and make the work folder, or find it as it was left.

    InputError as for `prepare`.
    """
    if config.data.tokenizer is not None:
        tokenizer.load(config.data)
    elif config.data.vocab_size is None:
        raise InputError(
            "data.vocab_size=null: how many pieces to train? give a number, or data.tokenizer=PATH"
        )
    files: list[InputFile] = []
    for source in sources.sources(config.data):
        files += sources.files(source)
    workspace = Workspace.begin(directory, recipe_of(config.data), files)
    share_with_group(workspace.out, config.run.group)
    return workspace


def join(
    config: DataConfig, workspace: Workspace, task: int, on_progress: OnProgress, say: Say
) -> None:
    """Do the work that `begin` set up, along with other machines, until all is done.

    task: this machine's number.
    """
    try:
        with Workers(config.workers) as workers:
            claims = Claims(workspace.claims, task)
            stages.run(config, workspace, JobRunner(workers, on_progress, say, claims))
    except (FinishedElsewhere, OSError):
        if not (workspace.directory / manifest.MANIFEST).exists():
            raise  # else another machine was faster, and removed the work folder
