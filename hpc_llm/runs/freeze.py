"""PlannedRun → a run directory that nothing outside can change any more."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_llm.config import building, hints
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.lengths import phases
from hpc_llm.planning.memory import MemoryEstimate
from hpc_llm.planning.mixture import Phase, begun
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import extension, snapshot
from hpc_llm.runs.identity import identity, root_of
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.runs.story import read_story
from hpc_llm.storage.files import fsync_directory, link_atomic, share_with_group, write_atomic

OTHER_CODE = "goes on with this version of hpc_llm, another one than before"
_THREADS = 16  # waiting for fsync, most of the time


def differences(config: RunConfig, layout: RunLayout) -> list[str]:
    """The keys in which `config` asks for another training than the run already frozen there.

    Phases of the mixture that begin after the newest checkpoint may be another's: what was seen
    stays as it was.
    """
    earlier = read_config(layout)
    there = identity(earlier)
    here = identity(config)
    for plain in (there, here):  # a run may be made longer: runs.extension
        plain["train"].pop("duration")
    if _same_so_far(earlier, config, layout):
        there["data"].pop("mixture")
        here["data"].pop("mixture")
    return building.changes(there, here)


def _same_so_far(earlier: RunConfig, config: RunConfig, layout: RunLayout) -> bool:
    """Whether both mixtures have the same phases up to the newest checkpoint in the ledger."""
    step = read_story(layout.ledger).newest_saved_step
    return step > 0 and begun(phases(earlier), step) == begun(phases(config), step)


@dataclass(frozen=True)
class Frozen:
    """A run directory; `new`: it was not there before.

    shorter: the plan and configuration of a run that is made longer, by file, as they were.
    """

    layout: RunLayout
    new: bool
    other_code: bool = False  # than the one that it had before
    shorter: Mapping[Path, str] = field(default_factory=dict)


def freeze(run: PlannedRun) -> RunLayout:
    """Make the run directory, whole or not at all.

    A run of the same identity that is there already gets the new machine, and this code: the only
    one that is sure to read what is written here. InputError where the run differs.
    """
    return freeze_all([run])[0].layout


def freeze_all(runs: Sequence[PlannedRun]) -> list[Frozen]:
    """`freeze` for all runs of a submission, with one snapshot of the code per root.

    All new ones are made, or none. Runs that were there keep what was written for them before
    another one failed.
    """
    snapshots: dict[Path, Path] = {}
    for run in runs:
        root = root_of(run.config)
        for folder in dict.fromkeys((root, run.layout.path.parent, snapshot.home(root))):
            make_folder(folder, run.config.run.group)
        if root not in snapshots:
            snapshots[root] = snapshot.make(root)
    num_threads = min(_THREADS, max(1, len(runs)))
    with ThreadPoolExecutor(num_threads) as pool:
        tasks = [pool.submit(_freeze, run, snapshots[root_of(run.config)]) for run in runs]
    done = []
    errors = []
    for task in tasks:
        error = task.exception()
        if error is None:
            done.append(task.result())
        else:
            errors.append(error)
    if errors:
        discard(done)
        raise errors[0]
    for folder in {frozen.layout.path.parent for frozen in done if frozen.new}:
        fsync_directory(folder)
    return done


def discard(runs: Iterable[Frozen]) -> None:
    """Remove what a submission made that came to nothing; runs that were there before stay.

    One that was to be longer is as long as before, so what was complete is complete.
    """
    for frozen in runs:
        if frozen.new:
            shutil.rmtree(frozen.layout.path, ignore_errors=True)
        for path, text in frozen.shorter.items():
            write_atomic(path, text)


def _freeze(run: PlannedRun, code: Path) -> Frozen:
    layout = run.layout
    if layout.path.exists():
        if changed := [*differences(run.config, layout), *_other_data(run.plan, layout)]:
            raise InputError(conflict(layout, changed))
        other_code = not layout.code.exists() or not layout.code.samefile(code)
        if other_code:
            link_atomic(layout.code, _relative(code, layout))
        documents = _documents(layout, run)
        shorter = {}
        if extension.planned_steps(layout) != run.plan.steps:
            shorter = {path: path.read_text() for path in documents}
        for path, text in documents.items():
            write_atomic(path, text)
        return Frozen(layout, False, other_code, shorter)
    partial = RunLayout(
        Path(tempfile.mkdtemp(prefix=f".{layout.name}.partial-", dir=layout.path.parent))
    )
    try:
        share_with_group(partial.path, run.config.run.group)
        partial.make_folders()
        partial.code.symlink_to(_relative(code, layout))
        for path, text in _documents(partial, run).items():
            _write_durably(path, text)
        fsync_directory(partial.path)
        partial.path.rename(layout.path)
    except BaseException as error:
        shutil.rmtree(partial.path, ignore_errors=True)
        if isinstance(error, OSError) and layout.path.exists():
            return _freeze(run, code)  # another submission of the same run was faster
        raise
    return Frozen(layout, new=True)


def _relative(code: Path, layout: RunLayout) -> str:
    """As a root that is moved still has it."""
    return os.path.relpath(code, layout.path)


def _other_data(plan: RunPlan, layout: RunLayout) -> list[str]:
    """A line for each source whose tokens are not those that the run was frozen with.

    Plans of older versions say nothing about them.
    """
    earlier = _read(layout.plan).get("data_digests", {})
    lines = []
    for name, digest in plan.data_digests.items():
        if earlier.get(name, digest) != digest:
            lines.append(f"data: other tokens of {name}, now those in {plan.data_directory}")
    return lines


def conflict(layout: RunLayout, changed: list[str]) -> str:
    """One line for a run name that is taken by another configuration."""
    shown = "; ".join(changed[:4])
    if len(changed) > 4:
        shown += "; …"
    return (
        f"run.name={layout.name}: {layout.path} holds a run with another configuration "
        f"({shown}); give what it had, or choose another run.name, or remove that folder"
    )


def read_config(layout: RunLayout) -> RunConfig:
    """The frozen configuration; InputError if `layout` is no run."""
    plain = _read(layout.config)
    try:
        return building.build(RunConfig, plain)
    except InputError as error:
        raise InputError(
            f"{layout.config}, perhaps of another version: {each}" for each in error.problems
        ) from None


def read_plan(layout: RunLayout) -> RunPlan:
    """The frozen plan; InputError if `layout` is no run."""
    plain = _read(layout.plan)
    try:
        memory = MemoryEstimate(**plain["memory"])
        mixtures = [Phase(**phase) for phase in plain["phases"]]
        seq_lens = [(start, length) for start, length in plain["seq_lens"]]
        return RunPlan(**{**plain, "memory": memory, "phases": mixtures, "seq_lens": seq_lens})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{layout.plan}: not a plan of this version ({error}); submit the run again"
        ) from None


def _documents(folder: RunLayout, run: PlannedRun) -> dict[Path, str]:
    """What is written of a run into `folder`, by file: the plan, and last the configuration."""
    section = dataclasses.replace(run.config.run, name=run.layout.name)
    frozen = dataclasses.replace(run.config, run=section)
    return {
        folder.plan: _as_json(dataclasses.asdict(run.plan)),
        folder.config: _as_json(building.to_dict(frozen)),
    }


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _write_durably(path: Path, text: str) -> None:
    """A new file in a folder that nobody sees yet: one fsync, where write_atomic needs two."""
    with path.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path, group: str | None) -> None:
    """A folder for runs: private, or shared with `group`.

    One that an earlier, private run made is shared from now on; each run keeps what it has.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        share_with_group(folder, group)
    elif group is not None and _is_private(folder):
        share_with_group(folder, group)


def _is_private(folder: Path) -> bool:
    """Whether it is this user's, who alone may look into it."""
    state = folder.stat()
    return state.st_uid == os.geteuid() and not state.st_mode & 0o077


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{path.parent}: no run directory (it has no {path.name}); make one with "
            f"{hints.command('submit')}"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not readable as JSON ({error}); the run directory is damaged"
        ) from None
