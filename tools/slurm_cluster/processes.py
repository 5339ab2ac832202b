"""Daemons in the foreground of their own session, remembered and stopped by pid.

A pid alone proves nothing: after a crash or a reboot it may be somebody else's. So every daemon
carries the cluster's folder in its environment, and nothing is signalled that does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .site import ClusterError

MARK = "LOCAL_SLURM_DAEMON_OF"
POLL_S = 0.05


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(poll_s)
    return True


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with.

    Empty where it is gone, a zombie, or not ours to read.
    """
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if b"=" in entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def program_of(pid: int) -> str:
    """The name a process shows as its first word, without its folder: "slurmd", "slurmstepd:"."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").split()
    except OSError:
        return ""
    return Path(os.fsdecode(argv[0])).name if argv else ""


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may have gone meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Daemons:
    """The daemons of one cluster, by name: `munged`, `slurmctld`, `slurmd-n1`, …"""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix

    @property
    def environment(self) -> dict[str, str]:
        """What marks a process as ours, and little else.

        SLURM_* of a job, or of another cluster, would mislead it.
        """
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(Path.home()),
            MARK: str(self.prefix),
        }

    def start(self, name: str, command: Sequence[str], **environment: str) -> None:
        """Start a daemon; what it prints is appended to its log."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.prefix,
                env=self.environment | environment,
                start_new_session=True,  # so that Ctrl-C in the user's shell does not reach it
            )
        self._pid_file(name).write_text(f"{process.pid}\n")
        # Popen returns a moment before /proc shows the new program's environment.
        wait_until(
            lambda: self.pid(name) is not None or process.poll() is not None,
            timeout_s=5,
            poll_s=0.005,
        )

    def pid(self, name: str) -> int | None:
        """The pid of a running daemon of this cluster, else None."""
        try:
            pid = int(self._pid_file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        ours = environment_of(pid).get(MARK) == str(self.prefix)
        return pid if ours and program_of(pid) == name.partition("-")[0] else None

    def await_ready(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until a daemon serves.

        ClusterError with the end of its log if it dies or stays silent.
        """
        in_time = wait_until(lambda: self.pid(name) is None or ready(), timeout_s)
        if self.pid(name) is None:
            problem = "ended at its start"
        elif not in_time:
            problem = f"was not ready within {timeout_s:g} s"
        else:
            return
        raise ClusterError(f"{name} {problem}; the end of {self.log(name)}:\n{self.tail(name)}")

    def stop(
        self, name: str, number: signal.Signals = signal.SIGTERM, timeout_s: float = 10
    ) -> None:
        """Stop a daemon and wait until it is gone.

        One that does not listen to SIGTERM is killed.
        """
        for attempt in (number, signal.SIGKILL):
            pid = self.pid(name)
            if pid is None:
                break
            send(pid, attempt)
            wait_until(lambda: self.pid(name) is None, timeout_s)
        self._pid_file(name).unlink(missing_ok=True)

    def tail(self, name: str, num_lines: int = 12) -> str:
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-num_lines:])
        except FileNotFoundError:
            return "(no log)"

    def log(self, name: str) -> Path:
        return self.prefix / "log" / f"{name}.out"

    def _pid_file(self, name: str) -> Path:
        return self.prefix / "run" / f"{name}.pid"

    def strays(self) -> set[int]:
        """Daemons and job steps of this cluster that still run, whatever the pid files say."""
        pids = set(_all_pids())
        marked = {pid for pid in pids if self._is_marked(pid) or self._is_step(pid)}
        return (marked | _descendants(marked) | self._job_processes(pids)) - _self_and_ancestors()

    def _is_marked(self, pid: int) -> bool:
        return environment_of(pid).get(MARK) == str(self.prefix)

    def _is_step(self, pid: int) -> bool:
        """Whether it is a slurmstepd of ours.

        That writes its title over its environment, but keeps its slurmd's working directory.
        """
        if program_of(pid) != "slurmstepd:":
            return False
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == self.prefix
        except OSError:
            return False

    def _job_processes(self, pids: set[int]) -> set[int]:
        """What jobs of this cluster left behind when their step died."""
        conf = str(self.prefix / "etc" / "slurm.conf")
        of_jobs = set()
        for pid in pids:
            environment = environment_of(pid)
            if environment.get("SLURM_CONF") == conf and "SLURM_JOB_ID" in environment:
                of_jobs.add(pid)
        return of_jobs

    def kill_strays(self, timeout_s: float = 10) -> None:
        """Kill what is left until nothing is: a dying step may still start a process."""

        def gone() -> bool:
            left = self.strays()
            for pid in left:
                send(pid, signal.SIGKILL)
            return not left

        if not wait_until(gone, timeout_s):
            raise ClusterError(
                f"processes of {self.prefix} outlived SIGKILL: {sorted(self.strays())}"
            )


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _parent(pid: int) -> int:
    """0 where there is none or the process is gone."""
    try:  # "PID (any name, even with brackets) STATE PPID …"
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _descendants(roots: set[int]) -> set[int]:
    parents = {pid: _parent(pid) for pid in _all_pids()}
    descendants: set[int] = set()
    layer = set(roots)
    while layer:
        layer = {pid for pid, parent in parents.items() if parent in layer} - descendants
        descendants |= layer
    return descendants


def _self_and_ancestors() -> set[int]:
    """`down` typed in an salloc shell must not kill the shell it was typed in."""
    family = set()
    pid = os.getpid()
    while pid > 1:
        family.add(pid)
        pid = _parent(pid)
    return family
