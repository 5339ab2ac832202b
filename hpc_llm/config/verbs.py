"""What every command has in common: Hydra's own flags, a user's mistakes, Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hpc_llm.config.errors import InputError
from hpc_llm.config.words import wants_hydra


def run(verb: str, story: Callable[[list[str]], int], words: list[str] | None = None, hydra: bool = True) -> int:
    """Run `story` on the words of the command line; its exit status.

    InputError becomes one line per mistake and status 2 (a traceback with HPC_LLM_DEBUG=1). With
    `hydra`, flags such as --cfg and --help are answered by Hydra.
    """
    words = sys.argv[1:] if words is None else words
    try:
        if hydra:
            from hpc_llm.config import compose

            if wants_hydra(words):
                compose.answer_as_hydra(words, f"python -m hpc_llm.{verb}")
                return 0
        return story(words)
    except InputError as error:
        if os.environ.get("HPC_LLM_DEBUG"):
            raise
        for problem in error.problems:
            print(f"{verb}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
