"""What squeue and sshare say of a team."""

from __future__ import annotations

import pytest

from hpc_llm.slurm import client, team
from hpc_llm.slurm.team import JOB_COLUMNS, User, read_shares, read_users
from hpc_llm.status.render import render_team
from tests.slurm.columns import columns


def test_users_with_most_gpus_come_first_and_those_with_a_share_alone_last() -> None:
    jobs = columns(
        JOB_COLUMNS,
        ("ann", "nlp", "RUNNING", "node=1,gres/gpu=8"),
        ("bob", "nlp", "PENDING", "node=4,gres/gpu=32"),
        ("ann", "nlp", "PENDING", "node=1,gres/gpu=8"),
        ("a-name-with-many-letters-of-a-directory-service", "nlp", "RUNNING", "node=2,gres/gpu=16"),
    )
    shares = [User("ann", "nlp", fair_share=0.4), User("cy", "nlp", fair_share=0.9)]
    users = read_users(jobs, shares)
    assert [user.name[:3] for user in users] == ["a-n", "ann", "bob", "cy"]
    ann = users[1]
    assert (ann.running, ann.running_jobs, ann.queued, ann.queued_jobs, ann.fair_share) == (
        8,
        1,
        8,
        1,
        0.4,
    )


def test_shares_are_those_of_people() -> None:
    text = (
        "root||1.000000|1.000000|\n nlp||0.500000|0.250000|\n  nlp|ann|0.250000|0.500000|0.125000\n"
    )
    (ann,) = read_shares(text)
    assert ann == User("ann", "nlp", fair_share=0.125, share_used=2.0)


def test_a_site_that_hides_its_nodes_shows_the_users_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def call(*words: str) -> str:
        if words[0] == "squeue":
            return columns(JOB_COLUMNS, ("ann", "nlp", "RUNNING", "node=1,gres/gpu=8"))
        raise client.SlurmRefused(f"{words[0]}: Access/permission denied")

    monkeypatch.setattr(client, "call", call)
    lines = list(render_team(team.ask("nlp")))
    assert lines[0] == "nlp: 8 GPUs running, 0 queued"
    assert lines[-1].startswith("partitions: not shown by this site (sinfo: Access/permission")
