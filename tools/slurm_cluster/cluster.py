"""A whole cluster: brought up, taken down, looked at, and hurt on request."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import conf_files
from .machine import accepts, check_output, make_device, program, slurm_version, user_names
from .processes import Daemons
from .site import ClusterError, Site, load_site


class Cluster:
    """One site and its daemons."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.daemons = Daemons(Path(site.prefix))

    @property
    def daemon_names(self) -> list[str]:
        """In the order of their start; they are stopped from the end."""
        database = ["mariadbd", "slurmdbd"] if self.site.accounting else []
        return ["munged", *database, "slurmctld", *(f"slurmd-{node}" for node in self.site.nodes)]

    @property
    def is_up(self) -> bool:
        """Whether it came up and runs, or slurmctld was stopped on purpose.

        Anything else is leftovers.
        """
        daemon = "munged" if self._paused.exists() else "slurmctld"
        return self._ready.exists() and self.daemons.pid(daemon) is not None

    @property
    def _ready(self) -> Path:
        return self.site.path("run/ready")

    @property
    def _paused(self) -> Path:
        return self.site.path("run/ctld-stopped")

    # Up and down.

    def up(self) -> None:
        """Write the files, start every daemon, and return once all nodes are idle."""
        try:
            self._write_files()
            with self.start_lock():
                self._start_munged()
                if self.site.accounting:
                    self._start_mariadb()
                    self._start_slurmdbd()
                self.start_ctld()
                self._start_nodes()
                self._ready.touch()
        except BaseException:  # Ctrl-C too; the folder stays for its logs, the next `up` removes it
            self.stop()
            raise

    def down(self) -> None:
        self.stop()
        prefix = Path(self.site.prefix)
        # The file that names the folder ours goes last: a removal cut short can be taken up again.
        for folder in [entry for entry in prefix.iterdir() if entry.is_dir()]:
            shutil.rmtree(folder)
        shutil.rmtree(prefix)

    def stop(self) -> None:
        """Kill every daemon, step and job process, and wait until they are gone.

        Killed, not asked: their state goes too, and an orderly end of slurmctld takes seconds. From
        slurmctld and the nodes down to munge, so that nothing new is started meanwhile.
        """
        for name in reversed(self.daemon_names):
            self.daemons.stop(name, signal.SIGKILL)
        self.daemons.kill_strays()

    @contextmanager
    def start_lock(self) -> Iterator[None]:
        """A lock that a starting `up` holds until it ends, even if it is killed.

        ClusterError if another `up` holds it.
        """
        self.site.path("run").mkdir(exist_ok=True)
        with self.site.path("run/up.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(f"another `up` is at work at {self.site.prefix}", 2) from None
            yield

    def _write_files(self) -> None:
        """A folder plain users may read, but for keys, database and state."""
        os.umask(0o022)
        Path(self.site.prefix).mkdir(parents=True, exist_ok=True)
        self.site.save()  # first, so that the folder is known as ours whenever this is cut short
        for name in (
            "etc",
            "run",
            "log",
            "dev",
            "spool",
            *(f"spool/{node}" for node in self.site.nodes),
        ):
            self.site.path(name).mkdir(parents=True)
        for name in ("state", "db"):
            self.site.path(name).mkdir(mode=0o700)
        etc = self.site.path("etc")
        (etc / "gres.conf").write_text(conf_files.gres_conf(self.site))
        (etc / "cgroup.conf").write_text(conf_files.cgroup_conf(slurm_version()))
        self.site.slurm_conf.write_text(conf_files.slurm_conf(self.site))
        for index in range(self.site.gpus_per_node):
            make_device(self.site.path(f"dev/gpu{index}"))

    def _start_munged(self) -> None:
        """A munge of our own: the machine's, where there is one, stays untouched."""
        key = self.site.path("etc/munge.key")
        run = self.site.path("run")
        check_output(["mungekey", "--create", f"--keyfile={key}"])
        places = [
            f"--key-file={key}",
            f"--socket={run}/munge.socket",
            f"--seed-file={run}/munge.seed",
        ]
        places += [
            f"--pid-file={run}/munged.munge.pid",
            f"--log-file={self.site.path('log/munged.log')}",
        ]
        self.daemons.start("munged", [program("munged"), "--foreground", *places])
        self.daemons.await_ready("munged", lambda: accepts(str(run / "munge.socket")))

    def _start_mariadb(self) -> None:
        database = self.site.path("db")
        unix_socket = str(self.site.path("run/mariadb.socket"))
        # Small logs and no waiting for the disk: the data die with the cluster.
        small = [
            "--innodb-log-file-size=8M",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        # Temporary tables of two servers that start at once have the same names, and each removes
        # the other's.
        small.append(f"--tmpdir={self.site.path('run')}")
        install = [
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={database}",
            "--user=root",
        ]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db", *small]
        # It takes seconds, so must be found as ours where this process is killed meanwhile.
        check_output(install, environment=self.daemons.environment)
        serve = [
            program("mariadbd"),
            "--no-defaults",
            f"--datadir={database}",
            "--user=root",
            *small,
        ]
        serve += [
            "--bind-address=127.0.0.1",
            f"--port={self.site.mariadb_port}",
            f"--socket={unix_socket}",
        ]
        serve += [
            "--skip-name-resolve",
            "--skip-sync-frm",
            f"--pid-file={self.site.path('run/mariadbd.mysql.pid')}",
        ]
        self.daemons.start("mariadbd", serve)
        self.daemons.await_ready("mariadbd", lambda: accepts(unix_socket))

        password = secrets.token_hex(16)
        statements = (
            f"CREATE DATABASE slurm; CREATE USER slurm@127.0.0.1 IDENTIFIED BY '{password}'; "
            "GRANT ALL ON slurm.* TO slurm@127.0.0.1; ALTER USER root@localhost IDENTIFIED BY "
            f"'{secrets.token_hex(16)}';"
        )
        # Through standard input: a password among the arguments is everyone's to read.
        check_output(
            [program("mariadb"), "--no-defaults", f"--socket={unix_socket}", "--user=root"],
            statements,
        )
        conf = self.site.path("etc/slurmdbd.conf")
        conf.touch(mode=0o600)
        conf.write_text(conf_files.slurmdbd_conf(self.site, password))

    def _start_slurmdbd(self) -> None:
        self.daemons.start(
            "slurmdbd", [program("slurmdbd"), "-D"], SLURM_CONF=str(self.site.slurm_conf)
        )
        self.daemons.await_ready("slurmdbd", lambda: accepts(("127.0.0.1", self.site.dbd_port)))
        self._sacctmgr("add", "cluster", conf_files.CLUSTER_NAME)
        if self.site.preempt_type == "qos" or self.site.max_submit:
            for words in conf_files.account_commands(self.site, user_names()):
                self._sacctmgr(*words)

    def _sacctmgr(self, *words: str) -> None:
        self.client("sacctmgr", "--immediate", "--quiet", *words)

    def _start_nodes(self) -> None:
        for node in self.site.nodes:
            self._start_slurmd(node)
        for node in self.site.nodes:
            self.daemons.await_ready(
                f"slurmd-{node}", lambda node=node: self._node_state(node) == "idle"
            )

    def _start_slurmd(self, node: str) -> None:
        command = [program("slurmd"), "-D", "-N", node, "-f", str(self.site.slurm_conf)]
        self.daemons.start(f"slurmd-{node}", command, SLURM_CONF=str(self.site.slurm_conf))

    # Asking Slurm.

    def client(self, *command: str) -> str:
        """What a Slurm command of this cluster prints; its complaint as an error."""
        return check_output(list(command), environment=self._client_environment())

    def _client_environment(self) -> dict[str, str]:
        """The user's environment without the SLURM_* of whatever job or cluster it belongs to."""
        own = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM_", "SBATCH_"))
        }
        return own | {"SLURM_CONF": str(self.site.slurm_conf)}

    def _ctld_answers(self) -> bool:
        # Its port first: a client asked in vain tries again for 10 s and more.
        if not accepts(("127.0.0.1", self.site.ctld_port)):
            return False
        try:
            return " is UP" in self.client("scontrol", "ping")
        except ClusterError:
            return False

    def _node_state(self, node: str) -> str:
        """Slurm's long word for it; `*` at its end means that the node does not answer."""
        try:
            return self.client(
                "sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T"
            ).split()[0]
        except (ClusterError, IndexError):
            return "unknown"

    def status(self) -> tuple[str, bool]:
        """A page to read, and whether slurmctld answers."""
        answers = self._ctld_answers()
        lines = [f"prefix   {self.site.prefix}"]
        # A plain user may not look into root's processes, so has to take Slurm's word for them.
        if os.geteuid() == 0:
            running = [
                f"{name} {self.daemons.pid(name) or 'STOPPED'}" for name in self.daemon_names
            ]
            lines.append("daemons  " + ", ".join(running))
        if not answers:
            return "\n".join([*lines, "slurmctld does not answer"]), False
        nodes = self.client("sinfo", "--Node", "--format=%6N %.10P %.12T %.5c %.8m %10G %E")
        jobs = self.client("squeue", "--format=%.12i %.10P %20j %10u %.12T %.10M %.10l %.5D %R")
        return "\n".join([*lines, "", nodes.rstrip(), "", jobs.rstrip()]), True

    def exports(self) -> str:
        """Shell words for `eval`."""
        pairs = {"SLURM_CONF": str(self.site.slurm_conf), "LOCAL_SLURM_DIR": self.site.prefix}
        return "\n".join(f"export {key}={shlex.quote(value)}" for key, value in pairs.items())

    # Faults.

    def start_ctld(self) -> None:
        if self.daemons.pid("slurmctld") is not None:
            raise ClusterError("slurmctld runs already", 2)
        command = [program("slurmctld"), "-D", "-f", str(self.site.slurm_conf)]
        self.daemons.start("slurmctld", command, SLURM_CONF=str(self.site.slurm_conf))
        self.daemons.await_ready("slurmctld", self._ctld_answers)
        self._paused.unlink(missing_ok=True)

    def stop_ctld(self) -> None:
        """Stop slurmctld in good order; its state lies in the folder, jobs and nodes go on."""
        if self.daemons.pid("slurmctld") is None:
            raise ClusterError("slurmctld is stopped already", 2)
        self._paused.touch()
        self.daemons.stop("slurmctld")

    def kill_node(self, node: str) -> None:
        """SIGKILL to the node's slurmd.

        Its steps go on running, and Slurm finds out after SlurmdTimeout.
        """
        self._check_node(node)
        if self.daemons.pid(f"slurmd-{node}") is None:
            raise ClusterError(
                f"the slurmd of {node} is dead already; tools/local_slurm revive-node {node}", 2
            )
        self.daemons.stop(f"slurmd-{node}", signal.SIGKILL)

    def revive_node(self, node: str) -> None:
        """Start the node's slurmd again.

        Returns once Slurm counts on the node, if slurmctld runs.
        """
        self._check_node(node)
        name = f"slurmd-{node}"
        if self.daemons.pid(name) is not None:
            raise ClusterError(f"the slurmd of {node} runs already", 2)
        self._start_slurmd(node)
        if self.daemons.pid("slurmctld") is None:
            return

        def back() -> bool:
            state = self._node_state(node)
            return not state.endswith("*") and not state.startswith(("down", "unknown"))

        self.daemons.await_ready(name, back)

    def _check_node(self, node: str) -> None:
        if node not in self.site.nodes:
            raise ClusterError(f"no node {node}; the nodes are {', '.join(self.site.nodes)}", 2)

    def preempt(self, job: str, hold_s: int) -> str:
        """Submit an urgent job that fits only where `job` makes room, and return its id.

        It asks, on the job's nodes, for the job's GPUs and for those idle there. Where several
        preemptable jobs share a node, which of them goes is Slurm's choice. A job without GPUs is
        driven out by asking for the whole nodes.
        """
        fields = self._job_fields(job)
        nodes = self.client("scontrol", "show", "hostnames", fields["NodeList"]).split()
        options = [f"--nodes={len(nodes)}", f"--nodelist={fields['NodeList']}", "--mem=1"]
        num_gpus = max(self._gpus_idle(node) for node in nodes) + _gpus(fields)
        options += [f"--gres=gpu:{num_gpus}"] if _gpus(fields) else ["--exclusive"]
        if self.site.preempt_type == "qos":
            options.append("--qos=urgent")
        limit_min = hold_s // 60 + 2
        options += [
            "--partition=urgent",
            "--job-name=urgent",
            "--no-requeue",
            f"--time={limit_min}",
        ]
        options += ["--chdir=/", "--output=/dev/null", f"--wrap=sleep {hold_s}"]
        return self.client("sbatch", "--parsable", *options).strip().partition(";")[0]

    def _job_fields(self, job: str) -> dict[str, str]:
        """scontrol's words on one running job."""
        if not re.fullmatch(r"\d+(_\d+)?", job):
            raise ClusterError(
                f"{job!r} is no job id; allowed: 12 or, for a task of an array, 12_3", 2
            )
        lines = self.client("scontrol", "show", "job", "--details", "--oneliner", job).splitlines()
        if len(lines) != 1:
            raise ClusterError(f"{job} is an array of {len(lines)}; name one task, as {job}_0", 2)
        pairs = (word.partition("=") for word in lines[0].split())
        # The first of a name counts: later ones repeat it for each node.
        fields: dict[str, str] = {}
        for key, _, value in pairs:
            fields.setdefault(key, value)
        if fields["JobState"] != "RUNNING":
            raise ClusterError(
                f"job {job} is {fields['JobState']}; only a running job can be preempted", 2
            )
        if fields["Partition"] == "urgent" and self.site.preempt_type == "partition":
            raise ClusterError(f"job {job} is in partition urgent, which nothing preempts", 2)
        return fields

    def _gpus_idle(self, node: str) -> int:
        report = self.client("scontrol", "show", "node", "--details", node)
        used = re.search(r"GresUsed=gpu[^:\s]*:(?:[^:\s(]+:)?(\d+)", report)
        return self.site.gpus_per_node - (int(used.group(1)) if used else 0)


def _gpus(fields: dict[str, str]) -> int:
    """GPUs of a job on one of its nodes, from `GRES=gpu:2(IDX:0-1)`."""
    count = re.search(r"gpu(?::[^:(]+)?:(\d+)", fields.get("GRES", ""))
    return int(count[1]) if count else 0


def remove_leftovers(prefix: Path) -> bool:
    """Clear away a cluster that was killed; whether there was one. ClusterError if one runs."""
    site = load_site(prefix)
    if site is None:
        return False
    cluster = Cluster(site)
    if cluster.is_up:
        raise ClusterError(
            f"already up at {prefix} ({site.num_nodes} × {site.gpus_per_node} GPUs); down first", 2
        )
    with cluster.start_lock():
        cluster.down()
    return True
