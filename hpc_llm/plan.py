"""`python -m hpc_llm.plan [+cluster=NAME] [key=value…]`: what a run will need; nothing is written."""

from __future__ import annotations

import dataclasses
import json
import sys

from hpc_llm.config import verbs
from hpc_llm.config.compose import compose_all
from hpc_llm.launch.submission import examine
from hpc_llm.planning.render import render


def main(words: list[str] | None = None) -> int:
    """Print the plan of every run that `words` describe."""
    return verbs.run("plan", _plan, words)


def _plan(words: list[str]) -> int:
    plans = [(config, examine(config)) for config in compose_all([*words, "dry_run=true"])]
    if plans[0][0].json:
        documents = [dataclasses.asdict(plan) for _, plan in plans]
        print(json.dumps(documents if len(documents) > 1 else documents[0], indent=2))
    else:
        print("\n\n".join(render(config, plan) for config, plan in plans))
    return 0


if __name__ == "__main__":
    sys.exit(main())
