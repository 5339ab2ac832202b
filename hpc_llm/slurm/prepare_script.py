"""RunConfig → text of the batch script of a preparation: a pure function.

An array of cluster.nodes one-node tasks, each with the cores of a node and no GPU. Any task does
any remaining work.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator

from hpc_llm.config.schema import ClusterConfig, RunConfig
from hpc_llm.slurm import script
from hpc_llm.slurm.directives import Option


def render_prepare_script(
    config: RunConfig, *, work: str, logs: str, code: str, python: str, name: str
) -> str:
    """Text of the script whose tasks join the preparation in folder `work`.

    They run the package below `code`. All paths are absolute. InputError lists every value that the
    script cannot hold.
    """
    cluster = config.cluster
    body = _body(cluster, work, code, python)
    return script.script(cluster, _options(config, logs, name), body, [work, logs, code, python])


def _options(config: RunConfig, logs: str, name: str) -> Iterator[Option]:
    cluster = config.cluster
    cores = None
    if cluster.cpus_per_gpu is not None:
        cores = cluster.cpus_per_gpu * cluster.gpus_per_node
    one_node = dataclasses.replace(
        cluster, nodes=1, gpus_per_node=1, cpus_per_gpu=cores, gpu_request="none"
    )
    task = dataclasses.replace(config, cluster=one_node)
    indices = tuple(range(cluster.nodes))
    for option in script.options(task, run_dir=logs, name=name, indices=indices):
        if option.name == "signal":
            continue  # results are complete or absent: there is nothing to save before the end
        if option.name == "output":
            yield Option("output", f"{logs.replace('%', '%%')}/%A_%a.log", "data.out")
        elif option.name == "chdir":
            yield Option("chdir", logs, "data.out")
        else:
            yield option


def _body(cluster: ClusterConfig, work: str, code: str, python: str) -> Iterator[str]:
    yield "set -eo pipefail"
    yield from cluster.setup
    yield from script.exports(cluster)
    yield f"cd -- {shlex.quote(code)}"
    command = shlex.join([*cluster.wrapper, python, "-m", "hpc_llm.prepare", f"join={work}"])
    yield f"exec {command}"
