"""Bash completion: Hydra's answers, through a shell function that knows how our commands are typed.

Hydra takes the first word of a line for the program; ours are `hpc-llm VERB` and `python -m hpc_llm.VERB`.
"""

from __future__ import annotations

import re
import shlex
import sys

_PROGRAM = re.compile(r"\s*(?:\S*hpc-llm\s+\w+(?=\s|$)|\S*python[\d.]*\s+-m\s+hpc_llm(?:\.\w+|\s+\w+(?=\s|$)))")


def script() -> str:
    """What `eval "$(python -m hpc_llm.submit -sc install=bash)"` runs."""
    return f"""\
_hpc_llm() {{
    [[ $COMP_LINE == *hpc?llm* ]] || return
    local choices; choices=$(COMP_LINE="$COMP_LINE" {shlex.quote(sys.executable)} -m hpc_llm.submit -sc query=bash)
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _hpc_llm hpc-llm python python3
"""


def as_one_program(line: str) -> str:
    """The command line with a single word for our program, which has two or three."""
    return _PROGRAM.sub("hpc-llm", line, count=1)
