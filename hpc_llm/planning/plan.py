"""RunConfig + facts about its data → RunPlan: every number the job needs that no user gave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpc_llm.config import checks, computing
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning import plan_checks
from hpc_llm.planning.batch import accumulation
from hpc_llm.planning.choice import Choice, Saved, choose
from hpc_llm.planning.data_facts import DataFacts, epoch_tokens, heldout_problems, source_epochs
from hpc_llm.planning.experience import NONE, Experience
from hpc_llm.planning.hardware import GIB, Gpu, gpu_of
from hpc_llm.planning.interval import expected_save_s, interval_s, mtbf_s
from hpc_llm.planning.lengths import Lengths, lengths
from hpc_llm.planning.memory import USABLE_FRACTION, MemoryEstimate
from hpc_llm.planning.mixture import Phase
from hpc_llm.planning.parameters import checkpoint_bytes, flops_per_token, parameter_count
from hpc_llm.planning.step_mode import StepMode
from hpc_llm.planning.walltime import Walltime, jobs, lead_s, notice_s, walltime


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
    # time, measured by a comparable run or at the stated MFU; None where neither is known
    peak_tflops: float | None  # bf16 dense, per GPU
    expected_mfu: float | None
    tokens_per_second: float | None  # over all ranks
    wall_hours: float | None
    gpu_hours: float | None
    notice_s: float  # from the signal before a time limit until the run has left, in the worst case
    signal_lead_s: int | None  # seconds from Slurm's signal to the limit; None without a limit
    jobs: int | None  # Slurm time limits that the run will need
    # data
    data_directory: str
    unigram_entropy: float | None
    padding: float | None  # fraction of positions that best-fit packing leaves empty; None: unknown
    phases: list[Phase]  # mixtures, the first from step 0
    seq_lens: list[tuple[int, int]]  # first step, sequence length from then on
    source_epochs: dict[str, float]  # how often each source is read; empty before preparation
    rungs: list[int]  # steps at which successive halving judges the run
    # what comparable runs have shown
    halved_by: str | None = None  # the run for which more than this micro-batch was too much
    timed_by: str | None = None  # the run with this speed; None: it rests on cluster.expected_mfu
    data_digests: dict[str, str] = field(default_factory=dict)  # by source; ranks refuse other data

    @property
    def mode(self) -> StepMode:
        """How a step divides memory and work."""
        return StepMode(self.zero_stage, self.activation_checkpointing)


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
    measured; else cluster.gpu says it, and on a CPU it is unknown. `experience` is that of
    comparable runs; `saved` what this very run must be able to load.
    """
    usable = _usable(gpu_of(config.cluster), memory_available)
    problems = [*checks.problems(config), *plan_checks.problems(config, data, saved)]
    length = None
    epochs: dict[str, float] = {}
    try:
        length = _lengths(config, data, saved)
        if data is not None and not problems:
            problems += heldout_problems(config, data, length)
            epochs = source_epochs(config, data, length)
    except InputError as error:
        problems += error.problems
    choice = None
    if plan_checks.countable(config):
        choice = choose(config, usable, experience, saved)
        problems += _choice_problems(config, choice, usable, saved)
    if problems or length is None or choice is None:
        raise InputError(problems)
    plan = _plan(config, length, choice, experience)
    plan = replace(plan, memory_available=usable, source_epochs=epochs)
    limit = experience.limit(choice.mode)
    if limit is not None and choose(config, usable, saved=saved) != choice:
        plan = replace(plan, halved_by=limit.run)
    return plan if data is None else _with_data(plan, data)


def _lengths(config: RunConfig, data: DataFacts | None, saved: Saved | None) -> Lengths:
    per_epoch = None
    if data is not None:
        per_epoch = epoch_tokens(config, data)
    return lengths(config, per_epoch, begun=saved is not None)


def _choice_problems(
    config: RunConfig, choice: Choice | None, usable: int | None, saved: Saved | None
) -> list[str]:
    """That nothing could be chosen, or that what was chosen does not run."""
    if choice is not None:
        return [*plan_checks.kernel_problems(config, choice.mode.zero_stage)]
    if usable is None:
        return []
    return [*plan_checks.too_large(config, usable, saved)]


def _plan(config: RunConfig, length: Lengths, choice: Choice, experience: Experience) -> RunPlan:
    """The plan, but for what is known of its data and of the machine's memory."""
    train = config.train
    cluster = config.cluster
    tokens = length.steps * length.tokens_per_step
    flops = flops_per_token(config.model, train.seq_len)
    parameters = parameter_count(config.model)
    zero_stage = choice.mode.zero_stage
    num_bytes = checkpoint_bytes(parameters, config.optim.name, train.precision, zero_stage)
    peak = _peak_tflops(config)
    speed = experience.speed(choice.mode, choice.micro_batch)
    time = walltime(cluster, peak, flops, tokens, speed)
    needed_s = _notice_s(config, time, length.tokens_per_step, num_bytes)
    lead = _signal_lead_s(config, needed_s)
    return RunPlan(
        world_size=cluster.world_size,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        micro_batch=choice.micro_batch,
        accumulation=accumulation(train.global_batch, cluster.world_size, choice.micro_batch),
        zero_stage=zero_stage,
        activation_checkpointing=choice.mode.activation_checkpointing,
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
        memory_available=None,
        peak_tflops=peak,
        expected_mfu=time.mfu,
        tokens_per_second=time.tokens_per_second,
        wall_hours=time.wall_hours,
        gpu_hours=time.gpu_hours,
        notice_s=needed_s,
        signal_lead_s=lead,
        jobs=_jobs(config, time, lead),
        data_directory=config.data.out or "",
        unigram_entropy=None,
        padding=None,
        phases=length.phases,
        seq_lens=length.seq_lens,
        source_epochs={},
        rungs=length.rungs,
        timed_by=speed.run if speed else None,
    )


def _with_data(plan: RunPlan, data: DataFacts) -> RunPlan:
    return replace(
        plan,
        data_directory=data.directory,
        unigram_entropy=data.unigram_entropy,
        padding=data.padding,
        data_digests=data.digests,
    )


def _peak_tflops(config: RunConfig) -> float | None:
    """An MFU is a share of the bf16 peak: it says nothing about fp32."""
    gpu = gpu_of(config.cluster)
    if gpu is None or config.train.precision != "bf16":
        return None
    return gpu.peak_tflops


def _save_every_s(config: RunConfig, given: float | None, num_bytes: int) -> float | None:
    """For checkpoint.every=auto Daly's interval, before anything is measured.

    Each attempt computes it again from what it measured.
    """
    if config.checkpoint.every != "auto":
        return given
    nodes = config.cluster.nodes
    return round(interval_s(expected_save_s(num_bytes, nodes), mtbf_s(nodes)), 1)


def _notice_s(config: RunConfig, time: Walltime, tokens_per_step: int, num_bytes: int) -> float:
    """Where the machine's speed is not known, without its steps."""
    step_s = 0.0
    if time.tokens_per_second:
        step_s = tokens_per_step / time.tokens_per_second
    evaluation_s = config.train.eval_batches * step_s / 3  # forward alone
    save_s = expected_save_s(num_bytes, config.cluster.nodes)
    return round(notice_s(step_s, save_s, evaluation_s), 1)


def _signal_lead_s(config: RunConfig, needed_s: float) -> int | None:
    """Seconds of notice to ask for; InputError where a job would have to save before it began."""
    limit_min = config.cluster.time_min
    given = config.cluster.signal_lead_s
    if limit_min is None:
        return None
    if given != "auto":
        return given
    lead = lead_s(limit_min, needed_s)
    if lead >= limit_min * 60:
        raise InputError(
            f"cluster.time_min={limit_min}: steps, an evaluation and saves take "
            f"{needed_s / 60:,.0f} min of notice before it; set cluster.time_min above "
            f"{lead // 60}, or cluster.signal_lead_s if you know better"
        )
    return lead


def _jobs(config: RunConfig, time: Walltime, lead: int | None) -> int | None:
    limit_min = config.cluster.time_min
    if time.wall_hours is None or limit_min is None or lead is None:
        return None
    return jobs(time.wall_hours * 3600, limit_min, lead)


def _usable(gpu: Gpu | None, measured: int | None) -> int | None:
    """Bytes per rank that a plan may use; None if the machine's memory is not known."""
    total = measured
    if total is None and gpu is not None:
        total = int(gpu.memory_gib * GIB)
    if total is None:
        return None
    return int(total * USABLE_FRACTION)
