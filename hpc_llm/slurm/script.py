"""RunConfig → text of the batch script: a pure function.

The script sets the environment, changes to the run's code snapshot and becomes the supervisor by
`exec`, so that the signal before the time limit (`--signal=B:…`) reaches Python. Everything else
about a job is up to the supervisor.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping

from hpc_llm.config.cluster_checks import gpu_request_problems, variable_problems
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ClusterConfig, RunConfig
from hpc_llm.slurm import step_checks
from hpc_llm.slurm.directives import Option, check_extras, directive, has_control_characters
from hpc_llm.slurm.gpus import gpu_option

SIGNAL = "USR2"  # NCCL takes USR1
# Exit status of supervise.successor in a job that has nothing to do (EX_TEMPFAIL).
SUCCESSOR_LEAVES = 75


def render_script(
    config: RunConfig,
    *,
    run_dir: str,
    python: str,
    name: str,
    array: Mapping[int, str] | None = None,
) -> str:
    """Text of `job.sbatch`; InputError lists every value that it cannot hold.

    `run_dir` is the run's directory, or the sweep's where `array` maps array indices to run
    directories. Paths are absolute; `python` is the interpreter of the batch shell, outside any
    container.
    """
    run_dirs_of_tasks = array or {}
    paths = [run_dir, *run_dirs_of_tasks.values()]
    if not all(path.startswith("/") for path in paths):
        raise ValueError("run directories must be absolute: Slurm reads them on another machine")
    if config.cluster.signal_lead_s == "auto" and config.cluster.time_min is not None:
        raise ValueError(
            "cluster.signal_lead_s is still auto: the plan knows the seconds (submission.arrays)"
        )
    header = options(config, run_dir=run_dir, name=name, indices=tuple(run_dirs_of_tasks))
    return script(config.cluster, header, _body(config, run_dir, python, array), [*paths, python])


def script(
    cluster: ClusterConfig, header: Iterable[Option], body: Iterable[str], paths: list[str]
) -> str:
    """Text of a batch script.

    InputError lists every value that it cannot hold, including `paths`, which stand in `body`.
    """
    problems = [*_problems(cluster, paths)]
    lines: list[str] = []
    for option in header:
        try:
            lines.append(directive(option))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return "\n".join(["#!/bin/bash", *lines, "", *body, ""])


def options(
    config: RunConfig, *, run_dir: str, name: str, indices: tuple[int, ...] = ()
) -> Iterator[Option]:
    """The header's options as a reader expects them: who, what, how long, how it ends, where to.

    indices: of the tasks of an array; none for a single job, which starts in run_dir/code.
    """
    cluster = config.cluster
    yield Option("job-name", name, "run.name")
    for key in ("account", "partition", "qos", "constraint", "exclude", "reservation"):
        value = getattr(cluster, key)
        if value is not None:
            yield Option(key, value, f"cluster.{key}")
    if indices:
        yield Option("array", array_spec(indices, cluster.array_throttle))
    yield Option("nodes", str(cluster.nodes + cluster.spare_nodes))
    yield Option("ntasks-per-node", str(cluster.gpus_per_node))  # one task per GPU
    gpus = gpu_option(cluster, cluster.gpus_per_node)
    if gpus is not None:
        yield Option(*gpus)
    if cluster.cpus_per_gpu is not None:
        yield Option("cpus-per-task", str(cluster.cpus_per_gpu))
    if cluster.mem is not None:
        yield Option("mem", cluster.mem, "cluster.mem")
    if cluster.time_min is not None:
        yield Option("time", time_limit(cluster.time_min))
        yield Option("signal", f"B:{SIGNAL}@{cluster.signal_lead_s}")
    # The site's JobRequeue may be 0.
    yield Option("requeue", cluster.sbatch.get("requeue"), "cluster.sbatch.requeue")
    yield Option("open-mode", "append")  # or a requeue truncates the log
    # Slurm's own log. The tasks of an array write into their runs' folders and share one file for
    # errors before that. A literal % is doubled: Slurm expands patterns in this option, not in
    # --chdir.
    logs = f"{run_dir.replace('%', '%%')}/slurm"
    if indices:
        yield Option("output", f"{logs}/%A.log", "run.root")
        yield Option("chdir", run_dir, "run.root")
    else:
        yield Option("output", f"{logs}/%j.log", "run.root")
        yield Option("chdir", f"{run_dir}/code", "run.root")
    yield from _placement(cluster)
    yield from _extras(cluster)


def _placement(cluster: ClusterConfig) -> Iterator[Option]:
    """What else a job has on its nodes, and what happens where one is late or lost.

    No --hint: whether `cpus_per_gpu` counts cores or hyperthreads depends on the site
    (cluster.sbatch.hint).
    """
    if cluster.mem == "0" and "exclusive" not in cluster.sbatch:
        # All the memory is requested, so other jobs could not use the cores anyway.
        yield Option("exclusive")
    if cluster.spare_nodes:
        # The allocation survives the loss of a node, and the step restarts on the others. Only with
        # spare nodes: a job whose batch node is lost stays RUNNING with nothing in it, and only a
        # watchdog finds it.
        yield Option("no-kill")
    if cluster.nodes + cluster.spare_nodes > 1 and "wait-all-nodes" not in cluster.sbatch:
        # Start the script when every node has booted, not the first.
        yield Option("wait-all-nodes", "1")


def _extras(cluster: ClusterConfig) -> Iterator[Option]:
    """The options of cluster.sbatch; `false` leaves one out, and `true` gives it no value."""
    for name, value in cluster.sbatch.items():
        key = f"cluster.sbatch.{name}"
        if name == "requeue":
            continue  # it stands further up
        if value in ("", "true"):
            yield Option(name, None, key)
        elif value != "false":
            yield Option(name, value, key)


def time_limit(minutes: int) -> str:
    """Minutes as Slurm's days-hours:minutes:seconds."""
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02}:{minute:02}:00"


def array_spec(indices: tuple[int, ...], throttle: int | None = None) -> str:
    """Array indices as Slurm writes them: `0-3,7%2`, of which two may run at once."""
    ranges: list[list[int]] = []
    for index in sorted(indices):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ",".join(_range(first, last) for first, last in ranges)
    return f"{text}%{throttle}" if throttle else text


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def exports(cluster: ClusterConfig) -> Iterator[str]:
    """Lines of a script's body that set cluster.exports."""
    for name, value in cluster.exports.items():
        yield f"export {name}={shlex.quote(value)}"


def _body(
    config: RunConfig, run_dir: str, python: str, array: Mapping[int, str] | None
) -> Iterator[str]:
    cluster = config.cluster
    yield "set -eo pipefail  # not -u: the functions of environment modules read unset variables"
    if array:
        yield "run_dirs=("
        for index, path in sorted(array.items()):
            yield f"  [{index}]={shlex.quote(path)}"
        yield ")"
        yield "run_dir=${run_dirs[$SLURM_ARRAY_TASK_ID]:?no run has this array index}"
        yield 'exec >>"$run_dir/slurm/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.log" 2>&1'
    else:
        yield f"run_dir={shlex.quote(run_dir)}"
    yield from cluster.setup
    yield from exports(cluster)
    # Where --chdir fails Slurm falls back to /tmp, and python -m would import whatever lies there.
    yield 'cd -- "$run_dir/code"'
    if config.recovery.successor:
        yield (
            "# Queues the job that waits for the end of this one; a job that has nothing left "
            "to do leaves here."
        )
        command = f'{shlex.quote(python)} -m hpc_llm.supervise.successor "$run_dir"'
        yield f"{command} || [[ $? -ne {SUCCESSOR_LEAVES} ]] || exit 0"
    if cluster.wrapper:
        yield f"# The supervisor starts the ranks, each step inside: {shlex.join(cluster.wrapper)}"
    yield f'exec {shlex.quote(python)} -m hpc_llm.supervise "$run_dir"'


def _problems(cluster: ClusterConfig, paths: list[str]) -> Iterator[str]:
    yield from check_extras(cluster)
    yield from step_checks.problems(cluster)
    yield from gpu_request_problems(cluster)
    yield from variable_problems(cluster)
    for name, value in cluster.exports.items():
        if has_control_characters(value):
            yield f"cluster.exports.{name}={value!r}: one line without control characters"
    for path in paths:
        if has_control_characters(path):
            yield f"{path!r}: a path of one line without control characters"
    for word in cluster.wrapper:
        if has_control_characters(word):
            yield f"cluster.wrapper={word!r}: words of one line without control characters"
