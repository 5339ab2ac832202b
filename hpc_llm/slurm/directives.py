"""One `#SBATCH` line: sbatch splits it by its own rules, not the shell's.

From sbatch's source (src/sbatch/opt.c, get_argument, 17.11 to 24): words end at white space; single
and double quotes group; a backslash takes the next character as it is, inside quotes too; an
unquoted # begins a comment. "packjob" and "hetjob" anywhere in the line are blanked out or split
the job. No variable is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import ClusterConfig
from hpc_llm.slurm.option_names import SBATCH, is_pyxis, misspelt

_PLAIN = re.compile(r"[A-Za-z0-9_./,:=@%+*&|()\[\]-]+")
_EATEN = re.compile("packjob|hetjob", re.IGNORECASE)

# Options that have their own key: given twice, it would be unclear which value holds.
KEY_OF = {
    "job-name": "run.name",
    "account": "cluster.account",
    "partition": "cluster.partition",
    "qos": "cluster.qos",
    "constraint": "cluster.constraint",
    "exclude": "cluster.exclude",
    "reservation": "cluster.reservation",
    "nodes": "cluster.nodes",
    "ntasks": "cluster.gpus_per_node",
    "ntasks-per-node": "cluster.gpus_per_node",
    "gpus": "cluster.gpu_request",
    "gpus-per-node": "cluster.gpu_request",
    "gpus-per-task": "cluster.gpu_request",
    "gres": "cluster.gpu_request",
    "cpus-per-task": "cluster.cpus_per_gpu",
    "cpus-per-gpu": "cluster.cpus_per_gpu",
    "mem": "cluster.mem",
    "time": "cluster.time_min",
    "signal": "cluster.signal_lead_s",
    "array": "-m with cluster.array_throttle",
    "output": "run.root",
    "error": "run.root",
    "chdir": "run.root",
    "export": "cluster.exports",
}
RESERVED = {
    "no-requeue",
    "open-mode",
    "wrap",
    "parsable",
    "test-only",
    "wait",
    "no-kill",
    "quiet",  # then sbatch does not say the job's number
}
# The job would live where nothing else asks for it: in another cluster, or as another user's.
_ELSEWHERE = {
    "clusters": "the other commands would ask another Slurm; export SLURM_CLUSTERS=NAME instead, "
    "which all of them heed",
    "uid": "the job would be another user's; submit as that user",
    "gid": "the job would be another group's; use newgrp",
}
_SPELLINGS = {"M": "clusters", "cluster": "clusters"}


@dataclass(frozen=True)
class Option:
    """An sbatch option as it stands in a script's header."""

    name: str
    value: str | None = None  # None: it takes none
    key: str = ""  # of the configuration, to name in an error


def directive(option: Option) -> str:
    """The `#SBATCH` line of `option`; InputError if sbatch could not read the value back."""
    if option.value is None:
        return f"#SBATCH --{option.name}"
    value = option.value
    given = f"{option.key or option.name}={value!r}"
    if not value.strip():
        raise InputError(f"{given}: text is expected, or null to leave --{option.name} out")
    if has_control_characters(value) or re.search(r"[\"'\\]", value):
        raise InputError(
            f"{given}: one line without quotes, backslashes and control characters (sbatch cannot "
            "hold them)"
        )
    if _EATEN.search(value):
        raise InputError(
            f"{given}: sbatch blanks out the words 'packjob' and 'hetjob'; use another name"
        )
    if _PLAIN.fullmatch(value):
        return f"#SBATCH --{option.name}={value}"
    return f'#SBATCH --{option.name}="{value}"'


# What a job may be given besides the values that have a key of their own.
_ALLOWED = {"requeue": ("expedite",), "export": ("NONE", "NIL")}


def check_extras(cluster: ClusterConfig) -> Iterator[str]:
    """Problems with the names in cluster.sbatch."""
    for name, value in cluster.sbatch.items():
        key = KEY_OF.get(name)
        plain = name.lstrip("-").replace("_", "-")
        elsewhere = _ELSEWHERE.get(_SPELLINGS.get(plain, plain))
        meant = misspelt(name, SBATCH)
        if value in _ALLOWED.get(name, ()):
            continue
        if elsewhere is not None:
            yield f"cluster.sbatch.{name}: {elsewhere}"
        elif not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            yield (
                f"cluster.sbatch.{name}: an sbatch option's long name, without dashes before "
                "it, for example comment"
            )
        elif is_pyxis(name):
            yield (
                f"cluster.sbatch.{name}: would put the batch script itself into the container, "
                f"where there is no srun; give it as cluster.srun={{{name}: …}}"
            )
        elif meant is not None:
            yield f"cluster.sbatch.{name}: sbatch has no such option; did you mean {meant}?"
        elif name == "requeue":
            yield (
                f"cluster.sbatch.requeue={value}: expedite, or leave it out: jobs are always "
                "submitted with --requeue"
            )
        elif name == "export":
            yield (
                f"cluster.sbatch.export={value}: NONE or NIL; variables of your own are "
                "cluster.exports"
            )
        elif name in RESERVED:
            yield f"cluster.sbatch.{name}: hpc_llm sets this option itself; leave it out"
        elif key and not (key == "cluster.gpu_request" and cluster.gpu_request == "none"):
            yield f"cluster.sbatch.{name}: give it as {key}"


def has_control_characters(text: str) -> bool:
    """Whether `text` holds a newline or another character that no line of a script may."""
    return any(ord(character) < 32 or ord(character) == 127 for character in text)
