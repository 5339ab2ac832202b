"""Preparation on a cluster: list the corpus here, let an array do the work, and return at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config import building
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import DataConfig, RunConfig
from hpc_llm.data import manifest
from hpc_llm.preparation.workspace import Workspace
from hpc_llm.runs import freeze, identity, snapshot
from hpc_llm.runs.layout import CODE_FOLDER
from hpc_llm.slurm import client, own_jobs
from hpc_llm.slurm.prepare_script import render_prepare_script
from hpc_llm.storage.files import write_atomic, write_json
from hpc_llm.storage.locks import one_writer
from hpc_llm.submission import send

_CONFIG = "prepare.json"
_SCRIPT = "prepare.sbatch"


@dataclass(frozen=True)
class Submitted:
    """An array that prepares the data."""

    job_id: int
    earlier: bool = False  # it was queued before
    notes: tuple[str, ...] = ()  # what sbatch said beside its number


def script_text(config: RunConfig, directory: Path) -> str:
    """The batch script that would be written; nothing is written."""
    code = identity.root_of(config) / CODE_FOLDER / "<hash>"
    return _render(config, directory, directory.with_name(f"{directory.name}.partial-<hash>"), code)


def estimate(config: RunConfig, directory: Path) -> str:
    """What Slurm would do with the array (`sbatch --test-only`); nothing is queued or written.

    Errors as `submit`.
    """
    try:
        return client.test_only(script_text(config, directory))
    except client.SlurmRefused as error:
        raise InputError(f"cluster={config.cluster.name}: {error}") from None


def submit(config: RunConfig, directory: Path) -> Submitted | None:
    """Submit an array that prepares `directory`; None if it is already prepared.

    InputError for a corpus that cannot be used or if Slurm refuses; SlurmUnavailable if it does not
    answer.
    """
    from hpc_llm.preparation import pipeline

    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch is not on PATH: run this where Slurm is (a login node), or leave +cluster out"
        )
    if pipeline.prepared(config.data, directory):
        return None
    with one_writer(
        directory,
        "data.out",
        lambda: print("waiting for another preparation of this data", file=sys.stderr),
    ):
        queue = client.queued()
        work_dir = _logs(directory)
        if jobs := own_jobs.find(queue, {str(work_dir)}):
            return Submitted(jobs[0].array_id, earlier=True)
        script = begin(config, directory)
        known = {job.array_id for job in queue}
        try:
            accepted = send.send(script, name=_name(directory), work_dir=work_dir, known=known)
        except client.SlurmRefused as error:
            raise InputError(f"cluster={config.cluster.name}: {error}") from None
    return Submitted(accepted.job_id, notes=accepted.notes)


def begin(config: RunConfig, directory: Path) -> Path:
    """List the corpus and write everything that the tasks read; the script's path.

    InputError as for `submit`.
    """
    from hpc_llm.preparation import pipeline

    config = dataclasses.replace(config, data=_absolute(config.data, directory))
    work = pipeline.begin(config, directory).path
    root = identity.root_of(config)
    for folder in (root, _logs(directory)):
        freeze.make_folder(folder, config.run.group)
    write_json(work / _CONFIG, building.to_dict(config))
    write_atomic(work / _SCRIPT, _render(config, directory, work, snapshot.make(root)))
    return work / _SCRIPT


def join(work: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Do the remaining work of a preparation in its folder, along with others.

    This is what a task of the array runs.
    """
    from hpc_llm.preparation import pipeline
    from hpc_llm.preparation.progress import progress, say
    from hpc_llm.storage.files import restrict_access

    workspace = Workspace(work)
    try:
        config = building.build(RunConfig, json.loads((work / _CONFIG).read_bytes()))
    except OSError as error:
        if (workspace.directory / manifest.MANIFEST).exists():
            return  # others have done it all
        raise InputError(
            f"join={work}: {_CONFIG}: {error.strerror}; this preparation has not begun"
        ) from None
    restrict_access(config.run.group)
    if config.data.workers == "auto" and environment.get("SLURM_CPUS_PER_TASK"):
        workers = int(environment["SLURM_CPUS_PER_TASK"])
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
    task = int(environment.get("SLURM_ARRAY_TASK_ID") or os.getpid())
    with progress() as report:
        pipeline.join(config.data, workspace, task, report, say)


def _render(config: RunConfig, directory: Path, work: Path, code: Path) -> str:
    return render_prepare_script(
        config,
        work=str(work),
        logs=str(_logs(directory)),
        code=str(code),
        python=config.cluster.python or sys.executable,
        name=_name(directory),
    )


def _logs(directory: Path) -> Path:
    """Where Slurm writes its logs; it outlives the work folder."""
    return directory.with_name(f"{directory.name}.logs")


def _name(directory: Path) -> str:
    return f"prepare-{directory.name}"


def _absolute(data: DataConfig, directory: Path) -> DataConfig:
    """Absolute paths, since tasks run in another folder."""

    def here(path: str | None) -> str | None:
        return None if path is None else os.path.abspath(Path(path).expanduser())  # noqa: PTH100

    base = Path(data.source or ".").expanduser()
    sources = {}
    for name, source in data.sources.items():
        path = os.path.abspath(base / Path(source.path).expanduser())  # noqa: PTH100
        sources[name] = dataclasses.replace(source, path=path)
    return dataclasses.replace(
        data,
        source=here(data.source),
        sources=sources,
        out=str(directory),
        tokenizer=here(data.tokenizer),
    )
