"""Real Slurm clusters for tests, made by tools/local_slurm: one for the session, others on
request.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hpc_llm.preparation.pipeline import prepare
from hpc_llm.runs.layout import RunLayout
from tests.chaos import warm_ranks
from tests.chaos.local_runs import Finished
from tests.configs import make_config
from tests.on_slurm.slurm_runs import LONG_STEPS, STEPS, SlurmRuns
from tests.waiting import until

TOOL = Path(__file__).resolve().parents[2] / "tools" / "local_slurm"
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch")


class SlurmCluster:
    """A running cluster: `env` for processes of one's own, and short ways to ask Slurm."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "cluster"
        self.work = folder / "work"  # everyone may write here: job output of any user
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        where = {
            "SLURM_CONF": str(self.prefix / "etc" / "slurm.conf"),
            "LOCAL_SLURM_DIR": str(self.prefix),
        }
        self.env = inherited | where | warm_ranks.environment()

    def tool(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """tools/local_slurm on this cluster."""
        return self.run(str(TOOL), *words, check=check)

    def run(
        self,
        *command: str,
        user: str | None = None,
        text_in: str | None = None,
        check: bool = True,
        timeout_s: float = 120,
        more: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command in this cluster's environment and `more`, as root or as another user."""
        done = subprocess.run(
            command,
            env=self.env | (more or {}),
            cwd=self.work,
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            user=user,
            extra_groups=None if user is None else [],
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def sbatch(self, *words: str, script: str | None = None, user: str | None = None) -> str:
        """Submit words for sbatch, or a script's text, which gets its `#!`; returns the job id."""
        text = None if script is None else f"#!/bin/bash\n{script}"
        done = self.run("sbatch", "--parsable", *words, text_in=text, user=user)
        return done.stdout.strip().partition(";")[0]

    def squeue(self, *words: str, fields: str = "%i %T") -> list[list[str]]:
        """One list of words for each job."""
        done = self.run("squeue", "--noheader", f"--format={fields}", *words)
        return [line.split() for line in done.stdout.splitlines()]

    def sacct(self, job: str, *words: str, fields: str = "jobid,state") -> list[dict[str, str]]:
        """Rows by field; the `words` go to sacct as they are, as `-D` for a requeued job's earlier
        lives.
        """
        done = self.run("sacct", "--parsable2", "--noheader", "-X", "-j", job, "-o", fields, *words)
        names = fields.split(",")
        return [dict(zip(names, line.split("|"), strict=True)) for line in done.stdout.splitlines()]

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; empty for a job that slurmctld has forgotten."""
        done = self.run("scontrol", "show", "job", "--oneliner", job, check=False)
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def wait_state(self, job: str, states: str | Collection[str], timeout_s: float = 30) -> str:
        """Wait until the job is in one of these states (RUNNING, COMPLETED …) and return which."""
        wanted = {states} if isinstance(states, str) else set(states)
        seen: list[str] = []

        def arrived() -> bool:
            state = self.job(job).get("JobState", "unknown")
            if not seen or seen[-1] != state:
                seen.append(state)
            return state in wanted

        until(arrived, timeout_s, f"job {job} in {sorted(wanted)}; it went through {seen}")
        return seen[-1]

    def wait_text(self, path: Path, text: str, timeout_s: float = 30) -> None:
        """Wait until a file that a job writes holds the text."""
        until(lambda: path.exists() and text in path.read_text(), timeout_s, f"{text!r} in {path}")

    def node_state(self, node: str) -> str:
        """Slurm's long word for it; `*` at its end means that the node does not answer."""
        return self.run(
            "sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T"
        ).stdout.split()[0]

    def wait_node(self, node: str, state: str, timeout_s: float) -> None:
        until(lambda: self.node_state(node) == state, timeout_s, f"node {node} is {state}")

    def configure_prolog(self, condition: str) -> None:
        """Nodes on which this shell `condition` does not hold fail whatever is started on them."""
        prolog = self.work / "prolog"
        prolog.write_text(f"#!/bin/bash\n{condition}\n")
        prolog.chmod(0o755)
        with (self.prefix / "etc" / "slurm.conf").open("a") as file:
            file.write(f"Prolog={prolog}\n")
        self.run("scontrol", "reconfigure")

    def cancel_all(self) -> None:
        """Leave an empty queue to the next test."""
        jobs = [row[0] for row in self.squeue("--array")]
        if jobs:
            # Two signals: KILL now, because steps that ignore SIGTERM hold their nodes for
            # KillWait, 30 s.
            self.run("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.run("scancel", *jobs, check=False)
            until(lambda: not self.squeue(), 60, "an empty queue")


def _why_not() -> str | None:
    """Why no cluster can be made here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (tools/install_slurm.sh)"
    return None if os.geteuid() == 0 else "tools/local_slurm needs root"


@contextmanager
def _cluster(*options: str) -> Iterator[SlurmCluster]:
    # Not below tmp_path: pytest closes that to other users, and jobs of plain users must reach the
    # cluster.
    folder = Path(tempfile.mkdtemp(prefix="local-slurm-test-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    cluster.work.mkdir()
    cluster.work.chmod(0o777)
    try:
        cluster.tool("up", *options)
        yield cluster
    finally:
        cluster.tool("down")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _slurm_is_possible() -> None:
    reason = _why_not()
    if reason is None:
        return
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"CI must test real Slurm, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _session_cluster(_slurm_is_possible: None) -> Iterator[SlurmCluster]:
    with _cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(_session_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The session's cluster, 2 nodes × 2 GPUs, REQUEUE with 5 s of grace; its queue is emptied
    after each test.
    """
    yield _session_cluster
    _session_cluster.cancel_all()


@pytest.fixture
def make_slurm(_slurm_is_possible: None) -> Iterator[Callable[..., SlurmCluster]]:
    """Clusters of other kinds, by the options of `tools/local_slurm up`; gone after the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(_cluster(*options))


UndisturbedRun = Callable[[str, int], Finished]


@pytest.fixture(scope="session")
def undisturbed(
    _session_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> UndisturbedRun:
    """A run that nobody disturbs, by name and steps; trained once for all workers of the suite."""
    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "undisturbed"

    def train(name: str, steps: int) -> Finished:
        root.mkdir(exist_ok=True)
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            runs = SlurmRuns(_session_cluster, root / name)
            if not runs.root.exists():
                runs.release()
                runs.finish(runs.submit("plain", f"train.duration={steps}steps"), 900, steps)
        done = Finished(0, "", RunLayout(runs.root / "plain"), last=steps)
        assert len(done.named("started")) == 1
        return done

    return train


@pytest.fixture(scope="session")
def plain(undisturbed: UndisturbedRun) -> Finished:
    """All others are compared with it."""
    return undisturbed("plain", STEPS)


@pytest.fixture(scope="session")
def plain_long(undisturbed: UndisturbedRun) -> Finished:
    """Long enough for a node to die in."""
    return undisturbed("long", LONG_STEPS)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data, prepared once."""
    folder = tmp_path_factory.mktemp("shards") / "stdlib"
    prepare(make_config(), folder)
    return folder
