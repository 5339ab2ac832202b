"""Run directories that nobody trained, with the files that `compare` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpc_llm.config.building import to_dict
from hpc_llm.runs.layout import RunLayout
from tests.configs import make_config

START = 1_700_000_000.0


def make_run(
    path: Path,
    *words: str,
    heldout: float | None = 3.0,
    parameters: int = 1_000_000,
    complete: bool = True,
    losses: list[float] | None = None,
) -> RunLayout:
    """A run of 100 steps on two GPUs that waited a minute and trained for an hour."""
    layout = RunLayout(path)
    layout.make_folders()
    layout.config.write_text(json.dumps(to_dict(make_config("cluster.gpus_per_node=2", *words))))
    plan = {
        "steps": 100,
        "world_size": 2,
        "parameters": parameters,
        "flops_per_token": 6.0 * parameters,
        "tokens": 1e6,
    }
    layout.plan.write_text(json.dumps(plan))
    numbers = losses if losses is not None else [5.0] * 98 + [3.1, 2.9]
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "tokens_per_second": 1000.0, "time": START + 60 + 36 * step}
        for step, loss in enumerate(numbers if complete else numbers[:40], start=1)
    ]
    if heldout is not None:
        rows += [{"step": 50, "heldout_loss": heldout + 1}, {"step": 100, "heldout_loss": heldout}][
            : 1 + complete
        ]
    layout.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(layout, "submit", START, "submitted", job="7")
    write(layout, "supervisor-0001", START + 60, "started", attempt=1, job="7", restarts=0)
    if complete:
        write(layout, "supervisor-0001", START + 3660, "ended", attempt=1, cause="completed")
        write(layout, "supervisor-0001", START + 3660, "completed", attempt=1)
    return layout


def write(layout: RunLayout, writer: str, at: float, event: str, **facts: Any) -> None:
    with (layout.ledger / f"{writer}.jsonl").open("a") as file:
        file.write(json.dumps({"time": at, "event": event, **facts}) + "\n")
