"""Additions to torch's compiler that the model needs."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_SHAPES = 64  # lengths of sequences (train.seq_len_warmup), each in training and in evaluation


def compile_forward(module: nn.Module) -> None:
    """Compile a module's computation without its hooks.

    Those of ZeRO 3, which gather weights, would break graphs.
    """
    module.forward = torch.compile(module.forward, **for_each_shape())


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, modules are as before `compile_forward`: the hooks of their parts are called."""
    compiled: dict[nn.Module, Any] = {}
    for module in model.modules():
        forward = vars(module).get("forward")
        if hasattr(forward, "_torchdynamo_orig_callable"):
            compiled[module] = forward
    for module in compiled:
        del module.forward
    try:
        yield
    finally:
        for module, forward in compiled.items():
            module.forward = forward


def for_each_shape() -> dict[str, Any]:
    """Options of torch.compile for a separate kernel for each shape, of which there may be many.

    After 8 shapes torch would continue uncompiled, and say so only in a log.
    """
    quote_paths()
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # torch 2.13, where the setting is a thread's.
        return {"dynamic": False, "recompile_limit": _SHAPES}
    import torch._dynamo.config as limits  # takes seconds, so only if something is compiled

    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    return {"dynamic": False}


def quote_paths() -> None:
    """Have torch's compiler quote all paths in the commands that compile kernels for CPUs.

    torch 2.13 quotes the folders of headers and nothing else, so that where torch itself or its
    cache, which is below run.root, lies in a folder with a space, g++ was given halves of paths.
    """
    from torch._inductor.cpp_builder import (
        CppBuilder,  # takes seconds, so only if something is compiled
    )

    build = CppBuilder.__init__
    if hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def build_quoted(self: Any, *values: Any, **named: Any) -> None:
        build(self, *values, **named)
        given = inspect.signature(build).bind(self, *values, **named).arguments
        sources = given["sources"]
        options = given["BuildOption"]
        paths = [sources] if isinstance(sources, str) else [*sources]
        paths += [
            *options.get_libraries_dirs(),
            getattr(options, "precompiled_header", None),
            self._target_file,
        ]
        for name in ("_sources_args", "_output", "_include_dirs_args", "_libraries_dirs_args"):
            if hasattr(self, name):
                setattr(self, name, _quoted(getattr(self, name), paths))

    CppBuilder.__init__ = build_quoted  # type: ignore[method-assign]


def _quoted(command: str, paths: list[str | None]) -> str:
    """A shell command with `paths` quoted, unless they are already."""
    for path in paths:
        if path and (quoted := shlex.quote(path)) != path and quoted not in command:
            command = command.replace(path, quoted)
    return command
