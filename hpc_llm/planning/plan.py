"""RunConfig + facts about its data → RunPlan: every number the job needs that the user did not
give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hpc_llm.config import checks, computing
from hpc_llm.config.errors import InputError, nearest
from hpc_llm.config.optimizers import optimizer
from hpc_llm.config.schema import ClusterConfig, RunConfig
from hpc_llm.planning.batch import accumulation, rows_per_rank
from hpc_llm.planning.choice import Saved, choose, possible
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.hardware import GIB, GPUS, Gpu, gpu_of
from hpc_llm.planning.interval import expected_save_s, interval_s, mtbf_s
from hpc_llm.planning.lengths import Lengths, lengths
from hpc_llm.planning.memory import USABLE_FRACTION, MemoryEstimate, shard
from hpc_llm.planning.mixture import Phase, Source, evaluated, stages
from hpc_llm.planning.parameters import checkpoint_bytes, flops_per_token, parameter_count
from hpc_llm.planning.refusal import refusal
from hpc_llm.planning.walltime import Walltime, jobs, lead_s, notice_s, walltime


@dataclass(frozen=True)
class DataFacts:
    """What is known of prepared data: its manifest, and how many samples a run makes of it."""

    directory: str
    tokens: int  # training tokens
    heldout_tokens: int
    vocab_size: int  # pieces of the tokenizer, unpadded
    unigram_entropy: (
        float  # nats per token: held-out text under the training text's unigram distribution
    )
    source_tokens: dict[str, int] = field(default_factory=dict)  # training tokens of each source
    samples: dict[str, int] = field(
        default_factory=dict
    )  # of training text by source; empty: not known (not packed)
    heldout_samples: dict[str, int] = field(default_factory=dict)  # the same of held-out text
    padding: float | None = (
        None  # fraction of the positions of packed rows; None where nothing is packed
    )
    digests: dict[str, str] = field(
        default_factory=dict
    )  # of each source's tokens, and what they mean


@dataclass(frozen=True)
class RunPlan:
    """Frozen into plan.json; the job follows it and derives nothing anew."""

    world_size: int
    nodes: int
    gpus_per_node: int
    # batch
    micro_batch: int  # sequences per rank and pass
    accumulation: int  # passes per optimizer step
    zero_stage: int
    activation_checkpointing: bool
    attention: str  # the backend (config.computing)
    compile: bool
    loss_chunk: int | None  # tokens whose logits exist at once; None: those of a pass
    # length
    steps: int
    tokens_per_step: int
    tokens: int
    warmup_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int | None  # one of the two is set
    checkpoint_every_s: float | None
    permanent_every_steps: int | None
    # size
    parameters: int
    flops_per_token: float
    checkpoint_bytes: int
    memory: MemoryEstimate
    memory_available: int | None  # usable bytes per rank (92 % of a GPU's); None: unknown machine
    # time, measured by a run alike or at the stated MFU; None where neither is known
    peak_tflops: float | None  # bf16 dense, per GPU
    expected_mfu: float | None
    tokens_per_second: float | None  # over all ranks
    wall_hours: float | None
    gpu_hours: float | None
    notice_s: (
        float  # from the signal before a time limit until the run has saved and left, at the worst
    )
    signal_lead_s: (
        int | None
    )  # seconds before the limit at which Slurm sends it; None without a limit
    jobs: int | None  # Slurm time limits that the run will need
    # data
    data_directory: str
    unigram_entropy: float | None
    padding: (
        float | None
    )  # fraction of the positions that best-fit packing leaves empty; None: not packed (yet)
    phases: list[Phase]  # mixtures, the first from step 0
    seq_lens: list[tuple[int, int]]  # first step, sequence length from then on
    source_epochs: dict[
        str, float
    ]  # how often each source is read in all; empty before the data is prepared
    rungs: list[int]  # steps at which successive halving judges the run
    # what runs alike have shown
    halved_by: str | None = None  # the run for which more than this micro-batch was too much
    timed_by: str | None = (
        None  # the run that was so fast; None where tokens_per_second rests on cluster.expected_mfu
    )
    data_digests: dict[str, str] = field(default_factory=dict)  # by source; ranks refuse other data


def with_micro_batch(plan: RunPlan, config: RunConfig, micro_batch: int) -> RunPlan:
    """The same mathematics in passes of another size."""
    passes = accumulation(config.train.global_batch, plan.world_size, micro_batch)
    return replace(plan, micro_batch=micro_batch, accumulation=passes)


def make_plan(
    config: RunConfig,
    data: DataFacts | None,
    *,
    memory_available: int | None = None,
    experience: Experience = NONE,
    saved: Saved | None = None,
) -> RunPlan:
    """The plan of `config`. InputError lists everything that cannot work, all at once.

    `data` is None before preparation. `memory_available` is a GPU's memory in bytes where it was
    measured; else cluster.gpu says it, and on a CPU it is unknown. `experience` is that of runs
    alike; `saved` what this very run must be able to load.
    """
    cluster = config.cluster
    train = config.train
    gpu = gpu_of(cluster)
    usable = _usable(gpu, memory_available)
    problems = [*checks.problems(config), *_problems(config, data), *_stage_problems(config, saved)]
    length = None
    choice = None
    epochs: dict[str, float] = {}
    try:
        length = lengths(
            config, _epoch_tokens(config, data) if data else None, begun=saved is not None
        )
        if data is not None and not problems:
            problems += _heldout_problems(config, data, length)
            epochs = _source_epochs(config, data, length)
    except InputError as error:
        problems += error.problems
    if _countable(config):
        choice = choose(config, usable, experience, saved)
        if (
            choice is None
            and usable is not None
            and (sentence := _too_large(config, usable, saved))
        ):
            problems.append(sentence)
    if choice is not None:
        problems += _too_long(config, choice.zero_stage)
    if problems or length is None or choice is None:
        raise InputError(problems)

    tokens = length.steps * length.tokens_per_step
    parameters = parameter_count(config.model)
    flops = flops_per_token(config.model, train.seq_len)
    num_bytes = checkpoint_bytes(parameters, config.optim.name, train.precision, choice.zero_stage)
    # An MFU is a share of the bf16 peak: it says nothing about fp32.
    peak = gpu.peak_tflops if gpu and train.precision == "bf16" else None
    way = (choice.zero_stage, choice.activation_checkpointing)
    limit = experience.limit(*way)
    speed = experience.speed(*way, choice.micro_batch)
    time = walltime(cluster, peak, flops, tokens, speed)
    needed_s = _notice_s(config, time, length.tokens_per_step, num_bytes)
    lead = _signal_lead_s(config, needed_s)
    return RunPlan(
        world_size=cluster.world_size,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        micro_batch=choice.micro_batch,
        accumulation=accumulation(train.global_batch, cluster.world_size, choice.micro_batch),
        zero_stage=choice.zero_stage,
        activation_checkpointing=choice.activation_checkpointing,
        attention=computing.choose(config),
        compile=computing.compiles(config),
        loss_chunk=computing.loss_chunk(config),
        steps=length.steps,
        tokens_per_step=length.tokens_per_step,
        tokens=tokens,
        warmup_steps=length.warmup_steps,
        eval_every_steps=length.eval_every_steps,
        checkpoint_every_steps=length.checkpoint_every_steps,
        checkpoint_every_s=_save_every_s(config, length.checkpoint_every_s, num_bytes),
        permanent_every_steps=length.permanent_every_steps,
        parameters=parameters,
        flops_per_token=flops,
        checkpoint_bytes=num_bytes,
        memory=choice.memory,
        memory_available=usable,
        peak_tflops=peak,
        expected_mfu=time.mfu,
        tokens_per_second=time.tokens_per_second,
        wall_hours=time.wall_hours,
        gpu_hours=time.gpu_hours,
        notice_s=needed_s,
        signal_lead_s=lead,
        jobs=_jobs(cluster, time, lead),
        data_directory=data.directory if data else config.data.out or "",
        unigram_entropy=data.unigram_entropy if data else None,
        padding=data.padding if data else None,
        phases=length.phases,
        seq_lens=length.seq_lens,
        rungs=length.rungs,
        source_epochs=epochs,
        halved_by=limit.run if limit and choose(config, usable, saved=saved) != choice else None,
        timed_by=speed.run if speed else None,
        data_digests=data.digests if data else {},
    )


def _stage_problems(config: RunConfig, saved: Saved | None) -> list[str]:
    given = config.train.zero_stage
    train = config.train
    if saved is None:
        return []
    if given != "auto" and given not in saved.stages:
        return [f"train.zero_stage={given}: {_loads(saved)}; give that, or auto"]
    if _countable(config) and given == "auto" and not possible(config, saved):
        return [
            f"train.precision={train.precision} optim={config.optim.name}: {_loads(saved)}, where "
            "these do not run; give those that it was trained with"
        ]
    return []


def _too_large(config: RunConfig, usable: int, saved: Saved | None) -> str | None:
    if saved is None or choose(config, usable) is None:
        return refusal(config, usable)
    if not possible(config, saved):
        return None
    return (
        f"train.zero_stage=auto: {_loads(saved)}, which needs more than the {usable / GIB:.1f} "
        "GiB usable per GPU; go on with more nodes, or on GPUs with more memory"
    )


def _loads(saved: Saved) -> str:
    stages = " or ".join(map(str, saved.stages))
    return f"the run's checkpoint of step {saved.step} can be loaded at stage {stages} alone"


def _too_long(config: RunConfig, zero_stage: int) -> list[str]:
    """A part of the weights that the optimizer's kernel cannot count."""
    limit = optimizer(config.optim.name).kernel_limit
    if limit is None or config.cluster.device == "cpu" or zero_stage not in (1, 2):
        return []  # elsewhere it goes through weights one by one, or in DeepSpeed's sub-groups
    matrix = config.model.vocab_size * config.model.d_model
    count = parameter_count(config.model) - matrix  # those that decay are a flat group of their own
    part = shard(count, config.cluster.world_size)
    if part < limit:
        return []
    return [
        f"optim={config.optim.name}: its kernel takes fewer than {limit:,} weights per GPU, and "
        f"these are {part:,}; use more GPUs, train.zero_stage=3 or optim=torch_adam"
    ]


def _epoch_tokens(config: RunConfig, data: DataFacts) -> int:
    """Positions of all samples, or the tokens where samples are not counted yet, or there is
    none.
    """
    return sum(data.samples.values()) * config.train.seq_len or data.tokens


def _source_epochs(config: RunConfig, data: DataFacts, length: Lengths) -> dict[str, float]:
    """Times that the run reads each source, over all phases; InputError where the mixture cannot be
    had.

    From the number of tokens where samples are not counted yet: rows leave some positions empty, so
    the run itself may end up a bit above.
    """
    if not data.source_tokens or length.steps == 0:
        return {}
    counts = data.samples or {
        name: tokens // config.train.seq_len for name, tokens in data.source_tokens.items()
    }
    sources = sources_of(config, counts)
    last = stages(length.phases, sources, config.train.global_batch, length.steps)[-1]
    taken = last.before(length.steps)
    return {
        source.name: count / source.num_samples
        for source, count in zip(sources, taken, strict=True)
        if source.num_samples
    }


def _heldout_problems(config: RunConfig, data: DataFacts, length: Lengths) -> list[str]:
    names = sorted(evaluated(length.phases, length.steps))
    if not data.heldout_samples or any(data.heldout_samples[name] for name in names):
        return []
    return [no_heldout(data.directory, names, data.heldout_tokens, config.train.seq_len)]


def sources_of(config: RunConfig, num_samples: Mapping[str, int]) -> list[Source]:
    """The sources of a run with the samples that each has, in the order of their names."""
    return [
        Source(
            name,
            num_samples[name],
            config.data.sources[name].max_epochs if name in config.data.sources else None,
        )
        for name in config.data.source_names
    ]


def no_heldout(directory: str, names: Sequence[str], tokens: int, seq_len: int) -> str:
    """That the sources that a run evaluates have no sample of held-out text; `tokens` are held out
    of all sources.
    """
    return (
        f"train.seq_len={seq_len}: the heldout text of {', '.join(names)} in {directory} has no "
        f"sample of {seq_len + 1} tokens (all sources have {tokens}); prepare more text, raise "
        "data.heldout_fraction, or lower train.seq_len"
    )


def _save_every_s(config: RunConfig, given: float | None, num_bytes: int) -> float | None:
    """For checkpoint.every=auto Daly's interval before anything is measured; each attempt takes it
    anew.
    """
    if config.checkpoint.every != "auto":
        return given
    nodes = config.cluster.nodes
    return round(interval_s(expected_save_s(num_bytes, nodes), mtbf_s(nodes)), 1)


def _notice_s(config: RunConfig, time: Walltime, tokens_per_step: int, num_bytes: int) -> float:
    """Where nothing is known of the machine's speed, without its steps."""
    step_s = tokens_per_step / time.tokens_per_second if time.tokens_per_second else 0.0
    evaluation_s = config.train.eval_batches * step_s / 3  # forward alone
    return round(
        notice_s(step_s, expected_save_s(num_bytes, config.cluster.nodes), evaluation_s), 1
    )


def _signal_lead_s(config: RunConfig, needed_s: float) -> int | None:
    """InputError where a job would have to save before it has begun."""
    limit_min = config.cluster.time_min
    given = config.cluster.signal_lead_s
    if limit_min is None:
        return None
    if given != "auto":
        return given
    if (lead := lead_s(limit_min, needed_s)) >= limit_min * 60:
        raise InputError(
            f"cluster.time_min={limit_min}: steps, an evaluation and saves take "
            f"{needed_s / 60:,.0f} min of notice before it; set cluster.time_min above "
            f"{lead // 60}, or cluster.signal_lead_s if you know better"
        )
    return lead


def _jobs(cluster: ClusterConfig, time: Walltime, lead: int | None) -> int | None:
    if time.wall_hours is None or cluster.time_min is None or lead is None:
        return None
    return jobs(time.wall_hours * 3600, cluster.time_min, lead)


def _usable(gpu: Gpu | None, measured: int | None) -> int | None:
    total = measured if measured is not None else int(gpu.memory_gib * GIB) if gpu else None
    return None if total is None else int(total * USABLE_FRACTION)


def _countable(config: RunConfig) -> bool:
    """Whether every rank gets a row and every size is above 0, so that memory can be counted."""
    model = config.model
    train = config.train
    world = config.cluster.world_size
    sizes = (
        model.d_model,
        model.n_heads,
        model.n_layers,
        model.vocab_size,
        model.ffn_size,
        model.kv_heads,
        train.seq_len,
        world,
    )
    return (
        min(sizes) > 0
        and train.global_batch >= world
        and (train.micro_batch == "auto" or train.micro_batch > 0)
    )


def _problems(config: RunConfig, data: DataFacts | None) -> Iterator[str]:
    """What the configuration and its machine or its data do not agree on, one sentence each."""
    cluster = config.cluster
    train = config.train
    world = config.cluster.world_size
    own = (cluster.gpu_memory_gib, cluster.gpu_peak_tflops)
    if cluster.gpu is not None and cluster.gpu not in GPUS and None in own:
        yield (
            f"cluster.gpu={cluster.gpu!r}: one of {nearest(cluster.gpu, GPUS)}; for another give "
            "cluster.gpu_memory_gib and cluster.gpu_peak_tflops (bf16, dense) too, or null"
        )
    if cluster.gpu is None and own != (None, None):
        yield (
            "cluster.gpu_memory_gib, cluster.gpu_peak_tflops: have an effect with "
            "cluster.gpu=NAME alone"
        )
    if cluster.gpu is None and cluster.expected_mfu is not None:
        yield (
            f"cluster.expected_mfu={cluster.expected_mfu}: has an effect with cluster.gpu=NAME "
            "alone"
        )
    if train.global_batch < world:
        yield (
            f"train.global_batch={train.global_batch}: at least one sequence for each of the "
            f"{world} ranks ({cluster.nodes} × {cluster.gpus_per_node}) is needed; raise it or "
            "lower cluster.nodes"
        )
    elif (
        train.micro_batch != "auto"
        and world > 0
        and train.micro_batch > (rows := rows_per_rank(train.global_batch, world))
    ):
        yield (
            f"train.micro_batch={train.micro_batch}: at most {rows}, a rank's sequences of "
            f"train.global_batch={train.global_batch} over {world} ranks; or auto"
        )
    lead = cluster.signal_lead_s
    limit = cluster.time_min
    if limit is not None and lead != "auto" and limit * 60 <= lead:
        yield (
            f"cluster.signal_lead_s={lead}: below {limit * 60}, the seconds of "
            f"cluster.time_min={limit}, is allowed; or auto"
        )
    if data is not None and data.vocab_size > config.model.vocab_size:
        yield (
            f"model.vocab_size={config.model.vocab_size}: at least {data.vocab_size}, the pieces "
            f"of the tokenizer in {data.directory}; set "
            f"model.vocab_size={checks.padded_vocab(data.vocab_size)}"
        )
