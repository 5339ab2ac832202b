"""A team's part of the cluster: running and queued GPUs by user, the partitions' GPUs, its fair
share.

Three queries to Slurm; without accounting there are no shares and all users are shown.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpc_llm.slurm import client

_GPUS = re.compile(
    r"gpu(?::[^:,=(\s]+)*[:=](\d+)"
)  # gres/gpu=8 (TRES), gpu:a100:8(S:0-1) and gpu:a100:3(IDX:0-2) (GRES)
_DOWN = ("down", "drain", "fail", "maint", "unknown", "power", "reboot")
# Fixed columns: no delimiter works in squeue and sinfo of every release.
_JOB = {"UserName": 64, "Account": 64, "State": 32, "tres-alloc": 512}
_NODE = {"Partition": 64, "NodeList": 256, "Gres": 256, "GresUsed": 256, "StateLong": 32}


@dataclass
class User:
    """Counts GPUs, not jobs. fair_share: 0 to 1, the factor in Slurm's priority; None if it keeps
    no shares.
    """

    name: str
    account: str
    running: int = 0
    queued: int = 0
    running_jobs: int = 0
    queued_jobs: int = 0
    fair_share: float | None = None
    share_used: float | None = None  # usage ÷ share, both normalised; above 1: more than its share


@dataclass
class Partition:
    """GPUs of its nodes; a node in two partitions is counted in both."""

    name: str
    total: int = 0
    used: int = 0
    down: int = 0

    @property
    def free(self) -> int:
        return max(0, self.total - self.used - self.down)


@dataclass
class Team:
    """accounts: those shown; none if Slurm keeps no accounts."""

    accounts: list[str]
    users: list[User] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)


def ask(account: str | None = None) -> Team:
    """The team of `account`, by default of every account that the caller belongs to.
    SlurmUnavailable, SlurmRefused.
    """
    shares = _shares()
    mine = sorted({share.account for share in shares if share.name == getpass.getuser()})
    team = Team([account] if account else mine)
    words = [f"--account={','.join(team.accounts)}"] if team.accounts else []
    states = "--states=RUNNING,PENDING,SUSPENDED,CONFIGURING"
    jobs = client.call("squeue", "--noheader", "--array", *words, states, _columns(_JOB))
    team.users = read_users(jobs, [share for share in shares if share.account in team.accounts])
    team.partitions = read_partitions(client.call("sinfo", "--noheader", "--Node", _columns(_NODE)))
    return team


def read_users(jobs: str, shares: Iterable[User]) -> list[User]:
    """Every user with a job or a share, those with the most GPUs first."""
    users = {(share.account, share.name): share for share in shares}
    for name, account, state, tres in _rows(jobs, _JOB):
        user = users.setdefault((account, name), User(name, account))
        if state == "PENDING":
            user.queued, user.queued_jobs = user.queued + gpus(tres), user.queued_jobs + 1
        else:
            user.running, user.running_jobs = user.running + gpus(tres), user.running_jobs + 1
    return sorted(
        users.values(), key=lambda user: (-user.running, -user.queued, user.account, user.name)
    )


def read_partitions(nodes: str) -> list[Partition]:
    """The default partition first, the others by name: the order of sinfo changes."""
    found: dict[str, Partition] = {}
    for name, _, gres, used, state in _rows(nodes, _NODE):
        partition = found.setdefault(name, Partition(name.rstrip("*")))
        partition.total += gpus(gres)
        partition.used += gpus(used)
        partition.down += (
            gpus(gres) - gpus(used) if state.lower().startswith(_DOWN) or state.endswith("*") else 0
        )
    return [found[name] for name in sorted(found, key=lambda name: (not name.endswith("*"), name))]


def read_shares(text: str) -> list[User]:
    """Lines of `sshare -n -P -a -o Account,User,NormShares,EffectvUsage,FairShare`; those of
    accounts are left out.
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 5 and parts[1]:
            share, usage, fair = map(_number, parts[2:])
            over = usage / share if share and usage is not None else None
            found.append(User(parts[1], parts[0], fair_share=fair, share_used=over))
    return found


def gpus(text: str) -> int:
    """GPUs in a list of TRES, which has their total, or of GRES, whose types add up."""
    generic = re.search(r"gres/gpu=(\d+)", text)
    return int(generic[1]) if generic else sum(map(int, _GPUS.findall(text)))


def _shares() -> list[User]:
    try:
        words = [
            "--noheader",
            "--parsable2",
            "--all",
            "--format=Account,User,NormShares,EffectvUsage,FairShare",
        ]
        return read_shares(client.call("sshare", *words))
    except client.SlurmError:
        return []


def _columns(widths: dict[str, int]) -> str:
    return "--Format=" + ",".join(f"{name}:{width}" for name, width in widths.items())


def _rows(text: str, widths: dict[str, int]) -> Iterable[list[str]]:
    for line in text.splitlines():
        cells = []
        begin = 0
        for width in widths.values():
            cells.append(line[begin : begin + width].strip())
            begin += width
        if cells[0]:
            yield cells


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
