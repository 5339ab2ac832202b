"""A team's part of the cluster: running and queued GPUs by user, its fair share, the partitions.

Three queries to Slurm; without accounting there are no shares and all users are shown.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpc_llm.slurm import client, columns, nodes
from hpc_llm.slurm.columns import num_gpus
from hpc_llm.slurm.nodes import Partition

JOB_COLUMNS = {"UserName": 64, "Account": 64, "State": 32, "tres-alloc": 512}
_SHARE_FIELDS = "Account,User,NormShares,EffectvUsage,FairShare"


@dataclass
class User:
    """GPUs of a user's jobs in one account."""

    name: str
    account: str
    running: int = 0
    queued: int = 0
    running_jobs: int = 0
    queued_jobs: int = 0
    fair_share: float | None = None  # 0 to 1, the factor in Slurm's priority; None: no shares kept
    share_used: float | None = None  # usage ÷ share, both normalised; above 1: more than its share


@dataclass
class Team:
    """accounts: those shown; none if Slurm keeps no accounts.

    refused: why there are no partitions, in Slurm's words.
    """

    accounts: list[str]
    users: list[User] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    refused: str | None = None


def ask(account: str | None = None) -> Team:
    """The team of `account`, by default of every account that the caller belongs to.

    SlurmUnavailable, SlurmRefused.
    """
    shares = _shares()
    accounts = [account] if account else _accounts_of(getpass.getuser(), shares)
    argv = ["squeue", "--noheader", "--array"]
    if accounts:
        argv.append(f"--account={','.join(accounts)}")
    argv.append("--states=RUNNING,PENDING,SUSPENDED,CONFIGURING")
    jobs = client.call(*argv, columns.format_option(JOB_COLUMNS))
    users = read_users(jobs, [share for share in shares if share.account in accounts])
    team = Team(accounts, users)
    try:
        team.partitions = nodes.partitions()
    except client.SlurmRefused as error:  # PrivateData=nodes
        team.refused = str(error)
    return team


def read_users(jobs: str, shares: Iterable[User]) -> list[User]:
    """Every user with a job or a share, those with the most GPUs first.

    jobs: what squeue says in JOB_COLUMNS.
    """
    users = {(share.account, share.name): share for share in shares}
    for name, account, state, tres in columns.rows(jobs, JOB_COLUMNS):
        user = users.setdefault((account, name), User(name, account))
        if state == "PENDING":
            user.queued += num_gpus(tres)
            user.queued_jobs += 1
        else:
            user.running += num_gpus(tres)
            user.running_jobs += 1
    return sorted(
        users.values(), key=lambda user: (-user.running, -user.queued, user.account, user.name)
    )


def read_shares(text: str) -> list[User]:
    """Lines of `sshare -n -P -a -o Account,User,NormShares,EffectvUsage,FairShare`.

    Those of accounts, which name no user, are left out.
    """
    users = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 5 or not cells[1]:
            continue
        account, name, *numbers = cells
        share, usage, fair_share = map(_number, numbers)
        user = User(name, account, fair_share=fair_share)
        if share and usage is not None:
            user.share_used = usage / share
        users.append(user)
    return users


def _shares() -> list[User]:
    argv = ["sshare", "--noheader", "--parsable2", "--all", f"--format={_SHARE_FIELDS}"]
    try:
        return read_shares(client.call(*argv))
    except client.SlurmError:
        return []


def _accounts_of(name: str, shares: Iterable[User]) -> list[str]:
    accounts = set()
    for share in shares:
        if share.name == name:
            accounts.add(share.account)
    return sorted(accounts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
