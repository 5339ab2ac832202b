"""What may stand in `cluster.srun`, and which variables may not be in `cluster.exports`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpc_llm.config.schema import ClusterConfig
from hpc_llm.slurm.directives import KEY_OF, has_control_characters
from hpc_llm.slurm.option_names import SRUN, misspelt
from hpc_llm.slurm.step import is_request

# On these the supervisor relies, or they come from the plan.
_OURS = """
async chdir distribution error exact exclusive export het-group input jobid kill-on-bad-exit label
multi-prog nodefile nodelist no-allocate open-mode output overcommit overlap pty quiet relative
srun-reduce-task-exit-msg test-only time unbuffered wait
"""
_HELP = frozenset({"help", "usage", "version"})
# Of a job: a step cannot change them.
_OF_THE_JOB = """
begin clusters cluster-constraint comment contiguous core-spec cores-per-socket deadline delay-boot
dependency extra get-user-env gid hold immediate kill-on-invalid-dep licenses mail-type mail-user
mcs-label mem-per-cpu mem-per-gpu mincpus nice no-kill oversubscribe power prefer priority reboot
sockets-per-node spread-job switches thread-spec time-min tmp uid use-min-nodes wckey
"""


def problems(cluster: ClusterConfig) -> Iterator[str]:
    """What is wrong with cluster.srun, and with variables that srun would read as options."""
    for name, value in cluster.srun.items():
        problem = _problem(name, value, cluster)
        if problem is not None:
            yield f"cluster.srun.{name}: {problem}"
    for name in cluster.exports:
        if is_request(name):
            yield (
                f"cluster.exports.{name}: srun would take it for an option of the step; options "
                "are cluster.srun={name: value}"
            )


def _problem(name: str, value: str, cluster: ClusterConfig) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        return "an srun option's long name, without dashes before it, for example cpu-bind"
    if has_control_characters(value):
        return f"{value!r}: one line without control characters"
    if name == "mem":
        return None if value == "false" else "false leaves srun's --mem=0 out; it takes no other"
    meant = misspelt(name, SRUN)
    if meant is not None:
        return f"srun has no such option; did you mean {meant}?"
    key = KEY_OF.get(name)
    if name in _HELP:
        return "prints something instead of starting ranks; leave it out"
    if name in _OURS.split():
        return "hpc_llm sets this option itself; leave it out"
    if name in _OF_THE_JOB.split():
        return f"is a matter of the job; give it as cluster.sbatch={{{name}: …}}"
    if key and not (key == "cluster.gpu_request" and cluster.gpu_request == "none"):
        return f"give it as {key}"
    return None
