"""What DeepSpeed and torch are made to do otherwise: one list, with reasons.

Nothing is changed by an import. `apply_to_process` changes the libraries before a model is made;
`apply_to_engine` changes one engine of DeepSpeed's after it is made. What holds only within a
`with` block (WHERE_NEEDED), and what is only read or called although it is private (READ), is
listed here and done in the file that is named. The releases for which all this is known stand in
known_versions.py.

A name is `module:object.attribute`; where the object is a class, its instances are changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepspeed

from hpc_llm.zero import clipping, gradient_sums, kernels, start_up
from hpc_llm.zero.known_versions import refuse_unknown_versions

_ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
_BF16 = "deepspeed.runtime.bf16_optimizer:BF16_Optimizer"
_STAGE_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"


@dataclass(frozen=True)
class Patch:
    """One change: the names that it replaces, why, and the call that applies it."""

    replaces: tuple[str, ...]
    reason: str
    apply: Callable[..., Any]


def apply_to_process() -> None:
    """Apply PROCESS, once for a process; InputError if a library is of an unknown release."""
    refuse_unknown_versions()
    _apply_once()


@functools.cache
def _apply_once() -> None:
    for patch in PROCESS:
        patch.apply()


def apply_to_engine(engine: Any) -> None:
    """Apply ENGINE to a DeepSpeedEngine that has just been made."""
    for patch in ENGINE:
        patch.apply(engine)


def _without_shared_memory() -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _without_recovery_script(engine: Any) -> None:
    engine._copy_recovery_script = lambda *_: None


def _with_own_gradient_sums(engine: Any) -> None:
    gradient_sums.install(engine.optimizer, engine.is_gradient_accumulation_boundary)


PROCESS = (
    Patch(
        ("deepspeed.ops:__compatible_ops__",),
        "DeepSpeed's shared-memory all-reduce for CPUs is compiled on every rank, and its ranks "
        "spin for ever on the flags of a rank that died. Gloo reports a lost peer.",
        _without_shared_memory,
    ),
    Patch(
        ("torch.optim:Optimizer", "torch.optim:Adam.step"),
        "An optimizer's first call imports torch's compiler to hide from it: half of a rank's "
        "start-up.",
        start_up.leave_optimizers_uncompiled,
    ),
    Patch(
        (
            "deepspeed.runtime.utils:is_invalid_grad_norm",
            "deepspeed.runtime.utils:mask_nan_or_inf_with_val_inplace",
            "deepspeed.runtime.bf16_optimizer:is_invalid_grad_norm",
            "deepspeed.runtime.zero.stage_1_and_2:is_invalid_grad_norm",
            "deepspeed.runtime.zero.stage_1_and_2:mask_nan_or_inf_with_val_inplace",
            "deepspeed.runtime.zero.stage3:is_invalid_grad_norm",
            "deepspeed.runtime.zero.stage3:mask_nan_or_inf_with_val_inplace",
        ),
        "They make the host wait for the device before every step; within clipping.unchecked they "
        "do not, since torch's fused AdamW clips and skips by itself.",
        clipping.make_norms_skippable,
    ),
)

ENGINE = (
    Patch(
        (f"{_ENGINE}._copy_recovery_script",),
        "DeepSpeed puts a helper script beside every checkpoint, past its own checkpoint engine: "
        "no manifest would list it.",
        _without_recovery_script,
    ),
    Patch(
        (
            f"{_BF16}.get_grads_for_norm",
            f"{_BF16}._update_hp_grad",
            f"{_BF16}.clear_hp_grads",
        ),
        "DeepSpeed rounds the fp32 sums of ZeRO 1 to bf16 before it reduces them, and moves "
        "several times the bytes; the optimizer gets a `reduce_gradients`, too.",
        _with_own_gradient_sums,
    ),
)

WHERE_NEEDED = (
    Patch(
        ("torch.utils.cpp_extension:TORCH_LIB_PATH",),
        "torch quotes the folders of headers, and not that of its libraries: it may have a space.",
        kernels.library_path_quoted,
    ),
    Patch(
        ("torch:compile",),
        "DeepSpeed's Muon is decorated with it, which imports torch's compiler in every run.",
        start_up.compiling_later,
    ),
    Patch(
        ("torch:compile",),
        "On a CPU compiling Muon takes longer than it saves.",
        start_up.compiling_never,
    ),
    Patch(
        ("torch.optim:Optimizer.step",),
        "At ZeRO 0 DeepSpeed does not skip a step whose gradient is not finite.",
        clipping.left_out,
    ),
    Patch(
        ("torch.optim.adam:Adam.grad_scale", "torch.optim.adam:Adam.found_inf"),
        "torch's fused AdamW divides by the one and skips a step by the other, on the device.",
        clipping.install,
    ),
)

# What is private and is only read, called or set to the library's own kind of value: name → why.
READ = {
    f"{_ENGINE}.checkpoint_engine": "engine.py: files are hashed, and published by a manifest",
    f"{_ENGINE}.optimizer": "engine.py: learning rate, norm and clipping of the wrapped optimizer",
    "deepspeed.runtime.config:DeepSpeedConfig.load_universal_checkpoint": (
        "engine.py: one engine loads checkpoints of either kind"
    ),
    f"{_BF16}._global_grad_norm": "engine.py: the norm of a step",
    f"{_BF16}.clip_grad": "engine.py: loading overwrites it with that of the attempt that saved",
    f"{_BF16}.fp32_groups_gradients": "gradient_sums.py: the sums",
    f"{_BF16}.fp32_groups_has_gradients": "gradient_sums.py: which sums have begun",
    f"{_BF16}.fp32_groups_gradients_flat": "gradient_sums.py: the buffer of the sums",
    f"{_BF16}.fp32_groups_gradient_flat_partition": "gradient_sums.py: this rank's part of it",
    f"{_BF16}.bf16_groups": "gradient_sums.py: the parameters of each group",
    f"{_BF16}._hp_grad": "gradient_sums.py: where a parameter's sum is found",
    f"{_STAGE_3}._leaf_module_hooks": "engine.py: taken off to look for what is not finite",
    f"{_STAGE_3}.use_muon": "optimizers.py: marks Muon's parameters and groups",
    "deepspeed.ops.adam:FusedAdam.multi_tensor_adam": "optimizers.py: exact powers of beta",
    "deepspeed.ops.adam:DeepSpeedCPUAdam.ds_opt_adam": "optimizers.py: exact powers of beta",
    "deepspeed.ops.op_builder.builder:OpBuilder._loaded_ops": "kernels.py: loads built operators",
    "deepspeed.checkpoint.ds_to_universal:main": "reshape.py: the converter, called as a function",
    "torch._compile:_disable_dynamo": "start_up.py: its mark `__dynamo_disable`",
    "torch._inductor.cpp_builder:CppBuilder.__init__": "model/compiler.py: quotes paths",
}
