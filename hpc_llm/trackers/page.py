"""TensorBoard for one user: on this machine's loopback address, reached through ssh."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

_HOST = "127.0.0.1"  # on a shared login node any other address would show the runs to everybody


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def command(root: Path, port: int) -> list[str]:
    """The command that serves all runs below `root`."""
    return [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={root}",
        f"--host={_HOST}",
        f"--port={port}",
    ]


def tunnel(port: int, user: str, machine: str) -> str:
    """The command to run at home."""
    return f"ssh -N -L {port}:{_HOST}:{port} {user}@{machine}    # then http://{_HOST}:{port}"
