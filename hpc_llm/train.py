"""`python -m hpc_llm.train RUN_DIR`: one rank of one attempt.

It is started by the supervisor, srun, torchrun, or alone.
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
from typing import TYPE_CHECKING

from hpc_llm.checkpoint.errors import NoValidCheckpoint, SaveFailed
from hpc_llm.config import hints
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import check_digests
from hpc_llm.planning.plan import RunPlan, with_micro_batch
from hpc_llm.recovery import accounting, failures
from hpc_llm.runs import attempts, freeze, ledger, orders
from hpc_llm.runs.heartbeat import Heart, Phase
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.orders import ExitCode, RankOrders
from hpc_llm.runs.story import Story, read_story
from hpc_llm.slurm import environment
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.storage import trust
from hpc_llm.storage.files import restrict_access
from hpc_llm.storage.limits import allow_open_files
from hpc_llm.storage.parent import die_with_parent
from hpc_llm.storage.patience import patiently
from hpc_llm.training import allocator
from hpc_llm.training.attempt import Attempt
from hpc_llm.training.stop import Diverged, Outcome, StopFlag
from hpc_llm.zero.known_versions import refuse_unknown_versions

if TYPE_CHECKING:
    import torch

log = logging.getLogger("hpc_llm")

# Ranks that end with one of these say it in a line; any other error is logged with its traceback.
_EXPECTED = (InputError, NoValidCheckpoint, SaveFailed, Diverged, attempts.Fenced)
_EXIT_CODES: dict[type[Exception], ExitCode] = {
    InputError: ExitCode.CONFIG_ERROR,
    NoValidCheckpoint: ExitCode.CHECKPOINT_UNREADABLE,
    Diverged: ExitCode.DIVERGED,
    attempts.Fenced: ExitCode.FENCED,
}


def main(argv: list[str] | None = None) -> int:
    """Train; the exit code is one of runs.orders.ExitCode."""
    if argv is None:
        argv = sys.argv[1:]
    if len(argv) != 1 or argv[0].startswith("-"):
        print(
            f"usage: {hints.command('train')} RUN_DIR (a folder made by {hints.command('submit')})",
            file=sys.stderr,
        )
        return ExitCode.CONFIG_ERROR
    layout = RunLayout(Path(argv[0]).absolute())
    if _on_a_cpu(layout):
        allocator.restart_with_tcmalloc()
    faulthandler.enable()
    allow_open_files()
    given = orders.read(os.environ)
    stop = StopFlag(hold_on_sigterm=given.hold)
    if given.supervisor is not None:
        die_with_parent(given.supervisor, signal.SIGKILL)
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
        outcome = train_rank(layout, place, given, stop)
    except Exception as error:
        _log(error, place)
        return exit_code(error)
    if outcome is Outcome.HELD:
        log.info(
            "saved; waiting for Slurm to end the job, or for the supervisor's word that it does"
        )
        stop.wait_while_held()
    if outcome is Outcome.FINISHED:
        return ExitCode.COMPLETED
    return ExitCode.STOPPED


def _on_a_cpu(layout: RunLayout) -> bool:
    try:
        return not freeze.read_config(layout).cluster.has_gpus
    except InputError:
        return False  # reported once logging is set up


def _log(error: Exception, place: RankEnvironment) -> None:
    """Must be called while `error` is handled."""
    if not isinstance(error, _EXPECTED):
        log.exception("rank %d failed", place.rank)
        return
    for line in str(error).splitlines():
        log.error("%s", line)


def exit_code(error: Exception) -> ExitCode:
    """What a rank leaves with that ends with `error`, as runs.orders draws it."""
    if isinstance(error, SaveFailed):
        return ExitCode.STORAGE_FULL if error.full else ExitCode.CRASHED
    for kind, code in _EXIT_CODES.items():
        if isinstance(error, kind):
            return code
    if failures.names_gpu_memory(error):
        return ExitCode.GPU_OUT_OF_MEMORY
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.CRASHED


def train_rank(
    layout: RunLayout, place: RankEnvironment, given: RankOrders, stop: StopFlag
) -> Outcome:
    """One rank's part of an attempt; how it ended unless it failed.

    `place` is the rank's, `given` are its supervisor's orders.
    """
    config = patiently(lambda: freeze.read_config(layout))
    plan = patiently(lambda: freeze.read_plan(layout))
    restrict_access(config.run.group)
    plan = _adjusted(plan, config, layout, given)
    if place.world_size != plan.world_size:
        raise InputError(
            f"{layout.path}: planned for {plan.world_size} ranks, started with {place.world_size}; "
            f"start {plan.world_size}, or submit it again for the machine you want"
        )
    check_digests(Path(plan.data_directory), plan.data_digests)
    refuse_unknown_versions()
    beat = _heart(layout, place, given)
    # torch takes seconds to import: a user's mistakes are reported before.
    device = _open_device(config, plan, layout, place)
    with kept_for_good():
        from hpc_llm.training import device as devices
        from hpc_llm.training import loop

    with devices.process_group(place, device, config.recovery.start_timeout_s):
        number = devices.broadcast(_number(layout, place, given))
        attempt = Attempt(
            number=number,
            rank=place.rank,
            checkpoints=layout.checkpoints,
            metrics=layout.metrics,
            tracker_folder=layout.tracker_folder,
            known_steps=devices.broadcast(_known_steps(layout, place)),
            check_fence=attempts.Fence(layout, number).check,
            record=_recorder(layout, number, place.rank),
            skipped=tuple(devices.broadcast(_skipped(layout, config, place))),
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


def _adjusted(plan: RunPlan, config: RunConfig, layout: RunLayout, given: RankOrders) -> RunPlan:
    """The plan with the supervisor's micro-batch, and with the interval that `auto` means now."""
    if given.micro_batch is not None:
        plan = with_micro_batch(plan, config, given.micro_batch)
    if config.checkpoint.every == "auto":
        plan = replace(plan, checkpoint_every_s=_interval_s(layout, plan))
    return plan


def _open_device(
    config: RunConfig, plan: RunPlan, layout: RunLayout, place: RankEnvironment
) -> torch.device:
    """This rank's device, once all that `plan` needs of the node is seen to be there."""
    compiles = plan.compile or plan.attention == "flex"
    if compiles:
        # torch's own place is a folder of the node's /tmp. Its keys name device, versions and
        # source.
        compiled = patiently(lambda: trust.own_folder(RootLayout.of(layout).compiled))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    with kept_for_good():
        from hpc_llm.training import device as devices

    device = devices.choose_device(config.cluster.device, place.local_rank)
    if device.type == "cpu" and plan.attention in ("flex", "flash"):
        raise InputError(
            f"train.attention={plan.attention} was planned for a GPU, and torch sees none here; "
            "set cluster.device=cpu"
        )
    if compiles:
        need_compiler(device.type)
    if device.type == "cpu" and not allocator.another_in_use():
        log.info(
            "without tcmalloc (gperftools' libtcmalloc_minimal.so.4) glibc's heap may grow to "
            "twice the planned memory"
        )
    devices.keep_memory(device)
    return device


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """Imports made within are exempt from garbage collection, which does not run meanwhile.

    Walking all of torch takes 0.1 s. DeepSpeed asks for that some six times as it sets up, and
    Python as it exits.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def need_compiler(device: str) -> None:
    """InputError unless the node has what torch.compile needs.

    For a GPU that is a C compiler and Python's headers, for a CPU a C++ compiler.
    """
    missing = _missing_compiler(device)
    headers = Path(sysconfig.get_path("include"))
    if missing is None and device == "cuda" and not (headers / "Python.h").exists():
        missing = f"Python's headers ({headers}/Python.h)"
    if missing is not None:
        raise InputError(
            "train.compile and train.attention=flex, which `auto` chooses on GPUs, need "
            f"{missing} where the run is; provide it by cluster.setup, or set train.compile=false "
            "train.attention=sdpa"
        )


def _missing_compiler(device: str) -> str | None:
    """The compilers for `device`, in words, if the node has none of them."""
    if device == "cuda":
        known = [os.environ.get("CC"), "gcc", "clang"]
    else:
        known = [os.environ.get("CXX"), "g++"]
    names = [name for name in known if name]
    if any(shutil.which(name) for name in names):
        return None
    return f"a compiler ({' or '.join(names)})"


def _number(layout: RunLayout, place: RankEnvironment, given: RankOrders) -> int:
    """The attempt's number on rank 0, which takes the next one where nobody gave it any."""
    if place.rank != 0:
        return 0
    if given.attempt is not None:
        return given.attempt
    return attempts.claim(layout)


def _heart(
    layout: RunLayout, place: RankEnvironment, given: RankOrders
) -> Callable[[int, Phase], None]:
    """Signs of life for the supervisor, from the first rank of each node."""
    if given.attempt is None or place.local_rank != 0:
        return lambda step, phase: None
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    return Heart(layout.node_heartbeat(node), given.attempt).beat


def _interval_s(layout: RunLayout, plan: RunPlan) -> float:
    """Daly's interval, from what saves took and how often the run was interrupted up to now."""
    return accounting.checkpoint_interval_s(
        _story(layout),
        num_nodes=plan.nodes,
        checkpoint_bytes=plan.checkpoint_bytes,
        now=time.time(),
    )


def _known_steps(layout: RunLayout, place: RankEnvironment) -> int:
    """On rank 0 the newest step that the ledger knows to have been saved; 0 for none.

    After 100 attempts a ledger has 200 files, too many for thousands of ranks to open.
    """
    if place.rank != 0:
        return 0
    return _story(layout).newest_saved_step


def _story(layout: RunLayout) -> Story:
    """What the ledger tells, once the file system gives it."""
    return patiently(lambda: read_story(layout.ledger))


def _skipped(layout: RunLayout, config: RunConfig, place: RankEnvironment) -> list[int]:
    """On rank 0 the steps of the data's order to leave out: earlier attempts diverged in them."""
    if place.rank != 0 or config.recovery.on_divergence != "skip":
        return []
    return list(_story(layout).diverged_data_steps)


def _recorder(layout: RunLayout, number: int, rank: int) -> Callable[..., None]:
    """Writes one event to the ledger, on rank 0."""
    if rank != 0:
        return lambda event, **facts: None
    return ledger.PatientLedger(layout.ledger, f"train-{number:04d}").write


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: when all is saved, destructors of the process group may hang on a dead peer.
    os._exit(status)
