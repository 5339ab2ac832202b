"""DeepSpeed's compiled operators: built once where a compiler is, loaded by every rank.

By itself DeepSpeed compiles at first use, on every rank of a job.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder
from torch.utils import cpp_extension

from hpc_llm.storage import operators
from hpc_llm.storage.locks import locked

_BUILDERS = {
    "fused_adam": "FusedAdamBuilder",
    "fused_lion": "FusedLionBuilder",
    "cpu_adam": "CPUAdamBuilder",
    "cpu_lion": "CPULionBuilder",
}


def architecture(device: str) -> str:
    """What an operator for `device` is compiled for.

    cuda: TORCH_CUDA_ARCH_LIST, else the GPU here; cpu: this CPU.
    """
    if device == "cpu":
        return operators.cpu_architecture()
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or _capability()
    return "sm" + architectures.replace(";", "_").replace(" ", "_")


def _capability() -> str:
    """The architecture of the GPU here, like 9.0."""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def load(name: str, device: str) -> bool:
    """Load operator `name` into DeepSpeed; False if it has not been built."""
    library = operators.library(name, architecture(device))
    if not library.exists() and device == "cuda":
        # It may be built for several architectures, this one among them.
        library = operators.built_for(name, _capability()) or library
    if not library.exists():
        return False
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    OpBuilder._loaded_ops[name] = module
    return True


def build(name: str, device: str) -> Path:
    """Compile operator `name` unless it exists; its library.

    RuntimeError if that cannot be done.
    """
    library = operators.library(name, architecture(device))
    folder = library.parent.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(folder / f"{name}.lock"):
        if not library.exists():
            if shutil.which(os.environ.get("CXX", "c++")) is None:
                raise RuntimeError("no C++ compiler (c++, or what $CXX names) is on PATH")
            os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
            builder = get_accelerator().create_op_builder(_BUILDERS[name])
            if builder is None:
                raise RuntimeError(f"DeepSpeed {deepspeed.__version__} has none for {device}")
            with library_path_quoted():
                builder.load(verbose=False)
    return library


@contextlib.contextmanager
def library_path_quoted() -> Iterator[None]:
    """Inside, torch compiles extensions even if its own libraries' path has a space.

    torch 2.13 quotes the folders of headers and not that of its libraries.
    """
    path = cpp_extension.TORCH_LIB_PATH
    cpp_extension.TORCH_LIB_PATH = shlex.quote(path)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = path
