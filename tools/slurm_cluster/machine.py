"""This machine: what a cluster needs of it, and the commands and sockets that ask it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from .site import ClusterError, site_file

INSTALL = "apt-get install slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "munged",
    "mungekey",
    "mariadbd",
    "mariadb",
    "mariadb-install-db",
    "scontrol",
    "sinfo",
    "squeue",
    "sbatch",
    "sacctmgr",
)
# sun_path holds 108 characters, and slurmstepd's sockets add "/spool/n12/n12_JOBID.4294967291".
MAX_PREFIX_CHARS = 70


def check_machine() -> None:
    """Root, and everything installed."""
    require_root("up")
    missing = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        raise ClusterError(
            f"not installed: {', '.join(missing)}; {INSTALL} (or tools/install_slurm.sh)", 2
        )


def require_root(command: str) -> None:
    if os.geteuid() != 0:
        raise ClusterError(f"{command} needs root: slurmd starts jobs as their users; try sudo", 2)


def check_prefix(prefix: Path) -> None:
    """A folder that Slurm can name in its files, and that is ours to fill and later to remove."""
    # `%`, `#` and blanks mean something in slurm.conf.
    if not re.fullmatch(r"/[A-Za-z0-9._/+@-]+", str(prefix)):
        raise ClusterError(
            f"prefix {str(prefix)!r}: allowed are letters, digits and . _ / + @ -", 2
        )
    if len(str(prefix)) > MAX_PREFIX_CHARS:
        raise ClusterError(
            f"prefix {prefix} has {len(str(prefix))} characters; sockets allow {MAX_PREFIX_CHARS}",
            2,
        )
    try:
        status = prefix.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClusterError(f"prefix {prefix}: {error.strerror}", 2) from None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not ours or status.st_mode & 0o022:
        raise ClusterError(
            f"prefix {prefix} must be a folder of root's that nobody else may write to", 2
        )
    if not site_file(prefix).exists() and any(prefix.iterdir()):
        raise ClusterError(f"prefix {prefix} holds other files; name a new or an empty folder", 2)


def closed_parent(prefix: Path) -> Path | None:
    """The first folder on the way to the cluster that plain users may not enter."""
    for parent in prefix.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def host_name() -> str:
    """slurmctld starts only where its configured host is the machine's short name."""
    return socket.gethostname().partition(".")[0]


def name_is_loopback() -> bool:
    """Whether the machine's name means 127.0.0.1 and nothing else."""
    try:
        addresses = socket.getaddrinfo(host_name(), None, socket.AF_INET)
    except socket.gaierror:
        return False
    return {address[4][0] for address in addresses} == {"127.0.0.1"}


def slurm_version() -> tuple[int, int]:
    version = re.search(r"(\d+)\.(\d+)", check_output([program("slurmctld"), "-V"]))
    if version is None:
        raise ClusterError("slurmctld -V names no version")
    return int(version[1]), int(version[2])


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def program(name: str) -> str:
    path = shutil.which(name, path=_search_path())
    if path is None:
        raise ClusterError(f"not installed: {name}; {INSTALL}", 2)
    return path


def check_output(
    command: list[str], text_in: str = "", environment: dict[str, str] | None = None
) -> str:
    """What a command prints; its last complaint as an error."""
    try:
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            input=text_in, capture_output=True, text=True, env=environment, timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} gave no answer within 60 s") from None
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "no word why").splitlines()[-1]
        raise ClusterError(f"{Path(command[0]).name}: {complaint}")
    return done.stdout


def accepts(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens on a Unix socket (a path) or a port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(2)
        return probe.connect_ex(address) == 0


def make_device(path: Path) -> None:
    """A character device that behaves as /dev/null (1, 3): Slurm asks only that it is one."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        raise ClusterError(
            f"mknod {path} is not permitted: a container needs CAP_MKNOD for pretended GPUs"
        ) from None


def user_names() -> list[str]:
    """Root, nobody and the machine's people."""
    return sorted(
        user.pw_name
        for user in pwd.getpwall()
        if user.pw_uid in (0, 65534) or 1000 <= user.pw_uid < 65534
    )
