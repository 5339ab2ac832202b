"""Long names of the options that sbatch and srun take, and the nearest one to a misspelt name.

From the manuals of Slurm 22.05 to 26.05. A site's plug-ins (SPANK) may add others, so a name that
resembles none of these is left for Slurm to judge.
"""

from __future__ import annotations

import difflib

# Like "comment" and "commnet": what a slip of the finger leaves, not another word.
_AS_ALIKE_AS_A_SLIP = 0.8

_BOTH = """
account acctg-freq bb bbf begin chdir cluster-constraint clusters comment consolidate-segments
constraint container container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu
cpus-per-task deadline delay-boot dependency error exclude exclusive export extra extra-node-info
get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags
help hint hold input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem
mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill nodefile nodelist nodes ntasks
ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-kill-step open-mode output
overcommit oversubscribe partition power prefer priority profile propagate qos quiet reboot
reservation resv-ports segment signal sockets-per-node spread-job spread-segments switches
thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid usage use-min-nodes
verbose version wait wckey x11 distribution
"""
SBATCH = frozenset(
    f"""
{_BOTH} array batch burst-buffer export-file ignore-pbs no-requeue parsable requeue stepmgr
test-only wait-all-nodes wrap
""".split()
)
SRUN = frozenset(
    f"""
{_BOTH} accel-bind async bcast bcast-exclude compress cpu-bind disable-status epilog exact external
het-group immediate interactive jobid kill-on-bad-exit label mpi msg-timeout multi-prog no-allocate
overlap preserve-env prolog pty quit-on-interrupt relative send-libs slurmd-debug
srun-reduce-task-exit-msg task-epilog task-prolog test-only threads treewidth unbuffered
""".split()
)


def is_pyxis(name: str) -> bool:
    """Whether `name` is an option of pyxis, which runs the tasks of a step in a container."""
    return name.startswith(("container-", "no-container-")) and name not in SBATCH


def misspelt(name: str, known: frozenset[str]) -> str | None:
    """The option of `known` that was probably meant; None if `name` is one, or resembles none."""
    if name in known or is_pyxis(name):
        return None
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_AS_ALIKE_AS_A_SLIP)
    return close[0] if close else None
