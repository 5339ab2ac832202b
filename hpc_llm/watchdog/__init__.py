"""Looks after all runs below a root, from outside their jobs: `python -m hpc_llm.watchdog`."""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """The verb; its exit status."""
    from hpc_llm.watchdog import __main__

    return __main__.main(argv)
