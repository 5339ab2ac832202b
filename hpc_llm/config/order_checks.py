"""Rules on the order of training: sources, their mixture, packing, sequence lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hpc_llm.config.errors import nearest
from hpc_llm.config.schema import RunConfig


def problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with them that can be seen from the configuration alone."""
    yield from _sources(config)
    yield from _mixture(config)
    yield from _lengths(config)
    data = config.data
    if data.mask_boundaries and data.packing == "best_fit":
        yield (
            "data.mask_boundaries=true: has no effect with data.packing=best_fit, where no target "
            "is in another document; leave it out or use data.packing=concatenated"
        )


def _sources(config: RunConfig) -> Iterator[str]:
    sources = config.data.sources
    for name, source in sources.items():
        if source.max_epochs is not None and not 0 < source.max_epochs < math.inf:
            yield (
                f"data.sources.{name}.max_epochs={source.max_epochs:g}: a number above 0 is "
                "expected, or null"
            )
    weights = {name: source.weight for name, source in sources.items()}
    if sources:
        yield from _weights(weights, "data.sources.{}.weight", "data.sources")


def _mixture(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.mixture and len(data.sources) < 2:
        yield (
            f"data.mixture: has no effect with one source ({data.source_names[0]}); name "
            "several in data.sources"
        )
        return
    for start, weights in data.mixture.items():
        for name in weights:
            if name not in data.sources:
                yield (
                    f"data.mixture.{start}.{name}: no such source; allowed: "
                    f"{nearest(name, data.sources)}"
                )
        yield from _weights(weights, f"data.mixture.{start}.{{}}", f"data.mixture.{start}")


def _weights(weights: Mapping[str, float], key: str, whole: str) -> Iterator[str]:
    wrong = [name for name, weight in weights.items() if not 0 <= weight < math.inf]
    yield from (f"{key.format(name)}={weights[name]:g}: a weight is 0 or more" for name in wrong)
    if not wrong and not any(weights.values()):
        yield f"{whole}: the weights add up to 0; give at least one source a weight above 0"


def _lengths(config: RunConfig) -> Iterator[str]:
    train = config.train
    before = 0
    for text in train.seq_len_warmup:
        length = int(text) if text.isdecimal() else 0
        if not 0 < length < train.seq_len or train.seq_len % length:
            yield (
                (
                    f"train.seq_len_warmup.{text}: a length that divides "
                    f"train.seq_len={train.seq_len} is expected: "
                )
                + ", ".join(map(str, _divisors(train.seq_len)))
            )
        elif length <= before:
            yield f"train.seq_len_warmup.{text}: lengths must grow; it comes after {before}"
        before = length


def _divisors(seq_len: int) -> list[int]:
    """The larger proper divisors of seq_len: those that are useful for a warm-up."""
    return [seq_len // parts for parts in range(64, 1, -1) if seq_len > 0 and seq_len % parts == 0]
