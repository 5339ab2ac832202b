"""What people see of the runs below a root: `python -m hpc_llm.status`."""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """The verb; its exit status."""
    from hpc_llm.status import __main__

    return __main__.main(argv)
