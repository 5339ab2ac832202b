"""What plans only estimate and runs have measured, kept below the root for later comparable runs.

One file for each model, machine and way to compute a step. Standard library only: the supervisor
writes it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import statistics
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.experience import Experience, Limit, Speed
from hpc_llm.planning.step_mode import StepMode
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.storage.files import tail, write_json

_OF_TRAIN = ("seq_len", "precision", "loss_chunk")
_OF_CLUSTER = ("gpu", "gpu_memory_gib", "device", "gpus_per_node")
_FEWEST_STEPS = 20  # needed for a speed
_TAIL_BYTES = 100_000  # of metrics.jsonl, a few hundred steps


class Remembered(Experience):
    """Experience of the runs of `root` with this configuration and way to compute a step."""

    def __init__(self, root: RootLayout, config: RunConfig, attention: str, compiled: bool) -> None:
        self._folder = root.experience
        model = config.model
        train = config.train
        cluster = config.cluster
        self._cluster = cluster
        self._alike = [
            {key: value for key, value in asdict(model).items() if key != "name"},
            {key: getattr(train, key) for key in _OF_TRAIN},
            {key: getattr(cluster, key) for key in _OF_CLUSTER},
            *(config.optim.name, config.data.packing, attention, compiled),
        ]

    def limit(self, mode: StepMode) -> Limit | None:
        plain = self._read(self._limit(mode))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return Limit(max(1, int(plain["micro_batch"])), str(plain["run"]))
        return None

    def speed(self, mode: StepMode, micro_batch: int) -> Speed | None:
        plain = self._read(self._speed(mode, micro_batch))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            tokens_per_second = float(plain["tokens_per_second"])
            world_size = int(plain["world_size"])
            if tokens_per_second > 0 and world_size > 0:
                return Speed(tokens_per_second, world_size, str(plain["run"]))
        return None

    def note_limit(self, mode: StepMode, limit: Limit) -> None:
        """A larger micro-batch was too much for a GPU."""
        self._write(self._limit(mode), asdict(limit))

    def note_speed(self, mode: StepMode, micro_batch: int, speed: Speed) -> None:
        """Record a run's speed; the newest counts."""
        self._write(self._speed(mode, micro_batch), asdict(speed))

    def _limit(self, mode: StepMode) -> Path:
        # What ZeRO leaves to a rank depends on the number of nodes too.
        return self._file("micro_batch", self._cluster.nodes, *astuple(mode))

    def _speed(self, mode: StepMode, micro_batch: int) -> Path:
        cluster = self._cluster
        return self._file("speed", cluster.name, cluster.constraint, *astuple(mode), micro_batch)

    def _file(self, kind: str, *conditions: Any) -> Path:
        """The file's name is a hash of everything that its content depends on."""
        text = json.dumps([*self._alike, *conditions], sort_keys=True)
        return self._folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _read(self, path: Path) -> Any:
        try:
            if path.name in _names(path.parent, path.parent.stat().st_mtime_ns):
                return json.loads(path.read_text())
        except (OSError, ValueError):
            pass
        return {}

    def _write(self, path: Path, value: Any) -> None:
        """No effect if the root cannot be written."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            write_json(path, value)


@functools.lru_cache(maxsize=1)
def _names(folder: Path, changed_ns: int) -> frozenset[str]:
    """The files of `folder`, cached: a sweep asks for thousands that do not exist."""
    return frozenset(path.name for path in folder.iterdir())


def steady_tokens_per_second(run: RunLayout, first_step: int) -> float | None:
    """Median over the newest steps after `first_step`; None if there are too few."""
    try:
        lines = tail(run.metrics, _TAIL_BYTES).splitlines()
    except OSError:
        return None
    speeds = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a truncated line
            row = json.loads(line)
            if row["step"] > first_step and "tokens_per_second" in row:
                speeds.append(float(row["tokens_per_second"]))
    if len(speeds) < _FEWEST_STEPS:
        return None
    return statistics.median(speeds)
