"""The srun line of a step: what it asks of its job, and in which environment srun runs.

Everything is said on the command line, from our own plan and from what Slurm granted. srun also
takes options from variables, which a site's module, an enclosing job or sbatch's own header may
have set for something else: those are not passed on. Standard library only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.slurm.gpus import gpu_option

# Input variables of srun (man srun, 22.05 to 26.05) that request something. Not among them, so
# passed on: what describes the job (SLURM_JOB_*, SLURM_CONF, …), and how its header or its site
# wants processes treated: SLURM_HINT, _THREADS_PER_CORE, _MPI_TYPE, _NETWORK, _CPU_FREQ_REQ,
# _GPU_FREQ, _PROFILE, _ACCTG_FREQ, _PROLOG, _EPILOG, _TASK_PROLOG, _TASK_EPILOG, _RESV_PORTS.
_REQUESTS = re.compile(
    r"SRUN_\w+"
    # how many of what
    r"|SLURM_(NTASKS|NPROCS|NNODES)|SLURM_NTASKS_PER_\w+|SLURM_CPUS_PER_(TASK|GPU)"
    r"|SLURM_GPUS(_PER_\w+)?|SLURM_(STEP_)?GRES|SLURM_GRES_FLAGS|SLURM_TRES_\w+"
    r"|SLURM_MEM_PER_\w+|SLURM_(CORE|THREAD)_SPEC|SLURM_OVERCOMMIT|SLURM_TIMELIMIT"
    # where
    r"|SLURM_(DISTRIBUTION|DIST_PLANESIZE|HOSTFILE|USE_MIN_NODES|SPREAD_JOB|SEGMENT_SIZE)"
    r"|SLURM_(CPU|MEM|GPU|ACCEL)_BIND\w*|SLURM_(EXACT|EXCLUSIVE|OVERLAP|REMOTE_CWD|WORKING_DIR)"
    # of a job, not of a step
    r"|SLURM_(ACCOUNT|PARTITION|QOS|CONSTRAINT|RESERVATION|WCKEY|DEPENDENCY|BURST_BUFFER|SIGNAL)"
    r"|SLURM_(DELAY_BOOT|REQ_SWITCH|WAIT4SWITCH|POWER|NO_KILL|IMMEDIATE|EXIT_IMMEDIATE)"
    # how srun itself behaves, on whose output and exit status the supervisor relies
    r"|SLURM_(EXPORT_ENV|OPEN_MODE|STDINMODE|STDOUTMODE|STDERRMODE|LABELIO|UNBUFFEREDIO|DEBUG)"
    r"|SLURM_(KILL_BAD_EXIT|WAIT|DISABLE_STATUS|EXIT_ERROR|SRUN_REDUCE_TASK_EXIT_MSG|TEST_EXEC)"
    r"|SLURM_(BCAST|BCAST_EXCLUDE|SEND_LIBS|COMPRESS|THREADS|OOM_KILL_STEP)"
)
_COUNT = re.compile(r"(\d+)(?:\(x\d+\))?")


def is_request(name: str) -> bool:
    """Whether srun would take the variable `name` for an option that asks for something."""
    return _REQUESTS.fullmatch(name) is not None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what would ask srun for something."""
    return {name: value for name, value in environment.items() if not is_request(name)}


@dataclass(frozen=True)
class Grant:
    """What Slurm gave the job on each of its nodes; None where it does not say."""

    cpus: int | None  # of the node that has fewest
    gpus: int | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Grant:
        """The grant of the job whose batch shell has this environment."""
        gpus = environment.get("SLURM_GPUS_ON_NODE", "")
        return cls(_cpus(environment), int(gpus) if gpus.isdecimal() else None)

    def cpus_per_rank(self, ranks_per_node: int) -> int | None:
        """An equal share of a node's CPUs; None if that is not known."""
        if self.cpus is None or self.cpus < ranks_per_node:
            return None
        return self.cpus // ranks_per_node


def _cpus(environment: Mapping[str, str]) -> int | None:
    """CPUs on the node that has fewest: `SLURM_JOB_CPUS_PER_NODE=16(x2),8`, or this one's.

    Where the job leaves hyperthreads alone, these variables may count them all the same, and a step
    that asked for so many would be refused.
    """
    if environment.get("SLURM_HINT") == "nomultithread":
        return None
    if environment.get("SLURM_THREADS_PER_CORE") == "1":
        return None
    text = environment.get("SLURM_JOB_CPUS_PER_NODE") or environment.get("SLURM_CPUS_ON_NODE", "")
    counts = [_COUNT.fullmatch(part) for part in text.split(",")]
    numbers = [int(count[1]) for count in counts if count is not None]
    return min(numbers) if len(numbers) == len(counts) else None


def cpus_per_rank(cluster: ClusterConfig, grant: Grant, ranks_per_node: int) -> int | None:
    """CPUs of a rank: cluster.cpus_per_gpu, as far as they were granted, or its share of the grant.

    None: unknown, so that the step asks for none.
    """
    share = grant.cpus_per_rank(ranks_per_node)
    if cluster.cpus_per_gpu is None:
        return share
    if share is None:
        return cluster.cpus_per_gpu
    return min(cluster.cpus_per_gpu, share)


@dataclass(frozen=True)
class StepRequest:
    """What one step asks for. log_pattern: of the ranks' logs, in srun's spelling (`%4t`)."""

    hosts: Sequence[str]
    world_size: int
    cpus_per_rank: int | None
    log_pattern: str


def srun_options(cluster: ClusterConfig, request: StepRequest, grant: Grant) -> list[str]:
    """All options of the step's srun: ours, then those of cluster.srun."""
    ranks_per_node = request.world_size // len(request.hosts)
    options = [
        "--overlap",
        f"--nodes={len(request.hosts)}",
        f"--ntasks={request.world_size}",
        f"--ntasks-per-node={ranks_per_node}",
        f"--nodelist={','.join(request.hosts)}",
        "--distribution=block",
    ]
    if request.cpus_per_rank is not None:
        options.append(f"--cpus-per-task={request.cpus_per_rank}")
    gpus = gpu_option(cluster, ranks_per_node)
    if gpus is not None and grant.gpus is not None and grant.gpus >= ranks_per_node:
        options.append(f"--{gpus[0]}={gpus[1]}")
    options += [
        *memory_option(cluster),
        "--kill-on-bad-exit=1",
        "--wait=60",
        "--export=ALL",
        f"--output={request.log_pattern}",
        "--open-mode=append",
        "--input=none",
    ]
    return [*options, *extra_options(cluster)]


def memory_option(cluster: ClusterConfig) -> list[str]:
    """All memory of the job, also while Slurm counts it for a step that is over.

    Some sites refuse that: cluster.srun={mem: false}.
    """
    return [] if cluster.srun.get("mem") == "false" else ["--mem=0"]


def extra_options(cluster: ClusterConfig) -> Iterator[str]:
    """The options of cluster.srun; `false` leaves one out, and `true` gives it no value."""
    for name, value in cluster.srun.items():
        if value in ("", "true"):
            yield f"--{name}"
        elif value != "false":
            yield f"--{name}={value}"


def shown(cluster: ClusterConfig, run_dir: str, python: str) -> str:
    """The srun line of a run as a reader would type it, before nodes are known."""
    hosts = [f"node{number}" for number in range(1, cluster.nodes + 1)]
    grant = Grant(None, cluster.gpus_per_node)
    request = StepRequest(
        hosts, cluster.world_size, cluster.cpus_per_gpu, f"{run_dir}/attempts/0001/rank-%4t.log"
    )
    options = []
    for option in srun_options(cluster, request, grant):
        is_nodelist = option.startswith("--nodelist=")
        options.append("--nodelist=NODES" if is_nodelist else option)
    train = [*cluster.wrapper, cluster.python or python, "-m", "hpc_llm.train", run_dir]
    return shlex.join(["srun", *options, "--", *train])
