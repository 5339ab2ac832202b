"""Every optimizer that a run can name, one row each; an unknown name is an InputError.

The schema, the rules, the plan, `build` and the engine read this table. A new optimizer is a row
here, a preset in conf/optim and a constructor in `zero.optimizers.CONSTRUCTORS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpc_llm.config.errors import InputError, nearest

ZERO_STAGES = (0, 1, 2, 3)
ADAM_KEYS = frozenset({"betas", "eps", "grad_clip"})
LION_KEYS = frozenset({"betas", "grad_clip"})  # it divides by nothing, so it has no eps


@dataclass(frozen=True)
class Optimizer:
    """What the rest of the package needs to know about an optimizer."""

    name: str  # optim.name, and the preset in conf/optim
    moments: int  # fp32 numbers of state per parameter
    keys: frozenset[str]  # keys of OptimConfig with an effect, of those that not all optimizers use
    gpu_kernel: str | None = None  # DeepSpeed's compiled operator; None: torch's own code
    cpu_kernel: str | None = None
    fallback: str | None = None  # what computes the same where the kernel is not built
    zero_stages: tuple[int, ...] = ZERO_STAGES
    offloaded: bool = False  # states and update are in host memory, and so is the kernel
    offloaded_twin: str | None = None  # what computes the same with states in host memory
    kernel_limit: int | None = None  # a tensor must have fewer elements; None: no limit

    def kernel(self, device: str) -> str | None:
        """The compiled operator that it runs on `device` (cuda, cpu); None if it is torch's own."""
        return self.cpu_kernel if device == "cpu" else self.gpu_kernel

    def constructor(self, device: str) -> str:
        """Which of `zero.optimizers.CONSTRUCTORS` makes it for `device`."""
        return self.kernel(device) or self.name


_ROWS = (
    Optimizer(
        "fused_adam",
        moments=2,
        keys=ADAM_KEYS,
        gpu_kernel="fused_adam",
        cpu_kernel="fused_adam",
        fallback="torch_adam",
        offloaded_twin="cpu_adam",
    ),
    Optimizer(
        "fused_lion",
        moments=1,  # arXiv 2302.06675
        keys=LION_KEYS,
        gpu_kernel="fused_lion",
        cpu_kernel="cpu_lion",  # DeepSpeed has no fused_lion kernel for CPUs
        offloaded_twin="cpu_lion",
        # DeepSpeed 0.19.8 counts elements in 32 bits in csrc/lion/multi_tensor_lion.cu: of a longer
        # tensor it would skip most.
        kernel_limit=2**31,
    ),
    Optimizer(
        "cpu_adam",
        moments=2,
        keys=ADAM_KEYS,
        gpu_kernel="cpu_adam",
        cpu_kernel="cpu_adam",
        fallback="torch_adam",
        zero_stages=(1, 2, 3),
        offloaded=True,
    ),
    Optimizer(
        "cpu_lion",
        moments=2,  # DeepSpeed 0.19.8, ops/lion/cpu_lion.py: the second is never used
        keys=LION_KEYS,
        gpu_kernel="cpu_lion",
        cpu_kernel="cpu_lion",
        zero_stages=(1, 2, 3),
        offloaded=True,
    ),
    Optimizer("torch_adam", moments=2, keys=ADAM_KEYS, offloaded_twin="cpu_adam"),
    Optimizer(
        "muon",
        moments=2,  # one of hidden matrices, two of the rest
        # At ZeRO 2, and in fp32, DeepSpeed would clip Muon's updates instead of gradients.
        keys=frozenset({"betas", "eps", "muon_lr", "muon_momentum"}),
        zero_stages=(1, 2),  # at stage 3 the matrices would have to be gathered
    ),
)
OPTIMIZERS = {row.name: row for row in _ROWS}
# Keys that not all optimizers use; what grad_clip does without one of them is a rule of its own.
OPTIONAL_KEYS = sorted(set().union(*(row.keys for row in _ROWS)) - {"grad_clip"})

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]  # type of optim.name in the schema


def optimizer(name: str) -> Optimizer:
    """The row of `name`; InputError with the allowed names if there is none."""
    try:
        return OPTIMIZERS[name]
    except KeyError:
        raise InputError(
            f"optim.name={name}: no such optimizer; allowed: {nearest(name, OPTIMIZERS)}"
        ) from None


def using(key: str) -> list[str]:
    """Names of the optimizers on which `key` of OptimConfig has an effect."""
    return [row.name for row in _ROWS if key in row.keys]
