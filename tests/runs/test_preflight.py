"""What this machine's files forbid, said before the queue. File modes are tried as a user without
privileges.
"""

from __future__ import annotations

import grp
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import make_plan
from hpc_llm.runs import preflight
from hpc_llm.runs.layout import RunLayout
from hpc_llm.submission.examine import examine
from tests.configs import make_config, planned
from tests.runs.machine import as_nobody, folder_of_root, in_child, limit_file_size


def run(root: Path | str, name: str = "first", **more: object) -> RunConfig:
    config = make_config()
    return replace(config, run=replace(config.run, root=str(root), name=name), **more)  # type: ignore[arg-type]


def test_a_folder_of_ones_own_is_fine(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "new", tmp_path / "new" / "below"):
        assert preflight.problems(run(root)) == []
    assert list(tmp_path.iterdir()) == []  # the probe is gone


def test_anothers_folder_is_refused() -> None:
    with folder_of_root(0o555) as folder:
        for root in (folder, folder / "new" / "below"):
            assert as_nobody(partial(preflight.problems, run(root))) == [
                (
                    f"run.root={root}: you cannot write to {folder}; choose a folder of yours with "
                    "run.root=…"
                )
            ]


def test_a_folder_that_one_may_write_but_not_enter_is_refused() -> None:
    with folder_of_root(0o666) as folder:
        (line,) = as_nobody(partial(preflight.problems, run(folder)))
        assert line.startswith(f"run.root={folder}: you cannot write to {folder}")


@pytest.mark.parametrize("name", ["there", "new"])
def test_a_folder_that_one_may_not_look_into_is_refused(name: str) -> None:
    with folder_of_root(0o755) as folder:
        (folder / "there").mkdir()
        folder.chmod(0)
        assert as_nobody(partial(preflight.problems, run(folder / name))) == [
            (
                f"run.root={folder / name}: you cannot write to {folder}; choose a folder of yours "
                "with run.root=…"
            )
        ]


def test_submission_refuses_it_too() -> None:
    def refused(config: RunConfig) -> list[str]:
        try:
            examine(config)
        except InputError as error:
            return error.problems
        return []

    with folder_of_root(0) as folder:
        (line,) = as_nobody(partial(refused, run(folder / "runs")))
        assert line.startswith(f"run.root={folder / 'runs'}: you cannot write to {folder}")


def test_a_dry_run_writes_no_probe() -> None:
    """It looks at modes alone: a full disk does not matter to it."""
    with folder_of_root(0o700) as folder:

        def story(dry_run: bool) -> list[str]:
            limit_file_size(1 << 10)
            return preflight.problems(run(folder, dry_run=dry_run))

        assert in_child(partial(story, True)) == (0, [])
        status, (line,) = in_child(partial(story, False))
        assert status == 0
        assert line == (
            f"run.root={folder}: File too large (writing 1 MiB failed); free some space, or "
            "choose another run.root"
        )
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o777, ["is world-writable"]),
        (0o1777, ["is world-writable"]),
        (0o702, ["is world-writable"]),
        (0o775, ["its group can write to it"]),
        (0o755, []),
    ],
)
def test_a_root_that_others_may_write_is_refused(tmp_path: Path, mode: int, why: list[str]) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(mode)
    found = preflight.problems(run(root))
    assert [line.partition(",")[0] for line in found] == [f"run.root={root}: {w}" for w in why]
    assert preflight.problems(run(root / "mine")) == []  # a private folder in /tmp is fine


def test_a_root_of_the_group_that_the_run_names_may_be_written_by_its_members(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o2770)
    config = run(tmp_path)
    mine = grp.getgrgid(os.getgid()).gr_name
    assert len(preflight.problems(config)) == 1
    assert preflight.problems(replace(config, run=replace(config.run, group=mine))) == []


def test_a_private_folder_of_other_things_is_not_opened_for_a_group(tmp_path: Path) -> None:
    (tmp_path / "diary").touch()
    tmp_path.chmod(0o700)
    config = run(tmp_path)
    mine = grp.getgrgid(os.getgid()).gr_name
    (problem,) = preflight.problems(replace(config, run=replace(config.run, group=mine)))
    assert problem.startswith(f"run.group={mine}: its members cannot look into run.root={tmp_path}")
    tmp_path.chmod(0o2750)
    assert preflight.problems(replace(config, run=replace(config.run, group=mine))) == []


def test_ones_own_groups_are_allowed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = grp.getgrgid(os.getgid()).gr_name
    config = run(tmp_path)
    assert preflight.problems(replace(config, run=replace(config.run, group=mine))) == []
    monkeypatch.setattr(grp, "getgrall", list)  # a directory service that lists none
    assert preflight.problems(replace(config, run=replace(config.run, group=mine))) == []
    (line,) = preflight.problems(replace(config, run=replace(config.run, group="no-such-group")))
    assert line.startswith("run.group=no-such-group: is not one of your groups; allowed: ")
    assert mine in line.rpartition("allowed: ")[2].split(", ")


def test_an_interpreter_that_is_not_there_is_refused_where_the_run_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").symlink_to(sys.executable)
    for python in ("/no/such/python", "./python", "no-such-python", str(tmp_path)):
        config = make_config(f"run.root={tmp_path}", f"cluster.python={python}", "dry_run=true")
        with pytest.raises(InputError) as raised:
            examine(config)
        assert str(raised.value).startswith(
            f"cluster.python={python}: a program on PATH, or the whole path of one, "
        )
    for word in ("cluster.python=null", f"cluster.python={tmp_path}/python", "cluster.python=sh"):
        assert preflight.python_problems(make_config(word)) == []
    assert (
        preflight.python_problems(make_config("cluster=a100x8", "cluster.python=/there/python"))
        == []
    )


def nothing(_: RunLayout) -> list[int]:
    """Steps of the checkpoints of a run that has none."""
    return []


def test_room_for_the_checkpoints_is_asked_for(tmp_path: Path) -> None:
    config = run(tmp_path)
    plan = make_plan(config, None)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert (
        preflight.room_problems(
            [planned(config, replace(plan, checkpoint_bytes=free // 4))], nothing
        )
        == []
    )
    (line,) = preflight.room_problems(
        [planned(config, replace(plan, checkpoint_bytes=free))], nothing
    )
    assert line.startswith(f"run.root={tmp_path}: ")
    assert "needed for checkpoint.keep=2 checkpoints and the one being written" in line
    keeping_one = replace(config, checkpoint=replace(config.checkpoint, keep=1))
    plan = replace(plan, checkpoint_bytes=free // 5 * 2)
    assert preflight.room_problems([planned(keeping_one, plan)], nothing) == []
    assert len(preflight.room_problems([planned(config, plan)], nothing)) == 1


def test_checkpoints_that_stay_for_good_take_room_until_they_are_written(tmp_path: Path) -> None:
    config = run(tmp_path)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    plan = replace(
        make_plan(config, None), steps=100, permanent_every_steps=50, checkpoint_bytes=free // 4
    )
    (line,) = preflight.room_problems([planned(config, plan)], nothing)
    assert (
        "checkpoint.keep=2 checkpoints, 2 of checkpoint.permanent_every and the one being written"
        in line
    )
    assert preflight.room_problems([planned(config, plan)], lambda _: [40, 50, 100]) == []
