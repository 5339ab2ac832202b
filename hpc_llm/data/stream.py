"""From a frozen run to what it trains on: the samples of every source, and the mixture that orders them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import read_manifest
from hpc_llm.data.mixture import Mixture
from hpc_llm.data.samples import BestFit, Concatenated, Samples
from hpc_llm.data.shards import ShardSet
from hpc_llm.planning.lengths import Lengths, length_at
from hpc_llm.planning.mixture import stages
from hpc_llm.planning.plan import RunPlan, sources_of


@dataclass(frozen=True)
class Stream:
    """Training samples of a run in their order. The only state is the step; the stages say which phase contains it."""

    mixture: Mixture
    samples: list[Samples]  # of each source
    seq_lens: list[tuple[int, int]]  # first step, sequence length from then on

    def seq_len(self, step: int) -> int:
        """The sequence length into which the samples of optimizer step `step` are cut."""
        return length_at(self.seq_lens, step)


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
        raise too_short(directory, "train", manifest.tokens["train"], seq_len)
    sources = sources_of(config, {name: each.num_samples for name, each in samples.items()})
    parts = stages(plan.phases, sources, config.train.global_batch, plan.steps)
    mixture = Mixture(config.run.seed, sources, parts, config.train.global_batch)
    return Stream(mixture, list(samples.values()), plan.seq_lens)


def heldout(config: RunConfig, directory: Path) -> Samples:
    """Held-out samples of all sources in file order. InputError if there are none."""
    shards = ShardSet.open(directory, "heldout")
    samples = _samples(config, shards)
    if samples.num_samples == 0:
        raise too_short(shards.directory, "heldout", shards.num_tokens, config.train.seq_len)
    return samples


def too_short(directory: Path, split: str, tokens: int, seq_len: int) -> InputError:
    return InputError(
        f"train.seq_len={seq_len}: the {split} text in {directory} has {tokens} tokens, "
        f"a sample takes {seq_len + 1}; prepare more text, raise data.heldout_fraction, or lower train.seq_len"
    )


def _samples(config: RunConfig, shards: ShardSet) -> Samples:
    if config.data.packing == "best_fit":
        return BestFit(shards, config.train.seq_len)
    return Concatenated(shards, config.train.seq_len, config.data.mask_boundaries)
