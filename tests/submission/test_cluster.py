"""What becomes of a submission when the disk fails; real Slurm is asked in
tests/on_slurm/test_submit.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.planned import PlannedRun
from hpc_llm.slurm import client
from hpc_llm.slurm.records import QueuedJob, Submission
from hpc_llm.submission import backlog, backlog_pass, cluster, prerequisites, report, send
from hpc_llm.submission.arrays import JobScript
from tests.configs import make_config, planned


class Slurm:
    """A queue that accepts everything, in which nothing ever starts."""

    def __init__(self) -> None:
        self.jobs: list[QueuedJob] = []

    def send(
        self, script: Path, *, name: str, work_dir: Path, options: Sequence[str] = (), **_: Any
    ) -> Submission:
        number = 12 + len({job.array_id for job in self.jobs})
        array = next((option for option in options if option.startswith("--array=")), "")
        first, _, last = array.removeprefix("--array=").partition("-")
        tasks = (
            [f"_{task}" for task in range(int(first), int(last or first) + 1)] if array else [""]
        )
        self.jobs += [
            QueuedJob(
                f"{number}{task}", number, "PENDING", "", 1, None, None, "", name, str(work_dir)
            )
            for task in tasks
        ]
        return Submission(number)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    fake = Slurm()
    monkeypatch.setattr(send, "send", fake.send)
    monkeypatch.setattr(client, "queued", lambda: list(fake.jobs))
    monkeypatch.setattr(client, "config", dict)
    monkeypatch.setattr(cluster, "require_sbatch", lambda: None)
    monkeypatch.setattr(cluster, "examine_again", lambda runs: runs)
    monkeypatch.setattr(prerequisites, "prepare", lambda _: None)
    return fake


def planned_runs(root: Path, *names: str, sweep: str | None = None) -> list[PlannedRun]:
    config = make_config("cluster=local-slurm", "model.n_layers=1", "train.duration=4steps")
    runs = []
    for name in names:
        section = dataclasses.replace(config.run, root=str(root), name=name, sweep=sweep)
        runs.append(planned(dataclasses.replace(config, run=section)))
    return runs


@contextlib.contextmanager
def over_quota(folder: Path) -> Iterator[None]:
    """Nothing can be written into `folder`."""
    append = ledger.append_line

    def full(path: Path, line: str) -> None:
        if path.parent == folder:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
        append(path, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "append_line", full)
        yield


def submissions(run: RunLayout) -> list[Any]:
    return [event.facts["job"] for event in ledger.read(run.ledger) if event.event == "submitted"]


def test_a_queued_job_whose_ledger_cannot_be_written_keeps_its_run_and_is_told_of(
    slurm: Slurm, tmp_path: Path
) -> None:
    (run,) = planned_runs(tmp_path, "one")
    layout = run.layout
    with over_quota(layout.ledger), pytest.raises(send.QueuedNotRecorded, match="job 12 is queued"):
        cluster.submit([run], [])
    assert layout.script.exists()
    assert cluster.submit([run], []).left == {layout.path: "job 12 is PENDING"}
    assert len(slurm.jobs) == 1


@pytest.mark.parametrize("again", ["the user", "the watchdog"])
def test_an_array_of_which_not_all_runs_could_be_noted_is_sent_once(
    slurm: Slurm, tmp_path: Path, again: str
) -> None:
    runs = planned_runs(tmp_path, "a", "b", "c", sweep="rates")
    second = runs[1].layout
    with over_quota(second.ledger):
        with pytest.raises(send.QueuedNotRecorded, match="job 12 is queued"):
            cluster.submit(runs, ["-m"])
        assert "job 12 is queued" in "".join(backlog_pass.go_on(tmp_path))
    if again == "the user":
        assert cluster.submit(runs, ["-m"]).jobs == []
    else:
        assert list(backlog_pass.go_on(tmp_path)) == []
    assert [job.address for job in slurm.jobs] == ["12_0", "12_1", "12_2"]
    assert [set(submissions(run.layout)) for run in runs] == [
        {"12_0"},
        {"12_1"},
        {"12_2"},
    ]


def test_a_run_that_was_removed_before_it_was_noted_keeps_nobody_from_submitting(
    slurm: Slurm, tmp_path: Path
) -> None:
    runs = planned_runs(tmp_path, "a", "b", sweep="rates")
    removed = runs[1].layout
    with over_quota(removed.ledger), pytest.raises(send.QueuedNotRecorded):
        cluster.submit(runs, ["-m"])
    shutil.rmtree(removed.path)
    (other,) = planned_runs(tmp_path, "other")
    assert len(cluster.submit([other], []).jobs) == 1
    assert set(submissions(runs[0].layout)) == {"12_0"}
    assert not removed.path.exists()


def test_an_array_that_the_watchdog_could_not_note_is_not_sent_again(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned_runs(tmp_path, "a", "b", sweep="rates")
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "fill", lambda *_: iter(()))  # no room
        cluster.submit(runs, ["-m"])
    monkeypatch.setattr(backlog_pass, "AGAIN_S", 0.0)
    with over_quota(runs[0].layout.ledger):
        assert "job 12 is queued" in "".join(backlog_pass.go_on(tmp_path))
    for _ in range(2):
        list(backlog_pass.go_on(tmp_path))
    assert [job.address for job in slurm.jobs] == ["12_0", "13_1"]


def test_links_that_cannot_be_made_undo_no_array(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned_runs(tmp_path, "a", "b", sweep="rates")

    def full(_: JobScript) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(JobScript, "link", full)
    with pytest.raises(send.QueuedNotRecorded, match="submitted before: 12"):
        cluster.submit(runs, ["-m"])
    assert all(run.layout.path.exists() for run in runs)
    assert len(slurm.jobs) == 2


def test_what_fails_before_sbatch_leaves_nothing(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: JobScript) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(JobScript, "write", full)
    with pytest.raises(OSError, match="quota"):
        cluster.submit(planned_runs(tmp_path, "one"), [])
    assert not (tmp_path / "one").exists()
    assert slurm.jobs == []


def test_what_waits_is_submitted_where_a_file_system_has_no_locks(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "fill", lambda *_: iter(()))  # no room
        cluster.submit(planned_runs(tmp_path, "a", "b", sweep="rates"), ["-m"])
    monkeypatch.setattr(backlog_pass, "AGAIN_S", 0.0)

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(list(backlog_pass.go_on(tmp_path))) == 1
    assert slurm.jobs


@pytest.mark.parametrize(
    "environment",
    [{"SBATCH_CLUSTERS": "gpu"}, {"SBATCH_CLUSTERS": "gpu", "SLURM_CLUSTERS": "cpu"}],
)
def test_a_cluster_that_the_shell_names_for_sbatch_alone_is_refused(
    environment: dict[str, str],
) -> None:
    with pytest.raises(InputError, match="export SLURM_CLUSTERS=gpu instead"):
        cluster.with_site_defaults(make_config(), environment)


@pytest.mark.parametrize("clusters", ["gpu,cpu", "all"])
def test_jobs_of_a_root_live_in_one_cluster(clusters: str) -> None:
    with pytest.raises(InputError, match="one cluster's name is expected"):
        cluster.with_site_defaults(make_config(), {"SLURM_CLUSTERS": clusters})


def test_a_cluster_that_all_commands_ask_is_right() -> None:
    config = make_config()
    environment = {"SLURM_CLUSTERS": "gpu", "SBATCH_CLUSTERS": "gpu"}
    assert cluster.with_site_defaults(config, environment) == config


def test_a_run_whose_job_lives_in_another_cluster_is_not_submitted_to_this_one(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "gpu")
    runs = planned_runs(tmp_path, "one")
    cluster.submit(runs, [])
    monkeypatch.delenv("SLURM_CLUSTERS")
    slurm.jobs = []
    with pytest.raises(InputError, match=r"job 12 was submitted to another.*SLURM_CLUSTERS=gpu"):
        cluster.submit(runs, [])
    ledger.Ledger(runs[0].layout.ledger, "watchdog-1").write("cancelled")
    assert cluster.submit(runs, []).jobs


def test_what_sbatch_says_of_an_accepted_job_stands_below_it(
    tmp_path: Path,
    slurm: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    note = "sbatch: note: moved to partition long"
    accept = slurm.send

    def send_with_note(*words: Any, **more: Any) -> Submission:
        return dataclasses.replace(accept(*words, **more), notes=(note,))

    monkeypatch.setattr(send, "send", send_with_note)
    single = planned_runs(tmp_path, "one")
    report.outcome(cluster.submit(single, []), single)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["submitted: job 12 (one)", f"  {note}"]
    swept = planned_runs(tmp_path, "a", "b", sweep="s")
    report.outcome(cluster.submit(swept, []), swept)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["submitted: array 13 (s), 2 runs", f"  {note}"]
