"""`python -m hpc_llm.train RUN_DIR`: one rank of one attempt. Under the supervisor, srun, torchrun,
or alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hpc_llm.checkpoint.errors import NoValidCheckpoint, SaveFailed
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import check_digests
from hpc_llm.planning.plan import RunPlan, with_micro_batch
from hpc_llm.recovery import accounting, failures
from hpc_llm.recovery.causes import ExitCode
from hpc_llm.runs import attempts, freeze, ledger
from hpc_llm.runs.heartbeat import Heart, Phase
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.slurm import environment
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.parent import die_with_parent
from hpc_llm.training import allocator
from hpc_llm.training.stop import Diverged, Outcome, StopFlag

log = logging.getLogger("hpc_llm")


def main(argv: list[str] | None = None) -> int:
    """Train; the exit code is one of recovery.causes.ExitCode."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0].startswith("-"):
        print(
            "usage: python -m hpc_llm.train RUN_DIR (a folder made by python -m hpc_llm.submit)",
            file=sys.stderr,
        )
        return ExitCode.CONFIG_ERROR
    layout = RunLayout(Path(words[0]).absolute())
    if _on_a_cpu(layout):
        allocator.restart_with_tcmalloc()
    faulthandler.enable()
    stop = StopFlag(hold_on_sigterm="HPC_LLM_HOLD" in os.environ)
    if "HPC_LLM_SUPERVISOR" in os.environ:
        die_with_parent(int(os.environ["HPC_LLM_SUPERVISOR"]), signal.SIGKILL)
    try:
        place = environment.read(os.environ)
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return ExitCode.CONFIG_ERROR
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s rank {place.rank} %(levelname)s %(message)s",
        force=True,
    )
    try:
        outcome = _train(layout, place, stop)
    except (InputError, NoValidCheckpoint, SaveFailed, Diverged, attempts.Fenced) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        return _exit_code(error)
    except Exception as error:
        log.exception("rank %d failed", place.rank)
        return _crash_code(error)
    if outcome is Outcome.HELD:
        log.info(
            "saved; waiting for Slurm to end the job, or for the supervisor's word that it does"
        )
        stop.wait_while_held()
    return ExitCode.COMPLETED if outcome is Outcome.FINISHED else ExitCode.STOPPED


def _on_a_cpu(layout: RunLayout) -> bool:
    try:
        return not freeze.read_config(layout).cluster.has_gpus
    except InputError:
        return False  # told where everything is set up to tell it


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, SaveFailed):
        return ExitCode.STORAGE_FULL if error.full else ExitCode.CRASHED
    return {
        InputError: ExitCode.CONFIG_ERROR,
        NoValidCheckpoint: ExitCode.CHECKPOINT_UNREADABLE,
        Diverged: ExitCode.DIVERGED,
        attempts.Fenced: ExitCode.FENCED,
    }[type(error)]


def _crash_code(error: Exception) -> ExitCode:
    """Out of memory is told apart, of a GPU and of a host."""
    if failures.names_gpu_memory(error):
        return ExitCode.GPU_OUT_OF_MEMORY
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.CRASHED


def _train(layout: RunLayout, place: RankEnvironment, stop: StopFlag) -> Outcome:
    """One attempt; how it ended unless it failed."""
    config = freeze.read_config(layout)
    plan = freeze.read_plan(layout)
    restrict_access(config.run.group)
    plan = with_micro_batch(
        plan, config, int(os.environ.get("HPC_LLM_MICRO_BATCH", plan.micro_batch))
    )
    if config.checkpoint.every == "auto":
        plan = replace(plan, checkpoint_every_s=_interval_s(layout, plan))
    if place.world_size != plan.world_size:
        raise InputError(
            f"{layout.path}: planned for {plan.world_size} ranks, started with {place.world_size}; "
            f"start {plan.world_size}, or submit it again for the machine you want"
        )
    check_digests(Path(plan.data_directory), plan.data_digests)
    beat = _heart(layout, place)
    if plan.compile or plan.attention == "flex":
        # torch's own place is a folder of the node's /tmp. Its keys name device, versions and
        # source.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(RootLayout.of(layout).compiled))
    # torch takes seconds to import: a user's mistakes are reported before.
    with _kept():
        from hpc_llm.training import device as devices

    device = devices.choose_device(config.cluster.device, place.local_rank)
    if device.type == "cpu" and plan.attention in ("flex", "flash"):
        raise InputError(
            f"train.attention={plan.attention} was planned for a GPU, and torch sees none here; "
            "set cluster.device=cpu"
        )
    if plan.compile or plan.attention == "flex":
        need_compiler(device.type)
    if device.type == "cpu" and not allocator.another_in_use():
        log.info(
            "without tcmalloc (gperftools' libtcmalloc_minimal.so.4) glibc's heap may grow to "
            "twice the planned memory"
        )
    devices.keep_memory(device)
    with _kept():
        from hpc_llm.training import loop

    with devices.process_group(place, device, config.recovery.start_timeout_s):
        given = os.environ.get("HPC_LLM_ATTEMPT")
        number = devices.broadcast(
            (int(given) if given else attempts.claim(layout)) if place.rank == 0 else 0
        )
        attempt = loop.Attempt(
            number=number,
            rank=place.rank,
            checkpoints=layout.checkpoints,
            metrics=layout.metrics,
            tensorboard=layout.tensorboard,
            known_steps=_known_steps(layout),
            check_fence=attempts.Fence(layout, number).check,
            record=_recorder(layout, number, place.rank),
            skipped=tuple(devices.broadcast(_skipped(layout, config) if place.rank == 0 else [])),
            divergence=layout.divergence(number),
            beat=beat,
        )
        try:
            outcome = loop.run(config, plan, attempt, device, stop)
        finally:
            beat(0, Phase.LEAVING)
        if outcome is Outcome.HELD:
            beat(0, Phase.HOLDING)
        return outcome


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """What is imported within is there for good: garbage collections neither run nor look at it
    later.

    Walking all of torch takes 0.1 s, which DeepSpeed asks for some six times as it sets up, and
    Python as it exits.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def need_compiler(device: str) -> None:
    """torch.compile calls a compiler of the node: on a GPU for C, against Python's headers, on a
    CPU for C++.
    """
    known = {"cuda": [os.environ.get("CC"), "gcc", "clang"], "cpu": [os.environ.get("CXX"), "g++"]}[
        device
    ]
    names = [name for name in known if name]
    missing = (
        "" if any(shutil.which(name) for name in names) else f"a compiler ({' or '.join(names)})"
    )
    headers = Path(sysconfig.get_path("include"))
    if device == "cuda" and not (headers / "Python.h").exists():
        missing = missing or f"Python's headers ({headers}/Python.h)"
    if missing:
        raise InputError(
            "train.compile and train.attention=flex, which `auto` chooses on GPUs, need "
            f"{missing} where the run is; provide it by cluster.setup, or set train.compile=false "
            "train.attention=sdpa"
        )


def _heart(layout: RunLayout, place: RankEnvironment) -> Callable[[int, Phase], None]:
    """Signs of life for the supervisor, from the first rank of each node."""
    attempt = os.environ.get("HPC_LLM_ATTEMPT")
    if attempt is None or place.local_rank != 0:
        return lambda step, phase: None
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    return Heart(layout.node_heartbeat(node), int(attempt)).beat


def _interval_s(layout: RunLayout, plan: RunPlan) -> float:
    """Daly's interval, from what saves took and how often the run was interrupted up to now."""
    return accounting.checkpoint_interval_s(
        ledger.read(layout.ledger),
        num_nodes=plan.nodes,
        checkpoint_bytes=plan.checkpoint_bytes,
        now=time.time(),
    )


def _known_steps(layout: RunLayout) -> int:
    """The newest step that the ledger knows to have been saved; 0 for none."""
    events = ledger.read(layout.ledger)
    return max(
        (event.facts["step"] for event in events if event.event == "checkpointed"), default=0
    )


def _skipped(layout: RunLayout, config: RunConfig) -> list[int]:
    """Steps of the data's order that earlier attempts diverged in, where these are to be left
    out.
    """
    if config.recovery.on_divergence != "skip":
        return []
    return [
        event.facts["data_step"]
        for event in ledger.read(layout.ledger)
        if event.event == "diverged"
    ]


def _recorder(layout: RunLayout, number: int, rank: int) -> Callable[..., None]:
    writer = ledger.PatientLedger(layout.ledger, f"train-{number:04d}")
    return writer.write if rank == 0 else lambda event, **facts: None


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: after all is done and saved, destructors of the process group may still hang on
    # a dead peer.
    os._exit(status)
