"""What the ledgers of a submission say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.runs import ledger
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import read_story
from hpc_llm.slurm.records import Submission
from hpc_llm.submission import backlog, send


def test_a_task_that_begins_before_its_submission_is_noted_is_an_attempt_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm starts the first task of an array while sbatch still answers."""
    runs = [RunLayout(tmp_path / "sweep" / name) for name in ("a", "b")]
    for run in runs:
        run.make_folders()

    def sbatch(*_: object, **__: object) -> Submission:
        for run in runs:
            ledger.Ledger(run.ledger, "supervisor-0001").write(
                "started", attempt=1, checkpoint_step=0
            )
        return Submission(12)

    monkeypatch.setattr(send, "send", sbatch)
    script = str(tmp_path / "sweep" / "job.sbatch")
    tasks = {number: str(run.path) for number, run in enumerate(runs)}
    waiting = backlog.Backlog(script, "sweep", tasks, None, "", ["-m"])
    assert [sent.number for sent in backlog.fill(waiting, ())] == [12]
    for run in runs:
        assert len(attempts_since_submission(read_story(run.ledger), 0)) == 1
    assert (
        len(
            {
                event.time
                for run in runs
                for event in ledger.read(run.ledger)
                if event.event == "submitted"
            }
        )
        == 1
    )
