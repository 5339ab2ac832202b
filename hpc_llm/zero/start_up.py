"""Start without torch's compiler, which took half of a rank's start-up although nothing used it.

From `python` to the end of a run of four steps, one rank took 4.7 s of CPU time and now takes 2.5 s
(torch 2.13, DeepSpeed 0.19.8): the cost of a restarted rank before it trains. Code that compiles
something imports the compiler then.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def compiling_later() -> Iterator[None]:
    """Inside, `@torch.compile` compiles at the first call.

    DeepSpeed decorates the functions of its Muon, whether Muon is used or not.
    """
    compile_now = torch.compile

    def later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(later, **options)

        @functools.cache
        def compiled() -> Callable[..., Any]:
            return compile_now(function, **options)

        return functools.wraps(function)(lambda *values, **named: compiled()(*values, **named))

    with _compile_replaced_by(later):
        yield


@contextlib.contextmanager
def compiling_never() -> Iterator[None]:
    """Inside, `@torch.compile` leaves a function as it is."""

    def never(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda decorated: decorated
        return function

    with _compile_replaced_by(never):
        yield


@contextlib.contextmanager
def _compile_replaced_by(instead: Callable[..., Any]) -> Iterator[None]:
    compile_now = torch.compile
    torch.compile = instead
    try:
        yield
    finally:
        torch.compile = compile_now


def leave_optimizers_uncompiled() -> None:
    """Mark torch's optimizers as already hidden from its compiler.

    torch hides an optimizer from its compiler at the first call, and imports the compiler for that.
    torch/_compile.py looks for exactly this attribute; Adam's step, wrapped to break a graph that
    is never made, runs without gradients, as there. If a release names these differently, start-up
    is as slow as before.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain
    step = torch.optim.Adam.step  # AdamW's too
    if step.__name__ == "step" and step.__code__.co_name == "_use_grad":
        torch.optim.Adam.step = torch.no_grad()(step.__wrapped__)  # type: ignore[attr-defined, method-assign]
