"""What to say when a run does not fit: the shortfall, and the nearest settings that do fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hpc_llm.config import computing
from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import rows_per_rank
from hpc_llm.planning.choice import Choice, choose, smallest
from hpc_llm.planning.hardware import GIB

# Keys of train, the least intrusive first.
KNOBS = ("activation_checkpointing", "micro_batch", "zero_stage")
MOST_OTHER_KNOBS = 2
LOSS_CHUNK = 4096  # tokens; half a GB of logits for every 10,000 pieces of a vocabulary
NOTHING_FITS = (
    "neither ZeRO-3, offloading nor a rank per sequence fits: shorten train.seq_len or "
    "choose a smaller model"
)


@dataclass(frozen=True)
class Suggestion:
    """Overrides that make a run fit, each verified by choosing again."""

    overrides: str  # as typed, words separated by spaces
    note: str = ""

    def __str__(self) -> str:
        return f"`{self.overrides}`{self.note}"


def refusal(config: RunConfig, usable: int) -> str | None:
    """Why `config` does not fit into `usable` bytes per rank; None if no setting is allowed."""
    best = smallest(config)
    if best is None:
        return None
    settings = " ".join(map(best.override, best.settings))
    remedy = NOTHING_FITS
    if fitting := suggestions(config, usable):
        remedy = "these fit: " + " or ".join(map(str, fitting))
    return (
        f"model={config.model.name}: {best.memory.total / GIB:.1f} GiB per GPU are needed even "
        f"with {settings}, {(best.memory.total - usable) / GIB:.1f} GiB more than the "
        f"{usable / GIB:.1f} GiB usable; {remedy}"
    )


def suggestions(config: RunConfig, usable: int) -> list[Suggestion]:
    """Ways to make `config` fit, nearest first.

    Settings, logits in chunks, the optimizer in host memory, more nodes.
    """
    return [
        *_other_knobs(config, usable),
        *_chunked_loss(config, usable),
        *_offloaded(config, usable),
        *_more_nodes(config, usable),
    ]


def _other_knobs(config: RunConfig, usable: int) -> list[Suggestion]:
    """Changes of as few of the user's fixed settings as possible, on the same machine."""
    fixed = _fixed(config)
    for count in range(1, len(fixed) + 1):
        fitting = []
        for knobs in itertools.combinations(fixed, count):
            if choice := choose(_released(config, knobs), usable):
                fitting.append(Suggestion(_changed(config, choice, knobs)))
        if fitting:
            return fitting[:MOST_OTHER_KNOBS]
    return []


def _chunked_loss(config: RunConfig, usable: int) -> Iterator[Suggestion]:
    train = config.train
    if computing.loss_chunk(config) is not None or train.seq_len * train.global_batch <= LOSS_CHUNK:
        return
    chunked = replace(config, train=replace(train, loss_chunk=LOSS_CHUNK))
    for knobs in ((), _fixed(config)):
        choice = choose(_released(chunked, knobs), usable)
        # Where a pass is no longer than a chunk, smaller passes help, not chunks.
        if choice and choice.micro_batch * train.seq_len > LOSS_CHUNK:
            yield Suggestion(_changed(config, choice, knobs, f"train.loss_chunk={LOSS_CHUNK}"))
            return


def _offloaded(config: RunConfig, usable: int) -> Iterator[Suggestion]:
    twin = optimizer(config.optim.name).offloaded_twin
    if twin is None:
        return
    moved = replace(config, optim=replace(config.optim, name=twin))
    for knobs in ((), _fixed(config)):
        if choice := choose(_released(moved, knobs), usable):
            host = choice.memory.host * config.cluster.gpus_per_node / GIB
            yield Suggestion(
                _changed(config, choice, knobs, f"optim={twin}"),
                f" ({host:,.0f} GiB of host memory per node)",
            )
            return


def _more_nodes(config: RunConfig, usable: int) -> Iterator[Suggestion]:
    """The smallest number of nodes of the same kind; at most one rank per sequence."""
    cluster = config.cluster
    if cluster.launcher == "local":
        return
    most = config.train.global_batch // cluster.gpus_per_node
    for knobs in ((), _fixed(config)):
        for nodes in range(cluster.nodes + 1, most + 1):
            larger = _released(replace(config, cluster=replace(cluster, nodes=nodes)), knobs)
            if _has_rows(larger) and (choice := choose(larger, usable)):
                yield Suggestion(_changed(config, choice, knobs, f"cluster.nodes={nodes}"))
                return


def _has_rows(config: RunConfig) -> bool:
    size = config.train.micro_batch
    if size == "auto":
        return True
    return size <= rows_per_rank(config.train.global_batch, config.cluster.world_size)


def _fixed(config: RunConfig) -> tuple[str, ...]:
    return tuple(knob for knob in KNOBS if getattr(config.train, knob) != "auto")


def _released(config: RunConfig, knobs: tuple[str, ...]) -> RunConfig:
    changes: dict[str, object] = dict.fromkeys(knobs, "auto")
    return replace(config, train=replace(config.train, **changes))  # type: ignore[arg-type]


def _changed(config: RunConfig, choice: Choice, knobs: tuple[str, ...], *first: str) -> str:
    """Overrides for those of `knobs` whose chosen value differs from the user's."""
    overrides = [*first]
    for knob in knobs:
        if getattr(config.train, knob) != choice.settings[knob]:
            overrides.append(choice.override(knob))
    return " ".join(overrides)
