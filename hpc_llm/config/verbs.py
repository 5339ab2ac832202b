"""What all commands share: Hydra's own flags, reporting of mistakes, Ctrl-C, JSON for scripts."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from hpc_llm.config import hints
from hpc_llm.config.errors import InputError, NoRoom
from hpc_llm.config.printable import printable_streams
from hpc_llm.config.words import wants_hydra


def run(
    verb: str,
    command: Callable[[list[str]], int],
    argv: list[str] | None = None,
    hydra: bool = True,
) -> int:
    """Run `command` on the arguments of the command line; its exit status.

    InputError becomes one line per mistake and status 2, NoRoom a line and status 1 (a traceback
    with HPC_LLM_DEBUG=1). With `hydra`, flags such as --cfg and --help are answered by Hydra. What
    is printed, which may be text of others, never steers the terminal.
    """
    argv = sys.argv[1:] if argv is None else argv
    with printable_streams():
        return _run(verb, command, argv, hydra)


def _run(verb: str, command: Callable[[list[str]], int], argv: list[str], hydra: bool) -> int:
    try:
        if hydra and wants_hydra(argv):
            from hpc_llm.config import hydra_help

            hydra_help.answer_as_hydra(argv, hints.command(verb))
            return 0
        return command(argv)
    except InputError as error:
        if os.environ.get("HPC_LLM_DEBUG"):
            raise
        for problem in error.problems:
            print(f"{verb}: {problem}", file=sys.stderr)
        return 2
    except NoRoom as error:
        if os.environ.get("HPC_LLM_DEBUG"):
            raise
        print(f"{verb}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if hints.is_ours(error):
            raise
        print(f"{verb}: {hints.not_installed(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def print_json(value: Any) -> None:
    """`value` for scripts.

    A loss that diverged is null: JSON has no NaN, and jq and browsers refuse it.
    """
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
