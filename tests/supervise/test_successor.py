"""The job that waits for the end of this one, where no watchdog runs: it is kept from bad nodes."""

from __future__ import annotations

from hpc_llm.recovery import exclusion, node_evidence, run_record
from hpc_llm.recovery.exclusion import NodeExclusions
from hpc_llm.runs.layout import RunLayout
from hpc_llm.supervise import successor
from tests.fake_slurm import FakeSlurm, attempt, book, make_run, named, write


def on_a_bad_node(slurm: FakeSlurm) -> RunLayout:
    run = make_run(slurm, "one", "recovery.successor=true", "cluster.exclude=n4", job="12")
    attempt(run, 1, 3000)
    slurm.nodes |= {"n5": "idle"}
    node_evidence.report(slurm.root, "n1", "gpu-fault", run="one", attempt=1)
    return run


def test_a_successor_is_queued_without_the_bad_nodes(slurm: FakeSlurm) -> None:
    run = on_a_bad_node(slurm)
    successor.queue_next(run_record.read_record(run), "12", book(run, "successor-12"))
    (waiting,) = named(run, "successor")
    assert slurm.excluded[waiting.facts["job"]] == "n4,n1"
    assert named(run, "excluded")[0].facts["nodes"] == ["n1"]


def test_a_successor_that_waits_already_is_told_of_what_has_gone_bad_since(
    slurm: FakeSlurm,
) -> None:
    run = on_a_bad_node(slurm)
    slurm.put("13", "PENDING", reason="Dependency")
    write(run, 2000, "successor-12", "successor", job="13", after="12")
    successor.queue_next(run_record.read_record(run), "12", book(run, "successor-12"))
    assert slurm.excluded == {"13": "n4,n1"}


def test_a_job_on_a_bad_node_leaves_the_run_to_its_successor(slurm: FakeSlurm) -> None:
    run = on_a_bad_node(slurm)
    assert not successor.hand_over(run, book(run))
    slurm.put("13", "PENDING", reason="Dependency")
    write(run, 2000, "successor-12", "successor", job="13", after="12")
    assert successor.hand_over(run, book(run))
    assert slurm.excluded == {"13": "n4,n1"}


def test_what_was_excluded_from_the_next_job_is_new_to_this_one(slurm: FakeSlurm) -> None:
    run = on_a_bad_node(slurm)
    write(run, 100, "successor-12", "excluded", nodes=["n1"], job="13")
    assert (
        found := exclusion.find_exclusion(run_record.read_record(run), NodeExclusions(slurm.root))
    )
    assert found.new == ["n1"]
    write(run, 50, "successor-13", "resubmitted", job="13", after_attempt=1)
    assert (
        found := exclusion.find_exclusion(run_record.read_record(run), NodeExclusions(slurm.root))
    )
    assert found.new == []
