"""From a frozen run to what it trains on: the samples of every source, and the mixture that orders them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import read_manifest
from hpc_llm.data.mixture import Mixture, Rows, heldout_rows
from hpc_llm.data.samples import BestFit, Concatenated, Samples
from hpc_llm.data.shards import ShardSet
from hpc_llm.planning.lengths import Lengths, length_at
from hpc_llm.planning.mixture import Source, evaluated, stages
from hpc_llm.planning.plan import RunPlan, no_heldout, sources_of


@dataclass(frozen=True)
class Stream:
    """Training samples of a run in their order. The only state is the step; the stages say which phase contains it."""

    mixture: Mixture
    samples: list[Samples]  # of each source
    seq_lens: list[tuple[int, int]]  # first step, sequence length from then on

    def seq_len(self, step: int) -> int:
        """The sequence length into which the samples of optimizer step `step` are cut."""
        return length_at(self.seq_lens, step)


@dataclass(frozen=True)
class Heldout:
    """Rows of held-out text in the order in which they are cut into global batches."""

    rows: Rows
    samples: list[Samples]  # of each source that is evaluated


def training(config: RunConfig, plan: RunPlan | Lengths, directory: Path) -> Stream:
    """The stream of a run on the data in `directory`.

    InputError if it is missing or too small, or the mixture is not possible.
    """
    seq_len = config.train.seq_len
    manifest = read_manifest(directory)
    samples = {
        name: _samples(config, ShardSet(directory, "train", manifest, name)) for name in config.data.source_names
    }
    if not any(each.num_samples for each in samples.values()):
        raise too_short(directory, manifest.tokens["train"], seq_len)
    sources = sources_of(config, {name: each.num_samples for name, each in samples.items()})
    parts = stages(plan.phases, sources, config.train.global_batch, plan.steps)
    mixture = Mixture(config.run.seed, sources, parts, config.train.global_batch)
    return Stream(mixture, list(samples.values()), plan.seq_lens)


def heldout(config: RunConfig, plan: RunPlan, directory: Path) -> Heldout:
    """The rows that a run evaluates: no run.seed and no machine is in them. InputError if there are none."""
    manifest, weights = read_manifest(directory), evaluated(plan.phases, plan.steps)
    names = [name for name in config.data.source_names if name in weights]
    samples = [_samples(config, ShardSet(directory, "heldout", manifest, name)) for name in names]
    sources = [Source(name, each.num_samples) for name, each in zip(names, samples, strict=True)]
    rows = heldout_rows(sources, weights, config.train.eval_batches * config.train.global_batch)
    if not len(rows.samples):
        raise InputError(no_heldout(str(directory), names, manifest.tokens["heldout"], config.train.seq_len))
    return Heldout(rows, samples)


def too_short(directory: Path, tokens: int, seq_len: int) -> InputError:
    return InputError(
        f"train.seq_len={seq_len}: the train text in {directory} has {tokens} tokens, "
        f"a sample takes {seq_len + 1}; prepare more text, or lower train.seq_len"
    )


def _samples(config: RunConfig, shards: ShardSet) -> Samples:
    if config.data.packing == "best_fit":
        return BestFit(shards, config.train.seq_len)
    return Concatenated(shards, config.train.seq_len, config.data.mask_boundaries)
