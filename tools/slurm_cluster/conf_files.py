"""The text of Slurm's configuration files: pure functions of the site."""

from __future__ import annotations

from .site import Site

CLUSTER_NAME = "local"
MEMORY_PER_CPU_MB = 2000


def slurm_conf(site: Site) -> str:
    """slurm.conf. An empty value is a parse error to Slurm, so every line here has one."""
    gpu_types = "GresTypes=gpu" if site.gpus_per_node else "# no GPUs"
    gres = f" Gres=gpu:{site.gpus_per_node}" if site.gpus_per_node else ""
    # CPUs and memory are claimed, not measured: config_overrides below makes Slurm believe them.
    nodes = "\n".join(
        (
            f"NodeName={node} NodeHostname={site.hostname} NodeAddr=127.0.0.1 "
            f"Port={site.node_port(node)} CPUs={site.cpus_per_node} "
            f"RealMemory={site.cpus_per_node * MEMORY_PER_CPU_MB}{gres} State=UNKNOWN"
        )
        for node in site.nodes
    )
    return f"""\
# Written by tools/local_slurm; `tools/local_slurm down` removes it.
ClusterName={CLUSTER_NAME}
SlurmctldHost={site.hostname}(127.0.0.1)
SlurmctldPort={site.ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={site.path("run/munge.socket")}
StateSaveLocation={site.path("state")}
SlurmdSpoolDir={site.path("spool")}/%n
SlurmctldPidFile={site.path("run/slurmctld.slurm.pid")}
SlurmdPidFile={site.path("run")}/slurmd-%n.slurm.pid
SlurmdLogFile={site.path("log")}/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose

# No cgroups and no systemd: processes are followed through /proc.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
MpiDefault=none
SwitchType=switch/none
{_listening(site)}
{gpu_types}
SlurmdParameters=config_overrides

# Slurm's own defaults, but for a node's death: by default seen in half a minute instead of five.
SlurmdTimeout={site.slurmd_timeout_s}
SlurmctldTimeout=120
InactiveLimit=0
KillWait=30
MinJobAge=300
OverTimeLimit=0
ReturnToService=2

# Decisions as on a large site, taken sooner: there the loops run every 60 s and 30 s, and batch
# jobs wait 3 s.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={MEMORY_PER_CPU_MB // 2}
EnforcePartLimits=ALL
MaxArraySize={site.max_array_size}
MaxJobCount={max(20_000, 2 * site.max_array_size)}
JobRequeue={int(site.requeue)}
{_preemption(site)}

{_accounting(site)}

{nodes}
{_partitions(site)}
"""


def _listening(site: Site) -> str:
    """Where slurmctld listens: on loopback alone if the machine's name means that.

    Slurm can bind to no other address than that of the machine's own name. Elsewhere (Debian gives
    127.0.1.1, a server its own address) slurmctld would not hear 127.0.0.1 at all.
    """
    if site.name_is_loopback:
        return "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
    return (
        "# Bound to every address, because the machine's name is not 127.0.0.1; munge's key "
        "keeps strangers out."
    )


def _preemption(site: Site) -> str:
    plugin = "preempt/partition_prio" if site.preempt_type == "partition" else "preempt/qos"
    return f"PreemptType={plugin}\nPreemptMode={site.preempt_mode}"


def _accounting(site: Site) -> str:
    if not site.accounting:
        return "AccountingStorageType=accounting_storage/none"
    # AccountingStoragePass: to slurmdbd, Slurm takes munge's socket from here and not from
    # AuthInfo.
    enforced = "AccountingStorageEnforce=limits" if site.max_submit else "# no limits are enforced"
    return f"""\
{enforced}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStoragePass={site.path("run/munge.socket")}
AccountingStorageHost=127.0.0.1
AccountingStoragePort={site.dbd_port}
AccountingStorageTRES=gres/gpu"""


def _partitions(site: Site) -> str:
    limits = f"Nodes={','.join(site.nodes)} MaxTime=7-00:00:00 DefaultTime=01:00:00 State=UP"
    if site.preempt_type == "qos":  # there the QOS decide, see `account_commands`
        return f"PartitionName=train Default=YES {limits}\nPartitionName=urgent {limits}"
    preempted = f"PreemptMode={site.preempt_mode} GraceTime={site.grace_time_s}"
    return f"""\
PartitionName=train Default=YES PriorityTier=1 {preempted} {limits}
PartitionName=urgent PriorityTier=10 PreemptMode=OFF {limits}"""


def account_commands(site: Site, users: list[str]) -> list[list[str]]:
    """Arguments of sacctmgr where QOS decide on preemption, or a user's jobs are limited.

    Jobs of `urgent` may preempt those of `normal`. A job without an association has no QOS and is
    never preempted, and limits hold for associations, so the machine's users get one.
    """
    commands = [
        [
            "add",
            "account",
            "users",
            f"Cluster={CLUSTER_NAME}",
            "Description=users",
            "Organization=local",
        ],
        ["add", "user", ",".join(users), "Account=users", "DefaultAccount=users"],
    ]
    if site.preempt_type == "qos":
        mode = site.preempt_mode.lower()
        commands += [
            [
                "modify",
                "qos",
                "normal",
                "set",
                f"PreemptMode={mode}",
                f"GraceTime={site.grace_time_s}",
            ],
            ["add", "qos", "urgent", "Preempt=normal", "Priority=100"],
            ["modify", "account", "users", "root", "set", "QOS=normal,urgent", "DefaultQOS=normal"],
        ]
    if site.max_submit:
        commands += [["modify", "user", ",".join(users), "set", f"MaxSubmitJobs={site.max_submit}"]]
    return commands


def slurmdbd_conf(site: Site, password: str) -> str:
    return f"""\
# Written by tools/local_slurm.
AuthType=auth/munge
AuthInfo=socket={site.path("run/munge.socket")}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={site.dbd_port}
SlurmUser=root
PidFile={site.path("run/slurmdbd.slurm.pid")}
DebugLevel=verbose
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={site.mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def gres_conf(site: Site) -> str:
    """Every node has its own device files, all of them pretended."""
    if not site.gpus_per_node:
        return "# no GPUs\n"
    files = "gpu0" if site.gpus_per_node == 1 else f"gpu[0-{site.gpus_per_node - 1}]"
    return f"NodeName={','.join(site.nodes)} Name=gpu File={site.path('dev')}/{files}\n"


def cgroup_conf(version: tuple[int, int]) -> str:
    """A file that must exist.

    Newer releases would look for systemd unless they are told that cgroups are off.
    """
    return "CgroupPlugin=disabled\n" if version >= (24, 5) else "# cgroups are not used\n"
