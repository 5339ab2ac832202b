"""Rules on the cluster: how its values are spelt, and what has no effect without Slurm."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpc_llm.config.building import default_value
from hpc_llm.config.schema import ClusterConfig, RunConfig

SLURM_ONLY = (
    "spare_nodes",
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "reservation",
    "cpus_per_gpu",
    "mem",
    "time_min",
    "setup",
    "wrapper",
    "sbatch",
    "srun",
    "gpu_request",
    "signal_lead_s",
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
_MEMORY = re.compile(r"\d+([KMGT]B?)?")
_GPU_REQUEST = re.compile(r"none|(gpus-per-node|gres)(:[A-Za-z0-9_.-]+)?")


def problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with it that can be seen from the configuration alone."""
    cluster = config.cluster
    yield from _exports(cluster)
    if cluster.mem is not None and not _MEMORY.fullmatch(cluster.mem):
        yield (
            f"cluster.mem={cluster.mem!r}: as Slurm spells it, for example 480G; 0 is "
            "all of a node's"
        )
    yield from gpu_request_problems(cluster)
    yield from _threads(cluster)
    yield from _kind_of_run(config)
    if cluster.launcher == "local":
        yield from _without_slurm(config)


def gpu_request_problems(cluster: ClusterConfig) -> Iterator[str]:
    """A way to ask for GPUs that no site has."""
    if not _GPU_REQUEST.fullmatch(cluster.gpu_request):
        yield (
            f"cluster.gpu_request={cluster.gpu_request!r}: gpus-per-node, gres, either with "
            "Slurm's word for the type (gpus-per-node:h100, gres:a100), or none"
        )


def variable_problems(cluster: ClusterConfig) -> Iterator[str]:
    """Names of exported variables that no shell takes."""
    for name in cluster.exports:
        if not _VARIABLE.fullmatch(name):
            yield f"cluster.exports.{name}: a variable's name has letters, digits and '_'"


def _exports(cluster: ClusterConfig) -> Iterator[str]:
    yield from variable_problems(cluster)
    for name in cluster.exports:
        if _VARIABLE.fullmatch(name) and _SECRET.search(name):
            yield (
                f"cluster.exports.{name}: no secret is written to a file; export it in the "
                "shell you submit from"
            )


def _threads(cluster: ClusterConfig) -> Iterator[str]:
    """More threads than CPUs, on which they would only wait for one another."""
    if cluster.threads_per_rank is None or cluster.cpus_per_gpu is None:
        return
    if cluster.threads_per_rank > cluster.cpus_per_gpu:
        yield (
            f"cluster.threads_per_rank={cluster.threads_per_rank}: at most "
            f"cluster.cpus_per_gpu={cluster.cpus_per_gpu}, the CPUs that a rank gets"
        )


def _kind_of_run(config: RunConfig) -> Iterator[str]:
    """Here or through Slurm, and what is asked of either."""
    cluster = config.cluster
    if cluster.launcher == "local" and cluster.nodes != 1:
        yield (
            f"cluster.nodes={cluster.nodes}: 1 on cluster=local; ranks are cluster.gpus_per_node=N"
        )
    if config.test_only and cluster.launcher == "local":
        yield "test_only=true: asks Slurm, so it needs a cluster, for example +cluster=a100x64"
    if config.test_only and config.dry_run:
        yield "test_only=true: asks Slurm, and dry_run=true asks nobody; give one of them"
    if config.local and cluster.launcher == "slurm":
        yield (
            f"local=true: is for a run here, and cluster={cluster.name} is Slurm's; "
            "give one of them"
        )


def _without_slurm(config: RunConfig) -> Iterator[str]:
    """What has no effect on cluster=local."""
    if config.search.trials is not None:
        yield (
            "search.trials: has no effect on cluster=local, where no watchdog submits "
            "trials; choose a cluster"
        )
    if config.halving.rungs:
        yield (
            "halving.rungs: has no effect on cluster=local, where no watchdog stops runs; "
            "choose a Slurm cluster"
        )
    if config.recovery.successor:
        yield "recovery.successor=true: has no effect on cluster=local; choose a Slurm cluster"
    if config.recovery.notify:
        yield (
            "recovery.notify: has no effect on cluster=local, where no watchdog looks on; "
            "choose a Slurm cluster"
        )
    for key in SLURM_ONLY:
        value = getattr(config.cluster, key)
        if value != default_value(ClusterConfig, key):
            yield (f"cluster.{key}={value}: has no effect on cluster=local; choose a Slurm cluster")
