"""A checkpoint for another number of ranks: from shards of one world size and ZeRO stage to a tensor per parameter.

Uses DeepSpeed's universal checkpoints (arXiv 2406.18820); its converter is a script, called here as a function.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from hpc_llm.checkpoint.choose import Gather

_SUFFIX = ".reshaped"


@contextlib.contextmanager
def universal(folder: Path, rank: int, gather: Gather) -> Iterator[Path]:
    """The verified checkpoint in `folder` as a universal one, in a folder that exists only inside the `with` block.

    Made by rank 0 while all others wait; OSError or ValueError, the same on every rank, if it cannot be made.
    """
    target = folder.with_name(folder.name + _SUFFIX)
    error = gather(_convert(folder, target) if rank == 0 else None)[0]
    if error is not None:
        raise error
    try:
        yield target
    finally:
        gather(None)  # no rank reads it any more
        if rank == 0:
            shutil.rmtree(target, ignore_errors=True)


def _convert(folder: Path, target: Path) -> Exception | None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target, ignore_errors=True)
    words = Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ds_to_universal.main(words)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        return error if isinstance(error, OSError) else ValueError(f"{folder.name} cannot be reshaped: {error}")
    return None
