"""What a frozen run trains on: the samples of every source, and the mixture that orders them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import read_manifest
from hpc_llm.data.mixture import Mixture, Rows, heldout_rows
from hpc_llm.data.samples import BestFit, Concatenated, Samples
from hpc_llm.data.shards import ShardSet
from hpc_llm.planning.data_facts import no_heldout, sources_of
from hpc_llm.planning.lengths import Lengths, length_at
from hpc_llm.planning.mixture import Source, Stage, evaluated, stages
from hpc_llm.planning.plan import RunPlan


@dataclass(frozen=True)
class Stream:
    """Training samples of a run in their order. The only state is the step."""

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


def training(
    config: RunConfig, plan: RunPlan | Lengths, directory: Path, num_skipped: int = 0
) -> Stream:
    """The stream of a run on the data in `directory`.

    num_skipped: steps that are left out, for each of which one more follows the plan's last.
    InputError if the data is missing or too small, or the mixture is not possible.
    """
    manifest = read_manifest(directory)
    samples: list[Samples] = []
    num_samples: dict[str, int] = {}
    for name in config.data.source_names:
        of_source = _samples(config, ShardSet(directory, "train", manifest, name))
        samples.append(of_source)
        num_samples[name] = of_source.num_samples
    if not any(num_samples.values()):
        raise too_short(directory, manifest.tokens["train"], config.train.seq_len)
    sources = sources_of(config, num_samples)
    parts = _stages(plan, sources, config.train.global_batch, num_skipped)
    mixture = Mixture(config.run.seed, sources, parts, config.train.global_batch)
    return Stream(mixture, samples, plan.seq_lens)


def _stages(
    plan: RunPlan | Lengths, sources: list[Source], batch: int, num_skipped: int
) -> list[Stage]:
    """The stages of the plan's steps, and of those in place of skipped ones.

    The latter begin no phase after the plan's end. Where every source reaches its cap, the last
    stage goes on beyond the caps: a run is not stopped for that so late.
    """
    phases = [phase for phase in plan.phases if phase.start < plan.steps]
    for more in range(num_skipped, 0, -1):
        with contextlib.suppress(InputError):
            return stages(phases, sources, batch, plan.steps + more)
    return stages(plan.phases, sources, batch, plan.steps)


def heldout(config: RunConfig, plan: RunPlan, directory: Path) -> Heldout:
    """The rows that a run evaluates, which depend neither on run.seed nor on the machine.

    InputError if there are none.
    """
    manifest = read_manifest(directory)
    weights = evaluated(plan.phases, plan.steps)
    names = [name for name in config.data.source_names if name in weights]
    samples: list[Samples] = []
    sources = []
    for name in names:
        of_source = _samples(config, ShardSet(directory, "heldout", manifest, name))
        samples.append(of_source)
        sources.append(Source(name, of_source.num_samples))
    rows = heldout_rows(sources, weights, config.train.eval_batches * config.train.global_batch)
    if not len(rows.samples):
        tokens = manifest.tokens["heldout"]
        raise InputError(no_heldout(str(directory), names, tokens, config.train.seq_len))
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
