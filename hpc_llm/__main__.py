"""`hpc-llm VERB …` and `python -m hpc_llm VERB …`."""

from __future__ import annotations

import importlib
import sys

from hpc_llm.config.errors import nearest

VERBS = {
    "submit": "run the main job: here, or on a cluster with +cluster=NAME",
    "plan": "print what a run will need",
    "freeze": "make a run directory for a batch script written by hand",
    "prepare": "train a tokenizer and tokenise a corpus into shards",
    "build": "compile DeepSpeed's operators once, for all ranks",
    "status": "show the state of the runs below a root",
    "compare": "what a sweep found: a table, the winner, the scaling fit",
    "watchdog": "look after every run below a root: requeued, preempted, lost",
    "train": "one run's ranks; what srun and torchrun start",
}


def main() -> int:
    """Run the verb that the first word names."""
    argv = sys.argv[1:]
    if not argv:
        _print_usage()
        return 2
    verb = argv[0]
    if verb in ("-h", "--help"):
        _print_usage()
        return 0
    if verb not in VERBS:
        print(f"hpc-llm: {verb}: no such verb; allowed: {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"hpc_llm.{verb}").main(argv[1:])
    return status


def _print_usage() -> None:
    print("usage: hpc-llm VERB [key=value…]\n")
    for verb, what in VERBS.items():
        print(f"  {verb:<9} {what}")


if __name__ == "__main__":
    sys.exit(main())
