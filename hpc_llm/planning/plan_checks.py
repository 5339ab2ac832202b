"""What a configuration and its machine, its data or its checkpoint do not agree on."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_llm.config.checks import padded_vocab
from hpc_llm.config.errors import nearest
from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import ClusterConfig, RunConfig
from hpc_llm.planning.batch import rows_per_rank
from hpc_llm.planning.choice import Saved, choose, possible
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.hardware import GIB, GPUS
from hpc_llm.planning.model_states import shard
from hpc_llm.planning.parameters import parameter_count
from hpc_llm.planning.refusal import refusal


def problems(config: RunConfig, data: DataFacts | None, saved: Saved | None) -> Iterator[str]:
    """One sentence for each, before anything is chosen."""
    yield from _gpu(config.cluster)
    yield from _batch(config)
    yield from _lead(config.cluster)
    if data is not None and data.vocab_size > config.model.vocab_size:
        yield (
            f"model.vocab_size={config.model.vocab_size}: at least {data.vocab_size}, the pieces "
            f"of the tokenizer in {data.directory}; set "
            f"model.vocab_size={padded_vocab(data.vocab_size)}"
        )
    if saved is not None:
        yield from _stage(config, saved)


def countable(config: RunConfig) -> bool:
    """Whether every rank gets a row and every size is above 0, so that memory can be counted."""
    model = config.model
    train = config.train
    world_size = config.cluster.world_size
    sizes = (
        model.d_model,
        model.n_heads,
        model.n_layers,
        model.vocab_size,
        model.ffn_size,
        model.kv_heads,
        train.seq_len,
        world_size,
    )
    if min(sizes) <= 0 or train.global_batch < world_size:
        return False
    return train.micro_batch == "auto" or train.micro_batch > 0


def too_large(config: RunConfig, usable: int, saved: Saved | None) -> Iterator[str]:
    """Why nothing fits into `usable` bytes per rank, if that is what is in the way."""
    if saved is None or choose(config, usable) is None:
        sentence = refusal(config, usable)
        if sentence is not None:
            yield sentence
    elif possible(config, saved):
        yield (
            f"train.zero_stage=auto: {_loads(saved)}, which needs more than the "
            f"{usable / GIB:.1f} GiB usable per GPU; go on with more nodes, or on GPUs with more "
            "memory"
        )


def kernel_problems(config: RunConfig, zero_stage: int) -> Iterator[str]:
    """A flat tensor that is too long for the optimizer's kernel."""
    limit = optimizer(config.optim.name).kernel_limit
    # Elsewhere it goes through weights one by one, or in DeepSpeed's sub-groups.
    if limit is None or config.cluster.device == "cpu" or zero_stage not in (1, 2):
        return
    matrix = config.model.vocab_size * config.model.d_model
    count = parameter_count(config.model) - matrix  # those that decay are a flat group of their own
    part = shard(count, config.cluster.world_size)
    if part >= limit:
        yield (
            f"optim={config.optim.name}: its kernel takes fewer than {limit:,} weights per GPU, "
            f"and these are {part:,}; use more GPUs, train.zero_stage=3 or optim=torch_adam"
        )


def _gpu(cluster: ClusterConfig) -> Iterator[str]:
    own = (cluster.gpu_memory_gib, cluster.gpu_peak_tflops)
    if cluster.gpu is not None:
        if cluster.gpu not in GPUS and None in own:
            yield (
                f"cluster.gpu={cluster.gpu!r}: one of {nearest(cluster.gpu, GPUS)}; for another "
                "give cluster.gpu_memory_gib and cluster.gpu_peak_tflops (bf16, dense) too, or null"
            )
        return
    if own != (None, None):
        yield (
            "cluster.gpu_memory_gib, cluster.gpu_peak_tflops: have an effect with "
            "cluster.gpu=NAME alone"
        )
    if cluster.expected_mfu is not None:
        yield (
            f"cluster.expected_mfu={cluster.expected_mfu}: has an effect with cluster.gpu=NAME "
            "alone"
        )


def _batch(config: RunConfig) -> Iterator[str]:
    cluster = config.cluster
    world_size = cluster.world_size
    global_batch = config.train.global_batch
    micro_batch = config.train.micro_batch
    if global_batch < world_size:
        yield (
            f"train.global_batch={global_batch}: at least one sequence for each of the "
            f"{world_size} ranks ({cluster.nodes} × {cluster.gpus_per_node}) is needed; raise it "
            "or lower cluster.nodes"
        )
        return
    if micro_batch == "auto" or world_size <= 0:
        return
    rows = rows_per_rank(global_batch, world_size)
    if micro_batch > rows:
        yield (
            f"train.micro_batch={micro_batch}: at most {rows}, a rank's sequences of "
            f"train.global_batch={global_batch} over {world_size} ranks; or auto"
        )


def _lead(cluster: ClusterConfig) -> Iterator[str]:
    lead = cluster.signal_lead_s
    limit = cluster.time_min
    if limit is not None and lead != "auto" and limit * 60 <= lead:
        yield (
            f"cluster.signal_lead_s={lead}: below {limit * 60}, the seconds of "
            f"cluster.time_min={limit}, is allowed; or auto"
        )


def _stage(config: RunConfig, saved: Saved) -> Iterator[str]:
    """A ZeRO stage that cannot load the run's checkpoint."""
    given = config.train.zero_stage
    if given != "auto":
        if given not in saved.stages:
            yield f"train.zero_stage={given}: {_loads(saved)}; give that, or auto"
        return
    if countable(config) and not possible(config, saved):
        yield (
            f"train.precision={config.train.precision} optim={config.optim.name}: "
            f"{_loads(saved)}, where these do not run; give those that it was trained with"
        )


def _loads(saved: Saved) -> str:
    stages = " or ".join(map(str, saved.stages))
    return f"the run's checkpoint of step {saved.step} can be loaded at stage {stages} alone"
