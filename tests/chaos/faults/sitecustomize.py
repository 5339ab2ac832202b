"""Faults for ranks under test: put this folder on PYTHONPATH, and name them in HPC_LLM_FAULTS.

JSON list of {"attempt": N, "rank": R, "kind": …, …}; each fires in its attempt and rank alone.

    {"kind": "kill", "step": K}         SIGKILL oneself before optimizer step K (from 0)
    {"kind": "kill-save", "event": K}   SIGKILL oneself at the K-th touch of a file below
                                        checkpoints/ (open to write, rename, mkdir, remove, rmdir)
    {"kind": "stall-save", "event": K, "mark": PATH}
                                        write PATH at that touch, and go no further
    {"kind": "full", "after": BYTES, "times": T}
                                        ENOSPC, T times, once that many bytes went into checkpoints
    {"kind": "nan", "step": K, "layer": L}
                                        the weights turn NaN before step K; of parameters named L…
                                        if it is given
    {"kind": "nan-backward", "step": K, "layer": L}
                                        from step K on backward of modules named …L makes NaN
    {"kind": "scale", "step": K, "by": F}
                                        the weights are F times what they were before step K
    {"kind": "raise", "step": K, "error": E}
                                        before step K; E is gpu-memory, host-memory (that really
                                        runs out), or bug
    {"kind": "slow", "step": K, "seconds": S}
                                        from step K on every forward pass takes S longer
    {"kind": "segfault", "step": K}     SIGSEGV
    {"kind": "stop", "step": K}         SIGSTOP oneself: hangs, with all who wait for this rank

HPC_LLM_FAULT_ORDERS names a file through which a fault without attempt and step is ordered while a
run trains: the rank named in it takes the file away and obeys before its next step.

HPC_LLM_PACE names a file that does not exist yet: until it does, steps from the 100th on take 50 ms
longer, and those of the last fifth 0.5 s, so that a run which is there to be hit leaves the cores
to others and does not end before.

WARM_RANKS: see warm_client.py.

Audit hooks see what the interpreter does to files: the program under test has no test hooks.
"""

import errno
import io
import json
import os
import signal
import sys

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def _is_fork() -> bool:
    """Whether this process has been made by warm_ranks.py; what it starts itself has not."""
    return os.environ.get("WARM_FORK") == str(os.getpid())


def _die() -> None:
    """Whoever started this rank sees it end at once; a fork dies with the process it works for."""
    os.kill(int(os.environ["WARM_CLIENT"]) if _is_fork() else os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


def _stall(mark: str) -> None:
    with open(mark, "w"):  # noqa: PTH123 – no imports before the program's own
        pass
    while True:
        signal.pause()


def _at_save_event(number: int, action) -> None:  # type: ignore[no-untyped-def]
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in WATCHED or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(arguments[0])
        writing = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if "/checkpoints/step-" in path and writing:
            seen += 1
            if seen == number:
                action()

    sys.addaudithook(hook)


def _full_after(limit: int, times: float) -> None:
    from pathlib import Path

    written = 0
    raised = 0
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:
            nonlocal written, raised
            written += len(data)
            if written > limit and raised < times:
                raised += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            return super().write(data)

    def open_path(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if mode == "wb" and "/checkpoints/step-" in str(path) and path.suffix == ".pt":
            return Full(str(path), "w")
        return opened(path, mode, *rest, **options)

    Path.open = open_path


def _at_step(number: int, action) -> None:  # type: ignore[no-untyped-def]
    """Run `action()` before optimizer step `number` (from 0)."""
    _before_steps(lambda step, steps: action() if step == number else None)


def _before_steps(action) -> None:  # type: ignore[no-untyped-def]
    """Run `action(step, steps)` when the learning rate of a step is asked for, which is before that
    step.
    """
    import importlib.abc
    import importlib.util

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
            if name != "hpc_llm.planning.schedule":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module

            def patched(module) -> None:  # type: ignore[no-untyped-def]
                execute(module)
                plain = module.learning_rate

                def rate(optim, step, steps, warmup_steps):  # type: ignore[no-untyped-def]
                    action(step, steps)
                    return plain(optim, step, steps, warmup_steps)

                module.learning_rate = rate

            spec.loader.exec_module = patched
            return spec

    sys.meta_path.insert(0, Finder())


def _raise(error: str) -> None:
    import torch

    if error == "gpu-memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if error == "host-memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        torch.ones(2**30)
    raise ValueError("a bug of the user's")


def _change_weights(layer: str, factor: float) -> None:
    import gc

    import torch

    gc.unfreeze()  # the loop freezes what was there when it began
    for found in gc.get_objects():
        if isinstance(found, torch.nn.Module) and type(found).__name__ == "Transformer":
            with torch.no_grad():
                for name, parameter in found.named_parameters():
                    if layer in name:
                        parameter.mul_(factor)


def _poison_backward(layer: str) -> None:
    import gc

    import torch

    def lost(module, inputs, output) -> None:  # type: ignore[no-untyped-def]
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    gc.unfreeze()
    for found in gc.get_objects():
        if isinstance(found, torch.nn.Module) and type(found).__name__ == "Transformer":
            for name, module in found.named_modules():
                if name.endswith(layer):
                    module.register_forward_hook(lost)


def _slow(seconds: float) -> None:
    import time

    from torch.nn.modules.module import register_module_forward_pre_hook

    def wait(module, inputs) -> None:  # type: ignore[no-untyped-def]
        if type(module).__name__ == "DeepSpeedEngine":
            time.sleep(seconds)

    register_module_forward_pre_hook(wait)


def _pace(released: str) -> None:
    import time

    def wait(step: int, steps: int) -> None:
        if step >= 100 and not os.path.exists(released):  # noqa: PTH110
            time.sleep(0.05 if step < 0.8 * steps else 0.5)

    _before_steps(wait)


def _obey(fault: dict) -> None:
    """Do it now."""
    kind = fault["kind"]
    if kind == "kill":
        _die()
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "raise":
        _raise(fault["error"])
    elif kind == "nan":
        _change_weights(fault.get("layer", ""), float("nan"))
    elif kind == "scale":
        _change_weights("", fault["by"])
    elif kind == "nan-backward":
        _poison_backward(fault["layer"])
    elif kind == "slow":
        _slow(fault["seconds"])
    elif kind == "kill-save":
        _at_save_event(fault["event"], _die)
    elif kind == "stall-save":
        _at_save_event(fault["event"], lambda: _stall(fault["mark"]))
    elif kind == "full":
        _full_after(fault["after"], fault.get("times", float("inf")))


def _take_orders(path: str, rank: str) -> None:
    def look(step: int, steps: int) -> None:
        try:
            with open(path) as file:  # noqa: PTH123
                fault = json.load(file)
        except (OSError, ValueError):
            return
        if str(fault["rank"]) == rank:
            os.unlink(path)  # noqa: PTH108
            _obey(fault)

    _before_steps(look)


if "WARM_RANKS" in os.environ and not _is_fork():
    import warm_client

    warm_client.become_warm(os.environ["WARM_RANKS"], sys.orig_argv[1:])

RANK = os.environ.get("RANK", os.environ.get("SLURM_PROCID", ""))
if "HPC_LLM_ATTEMPT" in os.environ:
    for fault in json.loads(os.environ.get("HPC_LLM_FAULTS", "[]")):
        if str(fault["rank"]) != RANK or os.environ["HPC_LLM_ATTEMPT"] != str(fault["attempt"]):
            continue
        if "step" in fault:
            _at_step(fault["step"], lambda fault=fault: _obey(fault))
        else:
            _obey(fault)
    if "HPC_LLM_FAULT_ORDERS" in os.environ:
        _take_orders(os.environ["HPC_LLM_FAULT_ORDERS"], RANK)
    if "HPC_LLM_PACE" in os.environ:
        _pace(os.environ["HPC_LLM_PACE"])
