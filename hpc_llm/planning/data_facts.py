"""What is known of prepared data, and what a run makes of it: epochs, and text held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.lengths import Lengths
from hpc_llm.planning.mixture import Source, evaluated, stages


@dataclass(frozen=True)
class DataFacts:
    """What is known of prepared data: its manifest, and how many samples a run makes of it."""

    directory: str
    tokens: int  # training tokens
    heldout_tokens: int
    vocab_size: int  # pieces of the tokenizer, unpadded
    # Nats per token: held-out text under the training text's unigram distribution.
    unigram_entropy: float
    source_tokens: dict[str, int] = field(default_factory=dict)  # training tokens of each source
    # Of training text by source; empty: not known (not packed).
    samples: dict[str, int] = field(default_factory=dict)
    heldout_samples: dict[str, int] = field(default_factory=dict)  # the same of held-out text
    # Fraction of the positions of packed rows; None where nothing is packed.
    padding: float | None = None
    # Of each source's tokens, and what they mean.
    digests: dict[str, str] = field(default_factory=dict)


def epoch_tokens(config: RunConfig, data: DataFacts) -> int:
    """Positions of all samples; the tokens where samples are not counted yet, or there is none."""
    return sum(data.samples.values()) * config.train.seq_len or data.tokens


def source_epochs(config: RunConfig, data: DataFacts, length: Lengths) -> dict[str, float]:
    """How often the run reads each source over all phases; InputError if no mixture can be had.

    From the number of tokens where samples are not counted yet: rows leave some positions empty, so
    the run itself may end up a bit above.
    """
    if not data.source_tokens or length.steps == 0:
        return {}
    sources = sources_of(config, data.samples or _samples_at_most(config, data))
    last = stages(length.phases, sources, config.train.global_batch, length.steps)[-1]
    epochs = {}
    for source, count in zip(sources, last.before(length.steps), strict=True):
        if source.num_samples:
            epochs[source.name] = count / source.num_samples
    return epochs


def _samples_at_most(config: RunConfig, data: DataFacts) -> dict[str, int]:
    seq_len = config.train.seq_len
    return {name: tokens // seq_len for name, tokens in data.source_tokens.items()}


def sources_of(config: RunConfig, num_samples: Mapping[str, int]) -> list[Source]:
    """The sources of a run with the samples that each has, in the order of their names."""
    sources = []
    for name in config.data.source_names:
        configured = config.data.sources.get(name)
        max_epochs = configured.max_epochs if configured else None
        sources.append(Source(name, num_samples[name], max_epochs))
    return sources


def heldout_problems(config: RunConfig, data: DataFacts, length: Lengths) -> list[str]:
    """That the sources of the run's last phase have nothing to evaluate on."""
    names = sorted(evaluated(length.phases, length.steps))
    if not data.heldout_samples or any(data.heldout_samples[name] for name in names):
        return []
    return [no_heldout(data.directory, names, data.heldout_tokens, config.train.seq_len)]


def no_heldout(directory: str, names: Sequence[str], tokens: int, seq_len: int) -> str:
    """The message that the sources `names`, which a run evaluates, have no held-out sample.

    `tokens` are held out of all sources.
    """
    return (
        f"train.seq_len={seq_len}: the heldout text of {', '.join(names)} in {directory} has no "
        f"sample of {seq_len + 1} tokens (all sources have {tokens}); prepare more text, raise "
        "data.heldout_fraction, or lower train.seq_len"
    )
