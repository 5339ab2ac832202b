"""`python -m hpc_llm.prepare data=… [key=value…]`: train a tokenizer and tokenise a corpus into shards.

`python -m hpc_llm.prepare inspect=DIR [step=K rows=N]`: what step K of a run, or of prepared data, trains on.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

from hpc_llm.config import verbs
from hpc_llm.config.errors import InputError


def main(words: list[str] | None = None) -> int:
    """Prepare what `words` say; 0 when the data is there, 2 with a line per mistake where the input is wrong."""
    return verbs.run("prepare", _prepare, words)


def _prepare(words: list[str]) -> int:
    if any(word.startswith("inspect=") for word in words):
        return _inspect(words)
    from hpc_llm.config import checks
    from hpc_llm.config.compose import compose
    from hpc_llm.data.manifest import MANIFEST, directory_for
    from hpc_llm.launch.show_preparation import prepare_shown
    from hpc_llm.runs import preflight
    from hpc_llm.storage.files import restrict_access

    config = compose(words)
    if problems := [*checks.problems(config), *preflight.unknown_homes(config)]:
        raise InputError(problems)
    directory = directory_for(config)
    known = (directory / MANIFEST).exists()
    restrict_access(config.run.group)
    started = time.monotonic()
    prepare_shown(config, directory)
    seconds = time.monotonic() - started
    print(f"already prepared: {directory}" if known else f"prepared in {seconds:.1f} s: {directory}")
    _end(directory, words)
    return 0


def _inspect(words: list[str]) -> int:
    from hpc_llm.data import inspect
    from hpc_llm.launch import inspected

    asked = inspected.ask(words)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in inspect.lines(asked.config, asked.plan, asked.directory, asked.step, asked.rows, width):
        print(line)
    return 0


def _end(directory: Path, words: list[str]) -> None:
    from hpc_llm.data.manifest import read_manifest
    from hpc_llm.launch.show_preparation import summary

    print(summary(read_manifest(directory)))
    print(f"next: {shlex.join(['python', '-m', 'hpc_llm.submit', *words])}")


if __name__ == "__main__":
    sys.exit(main())
