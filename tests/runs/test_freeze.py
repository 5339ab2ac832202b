"""Frozen runs: made whole or not at all, and nothing outside can change them any more."""

from __future__ import annotations

import dataclasses
import grp
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.config.building import build, chosen, field_types, section_class, to_dict
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.runs import snapshot
from hpc_llm.runs.freeze import (
    discard,
    freeze,
    freeze_all,
    read_config,
    read_plan,
)
from hpc_llm.runs.identity import layout_for, run_name
from hpc_llm.runs.layout import CODE_FOLDER, RunLayout
from hpc_llm.runs.ledger import Ledger
from hpc_llm.storage.files import restrict_access
from tests.configs import make_config, planned
from tests.runs.machine import (
    NOBODY,
    REPOSITORY,
    all_at_once,
    as_nobody,
    folder_of_root,
    in_child,
    killed_at,
    limit_file_size,
)

# Keys that say where and how a run is computed, not what is learned.
OF_THE_MACHINE = (
    "run.name",
    "run.sweep",
    "run.root",
    "run.group",
    "run.max_gpu_hours",
    "run.depends_on",
    "data.out",
    "data.workers",
)
OF_THE_MACHINE += (
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.eval_every",
    "train.zero_stage",
)
OF_THE_MACHINE += ("train.attention", "train.loss_chunk", "train.compile")
OF_THE_MACHINE += (
    "cluster.",
    "checkpoint.",
    "recovery.",
    "trackers.",
    "halving.",
    "search.",
    "dry_run",
    "test_only",
    "local",
    "json",
)


def run(root: Path, name: str | None = "first", group: str | None = None) -> RunConfig:
    """The default configuration, to lie below `root`."""
    config = make_config()
    return replace(config, run=replace(config.run, root=str(root), name=name, group=group))


def plan_of(config: RunConfig) -> RunPlan:
    return make_plan(config, None, memory_available=None)


def frozen(root: Path, name: str | None = "first") -> RunLayout:
    config = run(root, name)
    return freeze(planned(config))


def learning(config: RunConfig, lr: float) -> RunConfig:
    return replace(config, optim=replace(config.optim, lr=lr))


def content(folder: Path) -> dict[str, Any]:
    """Every entry below a folder with what it holds; links by where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def leaves(cls: type = RunConfig, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in field_types(cls).items():
        section = section_class(hint)
        keys += leaves(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys


def with_another(config: RunConfig, key: str) -> RunConfig:
    """`config` with another value, of the right type, for `key`."""
    plain = to_dict(config)
    *path, last = key.split(".")
    section = plain
    for part in path:
        section = section[part]
    given = section[last]
    others: tuple[Any, ...] = (
        7,
        0.125,
        "other",
        True,
        False,
        ["other"],
        [0.125],
        {"A": "other"},
        {"a": {"path": "other"}},
    )
    others += (
        "fp32",
        "fused_adam",
        "linear",
        "line",
        "best_fit",
        "rope",
        "rmsnorm",
        "swiglu",
        "folded",
    )
    for other in (*others, {"7steps": {"a": 1.0}}):
        section[last] = other
        if other != given:
            try:
                return build(RunConfig, plain)
            except InputError:
                continue
    last_resort = {
        "data.name": "files",
        "cluster.launcher": "slurm",
        "recovery.on_divergence": "skip",
        "recovery.on_admin_cancel": "hold",
    }
    section[last] = last_resort.get(key, "cpu")
    return build(RunConfig, plain)


def test_a_frozen_run_holds_all_that_a_job_reads(tmp_path: Path) -> None:
    config = run(tmp_path / "runs")
    layout = freeze(planned(config))
    assert layout.path == tmp_path / "runs" / "first"
    assert read_config(layout) == config
    assert read_plan(layout) == plan_of(config)
    assert (layout.code / "hpc_llm" / "train.py").read_bytes() == (
        REPOSITORY / "hpc_llm" / "train.py"
    ).read_bytes()
    for folder in (layout.ledger, layout.slurm, layout.attempts, layout.checkpoints):
        assert folder.is_dir()


def test_a_relative_root_is_frozen_where_the_user_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert frozen(Path("runs")).path == tmp_path / "runs" / "first"


def test_the_same_configuration_twice_is_the_same_run(tmp_path: Path) -> None:
    layout = frozen(tmp_path, name=None)
    (layout.checkpoints / "mine").touch()
    before = content(tmp_path)
    assert frozen(tmp_path, name=None) == layout
    assert content(tmp_path) == before


def test_a_derived_name_is_frozen_with_the_run(tmp_path: Path) -> None:
    layout = frozen(tmp_path, name=None)
    assert layout.name.startswith("mpt-tiny-stdlib-")
    assert read_config(layout).run.name == layout.name
    assert layout_for(read_config(layout)) == layout


@pytest.mark.parametrize("key", leaves())
def test_what_is_learned_decides_which_run_it_is_and_the_machine_does_not(
    tmp_path: Path, key: str
) -> None:
    config = run(tmp_path, name=None)
    other = with_another(config, key)
    assert other != config
    if key == "run.name":
        assert run_name(other) == other.run.name
    else:
        assert (run_name(other) == run_name(config)) == key.startswith(OF_THE_MACHINE)


def test_a_run_goes_on_on_another_machine(tmp_path: Path) -> None:
    layout = frozen(tmp_path)
    code = layout.code.readlink()
    config = run(tmp_path)
    config = replace(config, cluster=replace(config.cluster, gpus_per_node=2))
    assert freeze(planned(config)) == layout
    assert read_config(layout).cluster.gpus_per_node == 2
    assert read_plan(layout).world_size == 2
    assert layout.code.readlink() == code


MIXED = (
    "data=files",
    "data.sources={code: {path: /c, weight: 3}, web: {path: /w}}",
    "run.name=first",
)


@pytest.mark.parametrize(
    ("mixture", "fits"),
    [
        ("{10steps: {web: 1}, 30steps: {code: 1}}", True),
        ("{10steps: {web: 1}, 20steps: {code: 1, web: 1}}", True),
        ("{10steps: {web: 1}, 19steps: {code: 1, web: 1}}", False),
        ("{10steps: {web: 2, code: 1}}", False),
        ("{}", False),
    ],
)
def test_a_run_goes_on_with_another_mixture_from_its_checkpoint_on(
    tmp_path: Path, mixture: str, fits: bool
) -> None:
    words = (*MIXED, f"run.root={tmp_path}")
    first = make_config(*words, "data.mixture={10steps: {web: 1}}")
    edited = make_config(*words, f"data.mixture={mixture}")
    layout = freeze(planned(first))
    with pytest.raises(InputError, match=r"data\.mixture"):
        freeze(planned(edited))  # nothing is trained that could be kept straight: it is another run
    Ledger(layout.ledger, "train-0001").write("checkpointed", step=20)
    if fits:
        freeze(planned(edited))
        assert read_plan(layout).phases == plan_of(edited).phases
    else:
        with pytest.raises(InputError, match=r"data\.mixture"):
            freeze(planned(edited))


def test_another_configuration_under_the_same_name_is_refused_naming_the_keys(
    tmp_path: Path,
) -> None:
    frozen(tmp_path)
    before = content(tmp_path)
    config = learning(run(tmp_path), 0.5)
    config = replace(config, train=replace(config.train, seq_len=128))
    with pytest.raises(InputError) as raised:
        freeze(planned(config))
    assert raised.value.problems == [
        f"run.name=first: {tmp_path / 'first'} holds a run with another configuration "
        "(optim.lr=0.002, now 0.5; train.seq_len=256, now 128); give what it had, or choose "
        "another run.name, or remove that folder"
    ]
    assert content(tmp_path) == before


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    config = run(tmp_path / "runs")
    with pytest.raises(TypeError):
        freeze(planned(config, dataclasses.replace(plan_of(config), steps=object())))  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [CODE_FOLDER]


@pytest.mark.parametrize("snapshot_first", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path: Path, snapshot_first: bool) -> None:
    if snapshot_first:
        snapshot.make(tmp_path)
    before = content(tmp_path)

    def fill_up() -> str:
        limit_file_size(64)
        try:
            frozen(tmp_path)
        except OSError as error:
            return str(error.strerror)
        return "nothing failed"

    assert in_child(fill_up) == (0, "File too large")
    after = content(tmp_path)
    after.pop(CODE_FOLDER, None)
    before.pop(CODE_FOLDER, None)
    assert after == before


def test_killed_at_any_moment_there_is_a_whole_run_or_none(tmp_path: Path) -> None:
    snapshot.make(tmp_path)
    number = 0
    while killed_at(number, tmp_path, partial(frozen, tmp_path)):
        assert visible(tmp_path) == [] or read_config(RunLayout(tmp_path / "first")) == run(
            tmp_path
        )
        number += 1
    assert number > 8  # folders, link, two files, renames
    assert visible(tmp_path) == ["first"]
    assert read_plan(RunLayout(tmp_path / "first")) == plan_of(run(tmp_path))
    assert (tmp_path / "first" / "code" / "hpc_llm" / "train.py").exists()


def test_killed_at_any_moment_a_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    whole = content(snapshot.make(tmp_path / "whole"))
    root = tmp_path / "killed"
    kills = 0
    for number in range(0, 1000, 23):
        if not killed_at(number, root, partial(snapshot.make, root)):
            break
        kills += 1
        finished = [
            folder for folder in (root / CODE_FOLDER).glob("*") if "partial" not in folder.name
        ]
        assert finished == []
    assert kills > 3
    assert content(snapshot.make(root)) == whole


def test_the_leavings_of_a_killed_process_are_in_nobodys_way(tmp_path: Path) -> None:
    """In a container process ids come again: the next one to freeze has that of the one that was
    killed.
    """
    for name in (f".first.partial-{os.getpid()}", f".first.{os.getpid()}.tmp"):
        shutil.copytree(frozen(tmp_path / "elsewhere").path, tmp_path / name, symlinks=True)
    layout = frozen(tmp_path)
    assert read_config(layout) == run(tmp_path)


def test_processes_that_freeze_the_same_run_at_once_all_get_it(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    found = all_at_once(6, lambda _: str(frozen(root).path))
    assert found == [str(root / "first")] * 6
    assert read_config(RunLayout(root / "first")) == run(root)
    assert sorted(path.name for path in root.iterdir()) == [CODE_FOLDER, "first"]


def test_of_processes_that_freeze_different_runs_under_one_name_one_wins(tmp_path: Path) -> None:
    def story(index: int) -> bool:
        config = learning(run(tmp_path), 0.5 + index)
        try:
            freeze(planned(config))
        except InputError:
            return False
        return True

    won = all_at_once(5, story)
    assert sum(won) == 1
    assert read_config(RunLayout(tmp_path / "first")) == learning(
        run(tmp_path), 0.5 + won.index(True)
    )


def test_the_snapshot_is_the_whole_source_and_nothing_else(tmp_path: Path) -> None:
    made = snapshot.make(tmp_path)
    package = REPOSITORY / "hpc_llm"
    source = {
        str(path.relative_to(REPOSITORY)): path.read_bytes() for path in package.rglob("*.py")
    }
    assert {name: text for name, text in content(made).items() if text is not False} == source


def test_the_snapshot_runs_by_itself(tmp_path: Path) -> None:
    layout = frozen(tmp_path)
    command = [sys.executable, "-c", "import hpc_llm.train; print(hpc_llm.train.__file__)"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=layout.code, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(layout.code.resolve() / "hpc_llm" / "train.py")


def test_runs_of_a_root_share_one_snapshot(tmp_path: Path) -> None:
    first = frozen(tmp_path, "first")
    second = frozen(tmp_path, "second")
    assert first.code.resolve() == second.code.resolve()
    assert len(list((tmp_path / CODE_FOLDER).iterdir())) == 1


def test_processes_that_snapshot_at_once_share_one(tmp_path: Path) -> None:
    found = all_at_once(6, lambda _: str(snapshot.make(tmp_path)))
    assert len(set(found)) == 1
    assert [str(path) for path in (tmp_path / CODE_FOLDER).iterdir()] == found[:1]
    assert content(Path(found[0])) == content(snapshot.make(tmp_path / "alone"))


def test_editing_the_source_changes_no_frozen_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "hpc_llm"
    shutil.copytree(
        REPOSITORY / "hpc_llm", package, ignore=shutil.ignore_patterns("conf", "__pycache__")
    )
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    layout = frozen(tmp_path / "runs")
    before = content(layout.code.resolve())
    (package / "train.py").write_text("raise SystemExit('edited')\n")
    (package / "model" / "loss.py").unlink()
    (package / "model" / "more.py").touch()
    assert content(layout.code.resolve()) == before
    assert content(frozen(tmp_path / "runs", "second").code.resolve()) != before


def test_a_run_that_is_submitted_again_has_the_code_that_wrote_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "hpc_llm"
    shutil.copytree(
        REPOSITORY / "hpc_llm", package, ignore=shutil.ignore_patterns("conf", "__pycache__")
    )
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    config = run(tmp_path / "runs")
    runs = [planned(config)]
    ((first),) = freeze_all(runs)
    before = content(first.layout.code.resolve())
    assert [each.other_code for each in freeze_all(runs)] == [False]
    (package / "train.py").write_text("raise SystemExit('edited')\n")
    earlier = first.layout.code.resolve()
    assert [each.other_code for each in freeze_all(runs)] == [True]
    assert (
        first.layout.code / "hpc_llm" / "train.py"
    ).read_text() == "raise SystemExit('edited')\n"
    assert not Path(first.layout.code.readlink()).is_absolute()
    assert content(earlier) == before, "other runs may have it"


def test_a_run_goes_on_with_no_other_data(tmp_path: Path) -> None:
    config = run(tmp_path)
    plan = replace(plan_of(config), data_digests={"stdlib": "ab"})
    layout = freeze(planned(config, plan))
    assert freeze(planned(config, plan)) == layout
    with pytest.raises(InputError, match="data: other tokens of stdlib"):
        freeze(planned(config, replace(plan, data_digests={"stdlib": "cd"})))
    freeze(planned(config, replace(plan, data_digests={"stdlib": "ab", "more": "cd"})))


def test_a_name_is_made_of_what_was_chosen_alone() -> None:
    """So that a key which a later version adds gives no run another name."""
    words = ("model=llama-tiny", "optim.lr=1e-3")
    config = make_config(*words)
    told = chosen(config)
    assert build(RunConfig, told) == config
    assert "weight_decay" in config.optim.__dict__ and "weight_decay" not in told["optim"]
    assert run_name(config) == run_name(make_config(*words, "train.micro_batch=4"))


@pytest.mark.parametrize(
    ("text", "complaint"), [(None, "no run directory"), ("{", "not readable as JSON")]
)
def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    layout = frozen(tmp_path)
    for path, read in ((layout.config, read_config), (layout.plan, read_plan)):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(InputError, match=complaint):
            read(layout)


def test_a_configuration_damaged_by_hand_is_refused_key_by_key(tmp_path: Path) -> None:
    layout = frozen(tmp_path)
    layout.config.write_text(
        layout.config.read_text().replace('"seed": 17', '"sead": 17, "root2": ""')
    )
    with pytest.raises(InputError) as raised:
        read_config(layout)
    where = f"{layout.config}, perhaps of another version"
    assert [problem.split(": ")[:2] for problem in raised.value.problems] == [
        [where, "run.sead"],
        [where, "run.root2"],
    ]


@pytest.mark.parametrize("text", ["{}", "[]", '{"memory": {}}'])
def test_a_plan_of_another_version_is_refused_as_one(tmp_path: Path, text: str) -> None:
    layout = frozen(tmp_path)
    layout.plan.write_text(text)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(layout)


def shared_modes(root: Path, group: str | None) -> dict[str, int]:
    """Freeze in a process of its own, as submit does; the access bits of all that it made."""

    def story() -> dict[str, int]:
        restrict_access(group)
        config = run(root, group=group)
        freeze(planned(config))
        return {
            str(path): stat.S_IMODE(path.lstat().st_mode)
            for path in [root, *root.rglob("*")]
            if not path.is_symlink()
        }

    status, modes = in_child(story)
    assert status == 0
    return modes


def readable(layout: RunLayout, group: int | None) -> bool:
    """Whether somebody else, a member of `group` perhaps, reads configuration and code of the
    run.
    """

    def story() -> bool:
        if group is not None:
            os.setgroups([group])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            layout.config.read_bytes()
            (layout.code / "hpc_llm" / "train.py").read_bytes()
            return bool(list(layout.attempts.iterdir()) == [])
        except PermissionError:
            return False

    status, found = in_child(story)
    assert status == 0
    return bool(found)


def test_a_run_is_private(tmp_path: Path) -> None:
    modes = shared_modes(tmp_path / "runs", group=None)
    assert len(modes) > 50
    assert all(mode & 0o077 == 0 for mode in modes.values())


def test_a_root_that_a_private_run_made_is_opened_for_the_group_of_a_later_one(
    tmp_path: Path,
) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    private = freeze(planned(run(tmp_path / "runs", "private"))).path
    private.parent.chmod(0o700)
    before = private.stat().st_mode
    shared = freeze(planned(run(tmp_path / "runs", "shared", group))).path
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o2750
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2750
    assert private.stat().st_mode == before


def test_a_run_that_names_a_group_is_shared_with_it_alone(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    root = tmp_path / "runs"
    modes = shared_modes(root, group.gr_name)
    assert all(mode & 0o007 == 0 and mode & 0o040 for mode in modes.values())
    assert all(mode & 0o020 == 0 for mode in modes.values())
    run_directory = [
        root,
        *(path for path in (root / "first").rglob("*") if path.is_dir() and not path.is_symlink()),
    ]
    assert all(
        path.stat().st_gid == group.gr_gid and path.stat().st_mode & stat.S_ISGID
        for path in run_directory
    )


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root may become others; the two tests above look at modes"
)
@pytest.mark.parametrize("root_was_there", [False, True])
def test_members_read_a_shared_run_and_others_do_not(root_was_there: bool) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, NOBODY))
    with folder_of_root(0o755) as folder:
        root = folder / "runs"
        if root_was_there:
            root.mkdir()
            root.chmod(0o755)  # whatever umask another test has left
        shared_modes(root, group.gr_name)
        layout = RunLayout(root / "first")
        assert readable(layout, group.gr_gid)
        assert not readable(layout, None)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become others")
def test_nobody_reads_a_private_run() -> None:
    with folder_of_root(0o755) as folder:
        shared_modes(folder / "runs", None)
        layout = RunLayout(folder / "runs" / "first")
        assert readable(layout, group=0) is False
        with pytest.raises(AssertionError):
            as_nobody(layout.config.read_text)


def test_a_submission_that_comes_to_nothing_leaves_a_run_as_long_as_it_was(tmp_path: Path) -> None:
    words = (f"run.root={tmp_path}", "run.name=one")
    layout = freeze(planned(make_config(*words, "train.duration=6steps")))
    before = {path: path.read_text() for path in (layout.plan, layout.config)}
    longer = planned(make_config(*words, "train.duration=12steps"))
    (frozen,) = freeze_all([longer])
    assert read_plan(layout).steps == 12
    discard([frozen])
    assert {path: path.read_text() for path in before} == before
