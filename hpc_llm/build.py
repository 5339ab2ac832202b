"""`python -m hpc_llm.build [optim=NAME] [+cluster=NAME]`: compile DeepSpeed's operator once.

All ranks use it. Run this where the compiler is (a login node); for GPUs that this machine lacks,
name their architecture in TORCH_CUDA_ARCH_LIST.
"""

from __future__ import annotations

import os
import sys

from hpc_llm.config import optimizers, verbs


def main(argv: list[str] | None = None) -> int:
    """0 when the operator is there, 1 where it could not be compiled."""
    if argv is None:
        argv = sys.argv[1:]
    if argv[:1] == ["--quiet"]:  # submit's own call: the names are checked already
        return _build(argv[1], argv[2], quiet=True)
    return verbs.run("build", _from_config, argv)


def _from_config(argv: list[str]) -> int:
    from hpc_llm.config.compose import compose

    config = compose(argv)
    return _build(config.optim.name, config.cluster.device, quiet=False)


def _build(optimizer: str, wanted: str, quiet: bool) -> int:
    if os.environ.get("TORCH_CUDA_ARCH_LIST") and wanted != "cpu":
        kind = os.environ["DS_ACCELERATOR"] = "cuda"
    else:
        from hpc_llm.training.device import choose_device

        kind = choose_device(wanted, local_rank=0).type
    from hpc_llm.storage import operators
    from hpc_llm.zero import kernels

    row = optimizers.optimizer(optimizer)
    if row.offloaded:
        kind = "cpu"
    operator = row.kernel(kind)
    if operator is None:
        if not quiet:
            print(f"optim={optimizer} is torch's own: nothing to compile")
        return 0
    library = operators.library(operator, kernels.architecture(kind))
    if library.exists() and quiet:
        return 0
    if not library.exists():
        print(f"compiling DeepSpeed's {operator} (once, about a minute)", flush=True)
    try:
        kernels.build(operator, kind)
    except (RuntimeError, OSError) as error:
        why = str(error).splitlines()[0]
        print(f"build: {operator} could not be compiled: {why}", file=sys.stderr)
        return 1
    print(f"{operator} is ready: {library}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
