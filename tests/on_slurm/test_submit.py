"""Submission to a real Slurm: what is queued, what is left behind, and what a person reads."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpc_llm import submit as verb
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.slurm import executor
from hpc_llm.status import __main__
from hpc_llm.submission import backlog, send
from hpc_llm.watchdog import __main__ as watchdog
from tests.waiting import until

if TYPE_CHECKING:
    from conftest import SlurmCluster

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).resolve().parents[2]
HELD = "cluster.sbatch.hold=true"
# In place of Python: what a job would run, where, and with which source and configuration.
FAKE_PYTHON = """#!/bin/bash
run_dir=${!#}
{ echo "$@"; pwd -P; head -c 40 hpc_llm/__init__.py; cat "$run_dir/config.json"; } >"$run_dir/seen"
"""


COMPLETES_PYTHON = """#!/bin/bash
run_dir=${!#}
echo '{"time": '$(date +%s.%N)', "event": "completed", "attempt": 1}' >>"$run_dir/ledger/supervisor-0001.jsonl"
"""  # noqa: E501


# A loss that is least at a learning rate of 1e-3.
TRAINS_PYTHON = (
    COMPLETES_PYTHON
    + """
rate=$(grep -oP '"lr": \\K[0-9.e-]+' "$run_dir/config.json" | tail -1)  # the first is the model's advice
loss=$(awk "BEGIN { d = log($rate) / log(10) + 3; print d < 0 ? -d : d }")
echo '{"step": 1, "heldout_loss": '$loss'}' >>"$run_dir/metrics.jsonl"
"""  # noqa: E501
)


@dataclass(frozen=True)
class Answer:
    """What submit said."""

    status: int
    out: str
    err: str

    @property
    def jobs(self) -> list[dict[str, str]]:
        """With json=true: the runs and their jobs."""
        assert self.status == 0, self.err
        found: list[dict[str, str]] = json.loads(self.out)
        return found


@dataclass(frozen=True)
class Submit:
    """`python -m hpc_llm.submit` in this process, on a cluster, with data that are prepared once
    for all tests.
    """

    slurm: SlurmCluster
    root: Path
    words: list[str]
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Answer:
        self.capsys.readouterr()
        code = verb.main([*self.words, *words])
        said = self.capsys.readouterr()
        return Answer(code, said.out, said.err)

    def status(self) -> list[dict[str, Any]]:
        """`status --json`."""
        self.capsys.readouterr()
        assert __main__.main([str(self.root), "--json"]) == 0
        rows: list[dict[str, Any]] = json.loads(self.capsys.readouterr().out)
        return rows

    def made(self) -> list[str]:
        """Runs and sweeps below the root."""
        return sorted(path.name for path in self.root.glob("[!.]*")) if self.root.exists() else []


@pytest.fixture
def submit_to(
    tmp_path: Path,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[[SlurmCluster], Submit]]:
    umask = os.umask(0o077)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    words = ["+cluster=local-slurm", "optim=torch_adam", "model.d_model=64", "train.global_batch=4"]
    words += [
        f"data.out={shards}",
        f"run.root={tmp_path / 'runs'}",
        f"cluster.python={tmp_path / 'python'}",
    ]

    def on(slurm: SlurmCluster) -> Submit:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            monkeypatch.delenv(name)
        for name, value in slurm.env.items():
            if name.startswith(("SLURM_", "LOCAL_SLURM")):
                monkeypatch.setenv(name, value)
        return Submit(slurm, tmp_path / "runs", words, capsys)

    yield on
    os.umask(umask)


@pytest.fixture
def submit(slurm: SlurmCluster, submit_to: Callable[[SlurmCluster], Submit]) -> Submit:
    return submit_to(slurm)


@pytest.fixture
def sbatch_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script before the real sbatch, which it finds as $REAL."""
    real = shutil.which("sbatch")

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "sbatch").write_text(f"#!/bin/bash\nREAL={shlex.quote(str(real))}\n{script}\n")
        (folder / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


def run_of(folder: Path) -> RunLayout:
    return RunLayout(folder)


def names_in_queue(slurm: SlurmCluster) -> list[str]:
    return sorted(row[0] for row in slurm.squeue("--array", fields="%j"))


def test_a_run_is_frozen_queued_and_noted(submit: Submit) -> None:
    answer = submit("run.name=first", HELD)
    assert answer.status == 0
    run = run_of(submit.root / "first")
    ((job, name, state),) = submit.slurm.squeue(fields="%i %j %T")
    assert (name, state) == ("first", "PENDING")
    assert answer.out.splitlines()[:3] == [
        f"submitted: job {job} (first)",
        f"run directory: {run.path}",
        "next:",
    ]
    assert f"  scancel {job}" in answer.out.splitlines()
    (event,) = ledger.read(run.ledger)
    assert (event.event, event.facts["job"], event.facts["job_id"]) == ("submitted", job, int(job))
    assert "run.name=first" in event.facts["words"]
    assert submit.slurm.job(job)["Command"] == str(run.script)
    names = {path.name for path in run.path.iterdir()}
    assert {"config.json", "plan.json", "code", "job.sbatch", "ledger", "slurm"} <= names
    assert not [name for name in names if name.startswith(".") or "submi" in name]


def test_the_job_becomes_the_supervisor_in_the_snapshot(submit: Submit) -> None:
    (job,) = submit("run.name=first", "json=true").jobs
    submit.slurm.wait_state(job["job"], "COMPLETED")
    lines = (Path(job["run_dir"]) / "seen").read_text().splitlines()
    assert lines[0] == f"-m hpc_llm.supervise {job['run_dir']}"
    assert lines[1] == str((submit.root / "first" / "code").resolve())


def test_a_sweep_is_one_array_with_its_throttle_and_a_directory_for_each_run(
    submit: Submit,
) -> None:
    words = (
        "run.name=rates",
        "optim.lr=1e-3,2e-3,3e-3",
        "run.seed=1,2",
        "cluster.array_throttle=2",
        "-m",
    )
    answer = submit(*words, HELD)
    assert answer.status == 0
    ((array, tasks),) = [row[0].split("_") for row in submit.slurm.squeue()]
    assert tasks == "[0-5%2]"
    assert answer.out.splitlines()[0] == f"submitted: array {array} (rates), 6 runs"
    sweep = submit.root / "rates"
    names = [f"lr={lr},seed={seed}" for lr in ("1e-3", "2e-3", "3e-3") for seed in (1, 2)]
    assert sorted(path.name for path in sweep.iterdir()) == sorted([*names, "job.sbatch", "slurm"])
    for task, name in enumerate(names):
        run = run_of(sweep / name)
        assert ledger.read(run.ledger)[0].facts["job"] == f"{array}_{task}"
        assert run.script.resolve() == sweep / "job.sbatch"
    assert len({run_of(sweep / name).code.resolve() for name in names}) == 1
    assert len(list((submit.root / ".code").iterdir())) == 1


def test_every_task_runs_its_own_run_two_at_a_time(submit: Submit) -> None:
    jobs = submit("run.name=s", "run.seed=range(0,3)", "-m", "json=true", "cluster.nodes=1").jobs
    for job in jobs:
        submit.slurm.wait_state(job["job"], "COMPLETED", timeout_s=60)
        run = Path(job["run_dir"])
        assert f"hpc_llm.supervise {run}" in (run / "seen").read_text()
        assert (run / "slurm" / f"{job['job']}.log").exists()
    (shared,) = (submit.root / "s" / "slurm").iterdir()
    assert shared.read_text() == ""


def test_runs_of_different_shapes_have_arrays_of_their_own(submit: Submit) -> None:
    words = (
        "run.name=s",
        "cluster.nodes=1,2",
        "run.seed=1,2",
        "cluster.array_throttle=3",
        "-m",
        HELD,
    )
    assert submit(*words).status == 0
    arrays = sorted(submit.slurm.squeue(fields="%D %j %i"))
    assert [(nodes, name, tasks.partition("_")[2]) for nodes, name, tasks in arrays] == [
        ("1", "s", "[0-1%2]"),
        ("2", "s-2", "[0-1%1]"),
    ]
    assert (
        run_of(submit.root / "s" / "nodes=2,seed=1").script.resolve()
        == submit.root / "s" / "job-2.sbatch"
    )


def test_a_sweep_above_max_array_size_becomes_several_arrays(
    make_slurm: Callable[..., SlurmCluster], submit_to: Callable[[SlurmCluster], Submit]
) -> None:
    submit = submit_to(make_slurm("--max-array-size", "4", "--no-accounting"))
    jobs = submit("run.name=s", "run.seed=range(0,10)", "-m", "json=true", HELD).jobs
    arrays = list(dict.fromkeys(job["job"].partition("_")[0] for job in jobs))
    assert len(arrays) == 3
    assert [job["job"] for job in jobs] == [f"{arrays[seed // 4]}_{seed % 4}" for seed in range(10)]
    assert [Path(job["run_dir"]).name for job in jobs] == [f"seed={seed}" for seed in range(10)]


def test_what_slurm_has_no_room_for_goes_out_as_other_jobs_end(
    make_slurm: Callable[..., SlurmCluster],
    submit_to: Callable[[SlurmCluster], Submit],
    tmp_path: Path,
) -> None:
    submit = submit_to(make_slurm("--max-submit", "4"))
    (tmp_path / "python").write_text(COMPLETES_PYTHON)
    words = (
        "run.name=s",
        "run.seed=range(0,10)",
        "-m",
        "cluster.nodes=1",
        "cluster.gpus_per_node=1",
        HELD,
    )
    said = submit(*words).out
    assert (
        "6 runs are waiting until Slurm accepts more jobs: sbatch: AssocMaxSubmitJobLimit" in said
    )
    runs = [run_of(path.parent) for path in submit.root.glob("s/*/config.json")]
    assert sorted(row["state"] for row in submit.status()) == ["queued"] * 10
    assert [row["cause"] for row in submit.status()].count("no-room") == 6

    def complete() -> int:
        return sum(
            any(event.event == "completed" for event in ledger.read(run.ledger)) for run in runs
        )

    while (before := complete()) < 10:
        waiting = submit.slurm.squeue("--array", fields="%F_%K")
        assert 1 <= len(waiting) <= 4
        for (job,) in waiting:
            submit.slurm.run("scontrol", "release", job)
        until(lambda: not submit.slurm.squeue(), 30, "an empty queue")
        assert complete() == before + len(waiting)
        assert watchdog.main([str(submit.root), "--once"]) == 0
    assert all(
        [event.event for event in ledger.read(run.ledger)].count("submitted") == 1 for run in runs
    )
    assert list((submit.root / ".backlog").iterdir()) == []
    assert "10 are complete" in submit(*words).out


def test_a_watchdog_that_dies_over_a_submission_sends_nothing_twice(
    make_slurm: Callable[..., SlurmCluster],
    submit_to: Callable[[SlurmCluster], Submit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit = submit_to(make_slurm("--max-submit", "3"))
    words = (
        "run.name=s",
        "run.seed=range(0,6)",
        "-m",
        "cluster.nodes=1",
        "cluster.gpus_per_node=1",
        HELD,
    )
    first = [job["job"] for job in submit(*words, "json=true").jobs]
    assert len(first) == 3
    for number, job in enumerate(first):
        submit.slurm.run("scancel", job)
        ledger.Ledger(run_of(submit.root / "s" / f"seed={number}").ledger, "supervisor-0001").write(
            "completed", attempt=1
        )

    def dies(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(backlog.Backlog, "record_sent", dies)
        watchdog.main([str(submit.root), "--once"])
    queued = sorted(row[0] for row in submit.slurm.squeue("--array", fields="%F_%K"))
    assert len(queued) == 3
    assert watchdog.main([str(submit.root), "--once"]) == 0
    assert sorted(row[0] for row in submit.slurm.squeue("--array", fields="%F_%K")) == queued
    noted = [
        ledger.read(run_of(submit.root / "s" / f"seed={seed}").ledger)[-1].facts["job"]
        for seed in (3, 4, 5)
    ]
    assert sorted(noted) == queued


def test_who_cancels_the_jobs_of_a_sweep_cancels_what_waits_for_room(
    make_slurm: Callable[..., SlurmCluster], submit_to: Callable[[SlurmCluster], Submit]
) -> None:
    submit = submit_to(make_slurm("--max-submit", "2"))
    assert submit("run.name=s", "run.seed=range(0,6)", "-m", HELD).status == 0
    shutil.rmtree(submit.root / "s" / "seed=5")  # nor is this one wanted any more
    for (task,) in submit.slurm.squeue("--array", fields="%F_%K"):
        submit.slurm.run("scancel", task)
    assert watchdog.main([str(submit.root), "--once"]) == 0
    assert submit.slurm.squeue() == []
    assert [row["state"] for row in submit.status()] == ["cancelled"] * 5
    assert "4 runs are waiting" in submit("run.name=s", "run.seed=range(0,6)", "-m", HELD).out
    assert len(submit.slurm.squeue("--array")) == 2
    assert (
        watchdog.main([str(submit.root), "--once"]) == 0
    )  # what was cancelled once is wanted again
    assert len(submit.slurm.squeue("--array")) == 2
    rows = submit.status()
    assert {row["state"] for row in rows} == {"queued"}
    assert [row["cause"] for row in rows].count("no-room") == 4


def test_who_cancels_the_trials_of_a_search_ends_it_until_the_words_are_typed_again(
    submit: Submit,
) -> None:
    words = (
        "run.name=s",
        "-m",
        "optim.lr=interval(0.001,0.1)",
        "search.trials=9",
        "search.parallel=2",
        HELD,
    )
    assert "2 runs" in submit(*words).out
    submit.slurm.run("scancel", f"--user={os.getuid()}")
    for _ in range(2):
        assert watchdog.main([str(submit.root), "--once"]) == 0
    assert submit.slurm.squeue() == []
    assert len(list(submit.root.glob("s/trial-*"))) == 2
    assert "2 runs" in submit(*words).out
    assert sorted(path.name for path in submit.root.glob("s/trial-*")) == [
        f"trial-{n:04d}" for n in range(4)
    ]


def test_a_search_goes_on_by_its_results_until_its_trials_are_through(
    submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "python").write_text(TRAINS_PYTHON)
    words = (
        "run.name=s",
        "-m",
        "optim.lr=tag(log,interval(1e-5,1e-1))",
        "cluster.nodes=1",
        "cluster.gpus_per_node=1",
    )
    words += ("search.trials=8", "search.parallel=3")
    assert "3 runs" in submit(*words).out

    def trials() -> list[Path]:
        return sorted(submit.root.glob("s/trial-*"))

    while submit.slurm.squeue():
        until(lambda: not submit.slurm.squeue(), 30, "an empty queue")
        before = len(trials())
        assert watchdog.main([str(submit.root), "--once"]) == 0
        assert len(trials()) == min(8, before + 3)
    assert submit(*words).out == "s: 8 trials, 8 ended; nothing to submit now\n"
    assert len({(path / "code").resolve() for path in trials()}) == 1
    rates = [json.loads((path / "config.json").read_text())["optim"]["lr"] for path in trials()]
    assert len(set(rates)) == 8
    asked = json.loads((submit.root / ".searches" / "s.json").read_text())
    assert [one["optim.lr"] for one in asked["asked"]] == rates
    assert list(asked["ended"].values()) == [
        pytest.approx(abs(math.log10(rate) + 3), abs=1e-4) for rate in rates
    ]
    assert "a search of another space" in submit(*words, "optim.weight_decay=0,0.1").err


def test_a_sweep_submitted_again_sends_only_what_is_neither_queued_nor_complete(
    submit: Submit,
) -> None:
    words = ("run.name=s", "run.seed=1,2,3", "-m", HELD)
    first = submit(*words, "json=true").jobs
    submit.slurm.run("scancel", first[1]["job"], first[2]["job"])
    ledger.Ledger(run_of(Path(first[2]["run_dir"])).ledger, "supervisor-0001").write(
        "completed", attempt=1
    )
    before = (submit.root / "s" / "job.sbatch").read_text()
    again = submit(*words)
    assert "submitted: array" in again.out
    assert "not submitted: of 3 runs 1 are complete and 1 queued or running" in again.out
    (row,) = [row for row in submit.slurm.squeue("--array", fields="%i %j") if row[1] == "s-2"]
    assert ledger.read(run_of(Path(first[1]["run_dir"])).ledger)[-1].facts["job"] == row[0]
    assert (
        submit.root / "s" / "job.sbatch"
    ).read_text() == before  # tasks of the first array still mean its lines


def test_test_only_asks_slurm_and_writes_nothing(submit: Submit) -> None:
    answer = submit("run.name=first", "test_only=true")
    assert answer.status == 0
    assert answer.out.startswith("first: Job ")
    assert " to start at " in answer.out
    assert (submit.made(), submit.slurm.squeue()) == ([], [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.partition=nope"], "invalid partition specified: nope"),
        (["cluster.nodes=7", "train.global_batch=14"], "More processors requested than permitted"),
        (["cluster.time_min=99999999"], "Requested time limit is invalid"),
        (["cluster.sbatch.dependency=afterok:abc"], "Job dependency problem"),
        (["cluster.sbatch.no-such-option=1"], "no-such-option"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
@pytest.mark.parametrize("sweep", [[], ["run.seed=1,2", "-m"]], ids=["run", "sweep"])
def test_what_slurm_refuses_is_one_line_in_its_words_and_leaves_nothing(
    submit: Submit, words: list[str], said: str, sweep: list[str]
) -> None:
    answer = submit("run.name=first", *words, *sweep)
    assert (answer.status, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert line.startswith("submit: cluster=local-slurm: sbatch: ")
    assert said in line
    assert (submit.made(), submit.slurm.squeue()) == ([], [])


def test_a_refusal_leaves_a_run_that_was_there_as_it_was(submit: Submit) -> None:
    (job,) = submit("run.name=first", "json=true", HELD).jobs
    submit.slurm.run("scancel", job["job"])
    assert submit("run.name=first", "cluster.partition=nope").status == 2
    assert [event.event for event in ledger.read(run_of(submit.root / "first").ledger)] == [
        "submitted"
    ]
    assert submit("run.name=first", HELD).status == 0


def test_a_name_taken_by_another_configuration_is_refused(submit: Submit) -> None:
    assert submit("run.name=first", HELD).status == 0
    answer = submit("run.name=first", "optim.lr=0.5", HELD)
    assert answer.status == 2
    (line,) = answer.err.splitlines()
    assert line.startswith("submit: run.name=first: ")
    assert "holds a run with another configuration (optim.lr=0.002, now 0.5)" in line
    assert names_in_queue(submit.slurm) == ["first"]


def test_a_run_that_is_queued_or_running_is_not_submitted_again(submit: Submit) -> None:
    (job,) = submit("run.name=first", "json=true", HELD).jobs
    answer = submit("run.name=first", HELD)
    assert answer.status == 2
    assert answer.err.startswith(f"submit: run.name=first: job {job['job']} is PENDING: ")
    assert len(answer.err.splitlines()) == 1
    assert names_in_queue(submit.slurm) == ["first"]


def test_of_two_submissions_at_once_one_is_refused(submit: Submit) -> None:
    command = [sys.executable, "-m", "hpc_llm.submit", *submit.words, "run.name=first", HELD]
    assert submit("run.name=other", HELD).status == 0  # the data are there
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pair = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in "ab"
    ]
    for process in pair:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in pair) == [0, 2]
    assert names_in_queue(submit.slurm) == ["first", "other"]


def test_a_complete_run_is_left_alone(submit: Submit) -> None:
    (job,) = submit("run.name=first", "json=true", HELD).jobs
    submit.slurm.run("scancel", job["job"])
    ledger.Ledger(run_of(submit.root / "first").ledger, "supervisor-0001").write(
        "completed", attempt=1
    )
    answer = submit("run.name=first")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == f"{submit.root / 'first'} is complete: nothing left to train\n"
    assert submit.slurm.squeue() == []


@pytest.mark.parametrize("sweep", [[], ["run.seed=1,2", "-m"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    "end",
    [
        (
            'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv '
            'operation" >&2; exit 1'
        ),
        'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
        "kill -KILL $$",
        "exec sleep 60",
        "exit 0",
    ],
    ids=["timed out", "no controller", "killed", "hangs", "says nothing"],
)
def test_a_lost_answer_is_found_again_by_the_jobs_name(
    submit: Submit,
    sbatch_is: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    sweep: list[str],
) -> None:
    monkeypatch.setattr(executor, "SBATCH_TIMEOUT_S", 2)
    assert submit("run.name=other", HELD).status == 0
    sbatch_is(f'"$REAL" "$@" >/dev/null || exit\n{end}')
    jobs = submit("run.name=first", "json=true", HELD, *sweep).jobs
    rows = [row[0] for row in submit.slurm.squeue("--array", fields="%i %j") if row[1] == "first"]
    assert sorted(job["job"] for job in jobs) == sorted(rows)
    assert all(
        ledger.read(run_of(Path(job["run_dir"])).ledger)[-1].facts["job"] == job["job"]
        for job in jobs
    )


def test_a_lost_submission_that_slurm_never_got_leaves_nothing(
    submit: Submit, sbatch_is: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "LOOK_S", 1.5)
    sbatch_is(
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv '
        'operation" >&2; exit 1'
    )
    answer = submit("run.name=first")
    assert answer.status == 1
    (line,) = answer.err.splitlines()
    assert (
        "Socket timed out on send/recv operation; no job first is queued, so nothing was submitted"
        in line
    )
    assert submit.made() == []


def test_a_job_that_comes_late_is_still_found(
    submit: Submit, sbatch_is: Callable[[str], None]
) -> None:
    sbatch_is('(sleep 2; exec setsid "$REAL" "$@") >/dev/null 2>&1 &\nkill -KILL $$')
    (job,) = submit("run.name=first", "json=true", HELD).jobs
    assert names_in_queue(submit.slurm) == ["first"]
    assert submit.slurm.job(job["job"])["JobName"] == "first"


def test_with_slurmctld_away_nothing_is_submitted_and_nothing_left(
    make_slurm: Callable[..., SlurmCluster], submit_to: Callable[[SlurmCluster], Submit]
) -> None:
    slurm = make_slurm("--no-accounting")
    submit = submit_to(slurm)
    slurm.tool("ctld-stop")
    answer = submit("run.name=first")
    assert (answer.status, len(answer.err.splitlines()), submit.made()) == (1, 1, [])
    assert "slurm controller" in answer.err


def test_an_unknown_outcome_keeps_the_run_and_the_next_submission_looks_first(
    make_slurm: Callable[..., SlurmCluster],
    submit_to: Callable[[SlurmCluster], Submit],
    sbatch_is: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm = make_slurm("--no-accounting")
    submit = submit_to(slurm)
    monkeypatch.setattr(send, "PATIENCE_S", 1.0)
    tool = REPOSITORY / "tools" / "local_slurm"
    sbatch_is(f'"$REAL" "$@" >/dev/null; {tool} ctld-stop >/dev/null; kill -KILL $$')
    answer = submit("run.name=first", HELD)
    assert answer.status == 1
    assert (
        "it is not known whether Slurm accepted job first; squeue --me --name=first shows"
        in answer.err
    )
    assert submit.made() == ["first"]
    slurm.tool("ctld-start")
    again = submit("run.name=first", HELD)
    assert again.status == 2
    assert " is PENDING: " in again.err
    assert names_in_queue(slurm) == ["first"]


def test_editing_conf_and_source_while_queued_changes_nothing(
    submit: Submit, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("hpc_llm", "conf"):
        shutil.copytree(
            REPOSITORY / name,
            checkout / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *submit.words,
        "run.name=first",
        "json=true",
        HELD,
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    (job,) = json.loads(done.stdout)
    source = checkout / "hpc_llm" / "__init__.py"
    was = source.read_text()
    source.write_text("raise SystemExit('edited')\n")
    for path in checkout.glob("conf/*/*.yaml"):
        path.write_text(
            path.read_text()
            .replace("global_batch: 16", "global_batch: 32")
            .replace("lr: 2.0e-3", "lr: 9")
        )
    submit.slurm.run("scontrol", "release", job["job"])
    submit.slurm.wait_state(job["job"], "COMPLETED")
    seen = (Path(job["run_dir"]) / "seen").read_text()
    assert was[:40] in seen
    assert "edited" not in seen
    assert '"lr": 0.002' in seen


def test_a_submission_inside_a_job_says_nothing_of_that_job(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "17")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "nope")  # the preset names its own
    monkeypatch.setenv(
        "SBATCH_RESERVATION", "nope"
    )  # a default of the user's shell: this one counts
    answer = submit("run.name=first", HELD)
    assert (answer.status, "reservation" in answer.err) == (2, True)
    monkeypatch.delenv("SBATCH_RESERVATION")
    (job,) = submit("run.name=first", "json=true", HELD).jobs
    fields = submit.slurm.job(job["job"])
    assert (fields["TimeLimit"], fields["Partition"], fields["NumTasks"]) == (
        "00:10:00",
        "train",
        "4",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_or_a_broken_ssh_does_not_lose_a_job(
    submit: Submit, sbatch_is: Callable[[str], None], number: int
) -> None:
    """The whole process group is signalled while sbatch is at work: the job is noted, then submit
    leaves.
    """
    sbatch_is('touch started; sleep 1; exec "$REAL" "$@"')
    command = [
        "env",
        "--default-signal",
        sys.executable,
        "-m",
        "hpc_llm.submit",
    ]  # as a terminal's: nohup ignores some
    command += [*submit.words, "run.name=first", HELD]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until(Path("started").exists, 30, "sbatch at work")
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert names_in_queue(submit.slurm) == ["first"]
    assert [event.event for event in ledger.read(run_of(submit.root / "first").ledger)] == [
        "submitted"
    ]


def test_without_sbatch_on_path_submit_says_what_works_here(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = submit("run.name=first")
    assert answer.status == 2
    assert answer.err.startswith("submit: sbatch is not on PATH: ")
    assert "dry_run=true" in answer.err
    assert submit("run.name=first", "dry_run=true").status == 0
    assert submit.made() == []
