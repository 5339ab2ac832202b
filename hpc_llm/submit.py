"""`python -m hpc_llm.submit [+cluster=NAME] [key=value…] [-m]`: the main job, here or on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from hpc_llm.config import verbs
from hpc_llm.config.compose import compose_all
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.launch.submission import examine
from hpc_llm.planning.render import render


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 done (or submitted), 1 the run failed, 2 the input is wrong, 130 stopped by Ctrl-C."""
    return verbs.run("submit", _submit, words)


def _submit(words: list[str]) -> int:
    configs = compose_all(words)
    problems: list[str] = []
    for config in configs:
        try:
            plan = examine(config)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        if config.dry_run and not problems:
            print(render(config, plan))
            if config.cluster.launcher == "slurm":
                print("\n" + _script(config))
    if problems:
        raise InputError(problems)
    if configs[0].dry_run:
        return 0
    if configs[0].cluster.launcher == "slurm":
        raise InputError(
            f"cluster={configs[0].cluster.name}: submission to Slurm is not part of this version; use dry_run=true"
        )
    from hpc_llm.launch import local  # rich takes 0.1 s to import, and a dry run needs none of it

    for config in configs:
        if status := local.run(config, words):
            return status
    return 0


def _script(config: RunConfig) -> str:
    from hpc_llm.launch.sbatch import render_script
    from hpc_llm.runs.freeze import layout_for

    layout = layout_for(config)
    python = config.cluster.python or sys.executable
    return render_script(config, run_dir=str(layout.path), python=str(Path(python)), name=layout.name)


if __name__ == "__main__":
    sys.exit(main())
