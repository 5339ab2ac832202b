"""A checkpoint for another number of ranks: from shards to a tensor per parameter.

Uses DeepSpeed's universal checkpoints (arXiv 2406.18820); its converter is a script, called here as
a function.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc_llm.checkpoint import manifest
from hpc_llm.checkpoint.choose import Gather


@contextlib.contextmanager
def universal(folder: Path, rank: int, gather: Gather, beat: Callable[[], None]) -> Iterator[Path]:
    """The verified checkpoint in `folder` as a universal one, inside the `with` block.

    Made by rank 0 while all others wait, with a `beat` for every word that the converter says: it
    may take longer than recovery.start_timeout_s. OSError or ValueError, the same on every rank, if
    it cannot be made.
    """
    target = manifest.reshaped_of(folder)
    error = gather(_convert(folder, target, beat) if rank == 0 else None)[0]
    if error is not None:
        if rank == 0:
            shutil.rmtree(target, ignore_errors=True)  # half of it would keep a full disk full
        raise error
    try:
        yield target
    finally:
        gather(None)  # no rank reads it any more
        if rank == 0:
            shutil.rmtree(target, ignore_errors=True)


class _Output(io.StringIO):
    """The converter's output, progress bars included: each write is a sign of life."""

    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__()
        self._beat = beat

    def write(self, text: str) -> int:
        self._beat()
        return super().write(text)


def _convert(folder: Path, target: Path, beat: Callable[[], None]) -> Exception | None:
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target, ignore_errors=True)
    arguments = Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    output = _Output(beat)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            ds_to_universal.main(arguments)
    except OSError as error:
        return error
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        return ValueError(f"{folder.name} cannot be reshaped: {error}")
    return None
