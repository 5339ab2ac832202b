"""Starts engine_worker.py once per rank."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("engine_worker.py")
Case = tuple[Any, ...]  # precision, ZeRO stage, micro-batch, further words


def trained(world_size: int, cases: Sequence[Case]) -> dict[Case, list[list[float]]]:
    """Case → [loss, gradient norm] per step, all in one set of processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(port), json.dumps(cases)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(world_size)
    ]
    output = [process.communicate(timeout=300)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks), output
    found = json.loads(output[0].split("RESULT ")[1].splitlines()[0])
    return dict(zip(cases, found, strict=True))
