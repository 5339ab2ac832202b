"""Faults for ranks under test: put this folder on PYTHONPATH and say in HPC_LLM_FAULTS what shall go wrong.

JSON list of {"attempt": N, "rank": R, "kind": …, …}; each fires in its attempt and rank alone.

    {"kind": "kill-step", "step": K}     SIGKILL oneself before optimizer step K (from 0)
    {"kind": "kill-save", "event": K}    SIGKILL oneself at the K-th touch of a file below checkpoints/
                                         (open for writing, rename, mkdir, remove, rmdir)
    {"kind": "stall-save", "event": K, "mark": PATH}   write PATH at that touch, and go no further
    {"kind": "full", "after": BYTES}     ENOSPC once that many bytes went into checkpoint files
    {"kind": "nan", "step": K, "layer": L}   the weights turn NaN before step K; of parameters named L… if it is given
    {"kind": "raise", "step": K, "error": E}  before step K: E is gpu-memory, host-memory (that really runs out), or bug
    {"kind": "stop-step", "step": K}     SIGSTOP oneself before step K: hangs, with all who wait for this rank

Audit hooks see what the interpreter does to files: the program under test has no test hooks.
"""

import errno
import io
import json
import os
import signal
import sys
import time

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stall(mark: str) -> None:
    with open(mark, "w"):  # noqa: PTH123 – no imports before the program's own
        pass
    while True:
        time.sleep(3600)


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


def _full_after(limit: int) -> None:
    from pathlib import Path

    written = 0
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:
            nonlocal written
            written += len(data)
            if written > limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            return super().write(data)

    def open_path(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if mode == "wb" and "/checkpoints/step-" in str(path) and path.suffix == ".pt":
            return Full(str(path), "w")
        return opened(path, mode, *rest, **options)

    Path.open = open_path


def _at_step(number: int, action) -> None:  # type: ignore[no-untyped-def]
    """Run `action()` when the learning rate of optimizer step `number` (from 0) is asked for: before that step."""
    import importlib.abc
    import importlib.util

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
            if name != "hpc_llm.training.schedule":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module

            def patched(module) -> None:  # type: ignore[no-untyped-def]
                execute(module)
                plain = module.learning_rate

                def rate(optim, step, steps, warmup_steps):  # type: ignore[no-untyped-def]
                    if step == number:
                        action()
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


def _poison(layer: str) -> None:
    import gc

    import torch

    gc.unfreeze()  # the loop freezes what was there when it began
    for found in gc.get_objects():
        if isinstance(found, torch.nn.Module):
            with torch.no_grad():
                for name, parameter in found.named_parameters():
                    if layer in name:
                        parameter.fill_(float("nan"))


for fault in json.loads(os.environ.get("HPC_LLM_FAULTS", "[]")):
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    if rank != str(fault["rank"]) or os.environ.get("HPC_LLM_ATTEMPT") != str(fault["attempt"]):
        continue
    if fault["kind"] == "kill-save":
        _at_save_event(fault["event"], _die)
    elif fault["kind"] == "stall-save":
        _at_save_event(fault["event"], lambda mark=fault["mark"]: _stall(mark))
    elif fault["kind"] == "full":
        _full_after(fault["after"])
    elif fault["kind"] == "kill-step":
        _at_step(fault["step"], _die)
    elif fault["kind"] == "raise":
        _at_step(fault["step"], lambda error=fault["error"]: _raise(error))
    elif fault["kind"] == "stop-step":
        _at_step(fault["step"], lambda: os.kill(os.getpid(), signal.SIGSTOP))
    elif fault["kind"] == "nan":
        layer = fault.get("layer", "")
        _at_step(fault["step"], lambda layer=layer: _poison(layer))
