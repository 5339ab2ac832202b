"""Ctrl-C, signals, vanished parents, other optimizers, no compiler: what a user meets at the
terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.config import hints
from hpc_llm.runs import heartbeat, ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.trackers import jsonl
from tests.chaos.local_runs import TINY, Finished, run
from tests.waiting import until

pytestmark = pytest.mark.slow

LONG = (
    "train.duration=3000steps",
    "checkpoint.every=10000steps",
    "train.eval_every=10000steps",
    "optim.warmup=2steps",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@contextlib.contextmanager
def started(root: Path, name: str) -> Iterator[tuple[subprocess.Popen[str], RunLayout]]:
    """A long run that has trained some steps."""
    layout = RunLayout(root / name)
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *TINY,
        *LONG,
        f"run.root={root}",
        f"run.name={name}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until(lambda: len(jsonl.read(layout.metrics)) > 20, 120, "steps")
        yield process, layout
    finally:
        process.kill()
        process.wait()


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_bit(root: Path) -> None:
    words = ("train.duration=400steps", "checkpoint.every=10000steps")
    plain = run(root, "plain", *words)
    layout = RunLayout(root / "stopped")
    command = [
        sys.executable,
        "-m",
        "hpc_llm.submit",
        *TINY,
        *words,
        f"run.root={root}",
        "run.name=stopped",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: len(jsonl.read(layout.metrics)) > 20, 120, "steps")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    stopped = manifest.newest_step(layout.checkpoints)
    assert 0 < stopped < 400
    assert f"newest checkpoint: step {stopped}" in output
    assert f"go on with: {hints.command('submit')}" in output

    again = run(root, "stopped", *words)
    assert again.status == 0, again.output
    assert f"going on from the checkpoint of step {stopped}" in again.output
    assert again.losses == plain.losses
    last = [
        manifest.read(manifest.folder_of(one.layout.checkpoints, 400)).files
        for one in (again, plain)
    ]
    assert last[0] == last[1]

    third = run(root, "stopped", *words)
    assert third.status == 0
    assert "is complete" in third.output
    assert third.layout.attempts.joinpath("0003").exists() is False


def test_a_finished_run_trains_further_as_one_that_was_longer_from_the_start(root: Path) -> None:
    words = ("optim.schedule=constant", "checkpoint.every=100steps", "train.eval_every=100steps")
    plain = run(root, "twelve", *words, "train.duration=12steps")
    run(root, "grown", *words, "train.duration=6steps")
    grown = run(root, "grown", *words, "train.duration=12steps")
    assert grown.status == 0, grown.output
    assert "6 steps become 12; schedule constant: the learning rate goes on" in grown.output
    assert "going on from the checkpoint of step 6" in grown.output
    assert grown.losses == plain.losses
    ends = []
    for one in (grown, plain):
        ends.append(manifest.read(manifest.folder_of(one.layout.checkpoints, 12)).files)
    assert ends[0] == ends[1]
    assert [done["steps"] for done in grown.named("completed")] == [6, 12]
    assert "is complete" in run(root, "grown", *words, "train.duration=12steps").output
    shorter = run(root, "grown", *words, "train.duration=6steps")
    assert shorter.status == 2
    assert "6 steps are fewer than the 12" in shorter.output


def test_hours_that_are_spent_stop_a_healthy_run_and_the_user_can_give_it_more(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_LLM_PACE", str(root / "never"))  # leaves the cores to others
    words = (
        "train.duration=1000000steps",
        "checkpoint.every=1000000steps",
        "train.eval_every=1000000steps",
    )
    hours = 25 / 3600
    spent = run(root, "hours", *words, f"run.max_gpu_hours={hours}")
    assert spent.status == 1, spent.output
    assert f"run.max_gpu_hours={hours:g} spent" in spent.output
    (end,) = spent.named("ended")
    assert (end["cause"], end["restart"]) == ("hours-spent", False)
    assert len(spent.named("given-up")) == 1
    saved = manifest.newest_step(spent.layout.checkpoints)
    assert 0 < saved == len(spent.losses)

    more = run(root, "hours", *words, f"run.max_gpu_hours={hours * 1.2}")
    assert more.status == 1, more.output
    assert f"going on from the checkpoint of step {saved}" in more.output
    assert manifest.newest_step(more.layout.checkpoints) > saved


def test_a_second_ctrl_c_leaves_at_once_and_leaves_nobody_behind(root: Path) -> None:
    with started(root, "twice") as (process, layout):
        family = descendants(process)
        ranks = [one for one in family if "hpc_llm.train" in " ".join(one.cmdline())]
        assert ranks
        for rank in ranks:
            rank.suspend()  # it cannot save
        process.send_signal(signal.SIGINT)
        until(
            lambda: any(
                "notice" in path.read_text() for path in layout.ledger.glob("supervisor-*")
            ),
            120,
            "first notice",
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert manifest.steps(layout.checkpoints) == []


def test_a_submit_that_is_killed_takes_its_ranks_with_it_and_they_save_first(root: Path) -> None:
    with started(root, "orphaned") as (process, layout):
        family = descendants(process)
        process.kill()
        assert psutil.wait_procs(family, timeout=60)[1] == []
        assert manifest.newest_step(layout.checkpoints) > 0


def test_a_run_that_somebody_trains_already_is_left_alone(root: Path) -> None:
    with started(root, "busy") as (_, layout):
        before = layout.plan.stat().st_mtime_ns
        second = run(root, "busy", *LONG)
        assert second.status == 1
        assert "another process is training this run" in second.output
        assert not layout.attempt(2).exists()
        assert layout.plan.stat().st_mtime_ns == before
        assert [event.event for event in ledger.read(layout.ledger)].count("submitted") == 1


@pytest.mark.parametrize("optimizer", ["fused_lion", "cpu_adam", "cpu_lion", "torch_adam"])
def test_every_optimizer_trains_and_resumes_to_the_bit(root: Path, optimizer: str) -> None:
    words = (
        f"optim={optimizer}",
        "optim.warmup=2steps",
        "train.zero_stage=2",
        "cluster.gpus_per_node=2",
    )
    plain = run(root, f"{optimizer}-plain", *words)
    assert plain.status == 0, plain.output
    faults = [{"attempt": 1, "rank": 1, "kind": "kill", "step": 5}]
    hurt = run(root, optimizer, *words, faults=faults)
    assert hurt.status == 0, hurt.output
    assert hurt.losses == plain.losses
    assert len(plain.final_tensors) > 10
    assert (
        hurt.final_tensors == plain.final_tensors
    )  # not the files: DeepSpeed's Lion adds a key when it is loaded
    written = manifest.read(manifest.folder_of(hurt.layout.checkpoints, 8)).optimizer
    lion = "deepspeed.DeepSpeedCPULion"
    adam = "deepspeed.DeepSpeedCPUAdam"
    assert (
        written
        == {"fused_lion": lion, "cpu_lion": lion, "cpu_adam": adam, "torch_adam": "torch.AdamW"}[
            optimizer
        ]
    )


def test_without_a_compiler_the_trainer_says_so_and_uses_torchs_adam(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_LLM_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    bare = run(root, "bare", "optim=fused_adam")
    assert bare.status == 0, bare.output
    assert "no C++ compiler" in bare.output
    log = bare.layout.rank_log(1, 0).read_text()
    assert "DeepSpeed's fused_adam is not built: using torch's fused AdamW instead" in log
    assert manifest.read(manifest.folder_of(bare.layout.checkpoints, 8)).optimizer == "torch.AdamW"


def test_a_checkpoint_of_another_optimizer_is_refused_in_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [{"attempt": 1, "rank": 0, "kind": "kill", "step": 5}]
    run(root, "changed", "optim=fused_adam", "recovery.max_crashes=0", faults=faults)
    monkeypatch.setenv("HPC_LLM_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    changed: Finished = run(root, "changed", "optim=fused_adam")
    assert changed.status == 2
    assert "optimizer deepspeed.FusedAdam → torch.AdamW" in changed.output


def test_a_disk_that_is_really_full_costs_no_checkpoint(root: Path, tmp_path: Path) -> None:
    """A file system of a few hundred KiB: the first save fits, later ones do not, and the run says
    so.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    words = [*TINY, f"run.root={tmp_path}", "run.name=small", f"data.out={root}/.shared-data"]
    words += ["checkpoint.keep=1", "model.d_model=64"]
    command = [sys.executable, "-m", "hpc_llm.submit", *words]
    script = f"""
        mount -t tmpfs -o size=1m,mode=0700 none {shlex.quote(str(tmp_path))}
        exec {shlex.join(command)}
    """
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    assert done.returncode == 2, done.stdout
    assert "GiB free" in done.stdout


def test_a_disk_that_is_full_for_a_while_costs_neither_the_run_nor_a_row(
    root: Path, tmp_path: Path
) -> None:
    """Filled to the last page while steps and saves go on, and freed again."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    kept = tmp_path / "kept"
    place.mkdir()
    words = [
        *TINY,
        "train.duration=800steps",
        "checkpoint.every=50steps",
        "checkpoint.keep=1",
        "optim.warmup=2steps",
    ]
    words += [f"run.root={place}", "run.name=filled", f"data.out={root}/.shared-data"]
    script = f"""
        mount -t tmpfs -o size=64m,mode=0700 none {shlex.quote(str(place))}
        {shlex.join([sys.executable, "-m", "hpc_llm.submit", *words])}
        status=$?
        cp -r {shlex.join([str(place / "filled"), str(kept)])}
        exit $status
    """
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = Path(f"/proc/{process.pid}/root{place}")  # as the processes below that mount see it
    try:
        until(lambda: len(jsonl.read(seen / "filled" / "metrics.jsonl")) > 60, 120, "steps")
        fill(seen / "filler")
        written = len(jsonl.read(seen / "filled" / "metrics.jsonl"))
        heartbeats = RunLayout(seen / "filled").heartbeats
        begun = newest_beat(heartbeats)
        until(
            lambda: newest_beat(heartbeats) > begun + 120 or process.poll() is not None,
            120,
            "more steps",
        )
        assert process.poll() is None, process.communicate()[0]
        assert len(jsonl.read(seen / "filled" / "metrics.jsonl")) < written + 50
        (seen / "filler").unlink()
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    finished = Finished(process.returncode, output, RunLayout(kept), last=800)
    assert finished.named("save-failed")
    assert [end["cause"] for end in finished.named("ended")] == ["completed"]
    assert [
        int(row["step"]) for row in jsonl.read(kept / "metrics.jsonl") if "loss" in row
    ] == list(range(1, 801))


def fill(path: Path) -> None:
    """Take all the room there is, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def newest_beat(heartbeats: Path) -> int:
    return max((beat.step for beat in heartbeat.read(heartbeats, 1).values()), default=0)


def test_a_run_that_was_killed_between_its_last_save_and_its_end_is_evaluated_all_the_same(
    tmp_path: Path,
) -> None:
    """As one that is stopped in its last step, which saves and leaves."""
    done = run(tmp_path, "late")
    rows = jsonl.read(done.layout.metrics)
    (last,) = (row for row in rows if "heldout_loss" in row)
    for path in done.layout.ledger.glob("supervisor-*.jsonl"):
        path.unlink()  # nobody says that it is complete
    done.layout.metrics.write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row is not last)
    )
    again = run(tmp_path, "late")
    assert again.status == 0, again.output
    assert again.losses == done.losses
    evaluated = [row for row in jsonl.read(again.layout.metrics) if "heldout_loss" in row]
    assert [(row["step"], row["heldout_loss"]) for row in evaluated] == [
        (last["step"], last["heldout_loss"])
    ]
