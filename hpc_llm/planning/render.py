"""The plan as a plain-text table of at most 25 lines, for an engineer to check before the queue."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hpc_llm.config.duration import parse
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import padded_rows
from hpc_llm.planning.lengths import STEPS_OR_TOKENS
from hpc_llm.planning.memory import USABLE_FRACTION
from hpc_llm.planning.mixture import Phase
from hpc_llm.planning.notes import demo_epochs, notes, rounded
from hpc_llm.planning.plan import RunPlan
from hpc_llm.planning.quantities import count, duration, gib, origin, plural

LABEL_WIDTH = 16
_WIDTH = 120
MOMENTS = {
    "loss": "at the loss",
    "backward": "as backward begins",
    "gradients": "as backward ends",
    "step": "in the optimizer's step",
}
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buckets", "overhead")

Row = tuple[str, str]  # label and value


def render(config: RunConfig, plan: RunPlan) -> str:
    """Lines of `label  value`, sizes in GiB, counts with thousands separators."""
    rows = [
        *_what(config, plan),
        *_data(config, plan),
        *_batch(config, plan),
        *_length(config, plan),
        *_memory(config, plan),
        *_time(config, plan),
        *_warnings(config, plan),
    ]
    return "\n".join(f"{label:<{LABEL_WIDTH}}{value}".rstrip() for label, value in rows)


def _warnings(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    for note in notes(config, plan):
        first, *rest = textwrap.wrap(note, _WIDTH - LABEL_WIDTH)
        yield "WARNING", first
        for line in rest:
            yield "", line


def _what(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    cluster = config.cluster
    optim = config.optim
    flops = plan.flops_per_token / 1e9
    parameters = count(plan.parameters)
    yield "model", f"{config.model.name}: {parameters} parameters, {flops:,.3g} GFLOP per token"
    nodes = f"{plan.nodes} {plural(plan.nodes, 'node')}"
    gpus = cluster.gpu or plural(plan.gpus_per_node, "rank")
    machine = f"{nodes} × {plan.gpus_per_node} {gpus}"
    yield "machine", f"{cluster.name}: {machine}, {config.train.precision}"
    warmup = f"warm-up {plan.warmup_steps:,} steps"
    yield "optimizer", f"{optim.name}, lr {optim.lr:g}, {optim.schedule}, {warmup}"


def _data(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    name = config.data.name
    if plan.data_directory:
        name += f" in {plan.data_directory}"
    yield "data", f"{name}{_epochs(config, plan)}"
    if config.data.packing == "best_fit":
        padding = "padding not known before it is packed"
        if plan.padding is not None:
            padding = f"{plan.padding:.2%} padding"
        yield "", f"documents packed by best fit, {padding}"
    if config.data.sources:
        yield from _mixture(config, plan)


def _mixture(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    """One line per phase with its shares, and how often each source is read."""
    for start, phase in zip(["", *config.data.mixture], plan.phases, strict=True):
        label = "mixture" if phase.start == 0 else ""
        later = _rounded(start, plan)
        yield label, f"from step {phase.start:,}{later}: {', '.join(_shares(phase))}"
    if plan.source_epochs:
        epochs = [f"{name} {rounded(times)}" for name, times in plan.source_epochs.items()]
        yield "", f"epochs: {', '.join(epochs)}"


def _epochs(config: RunConfig, plan: RunPlan) -> str:
    """How often the run reads its data, which a mixture tells of each source."""
    if config.data.sources:
        return ""
    demo = demo_epochs(config, plan)
    if demo is not None:
        return f", about {rounded(demo)} epochs"
    if not plan.source_epochs:
        return ", epochs not known before it is prepared"
    (epochs,) = plan.source_epochs.values()
    return f", {rounded(epochs)} epochs"


def _shares(phase: Phase) -> Iterator[str]:
    total = sum(phase.weights.values())
    for name, weight in phase.weights.items():
        if weight:
            yield f"{name} {weight / total:.3g}"


def _rounded(start: str, plan: RunPlan) -> str:
    """Notes if a phase begins later than requested, at the next whole step."""
    if not start:
        return ""
    asked = parse(start, STEPS_OR_TOKENS)
    if asked.unit == "steps":
        return ""
    if asked.amount % plan.tokens_per_step:
        return f" ({start}, rounded up)"
    return f" ({start})"


def _batch(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    train = config.train
    sequences = f"{train.global_batch:,} sequences of {train.seq_len:,} tokens"
    product = f"ranks {plan.world_size} × micro {plan.micro_batch} × passes {plan.accumulation}"
    padded = padded_rows(train.global_batch, plan.world_size, plan.micro_batch)
    if padded:
        product += f" − {padded} masked rows (uneven)"
    yield "global batch", f"{sequences} = {product}"
    less = ""
    if plan.halved_by:
        less = f", more was too much for {plan.halved_by}"
    yield "micro-batch", f"{plan.micro_batch} {origin(train.micro_batch)}{less}"
    yield "ZeRO stage", f"{plan.zero_stage} {origin(train.zero_stage)}"
    state = "on" if plan.activation_checkpointing else "off"
    yield "act. ckpt", f"{state} {origin(train.activation_checkpointing)}"
    yield "attention", f"{plan.attention} {origin(train.attention)}"
    compiled = "yes" if plan.compile else "no"
    yield "compiled", f"{compiled} {origin(train.compile)}"
    yield from _loss(config, plan)


def _loss(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    """Logits in chunks, where they are or where the user wants it."""
    given = config.train.loss_chunk
    tokens = plan.micro_batch * config.train.seq_len
    if plan.loss_chunk is None:
        return
    logits = f"logits of {plan.loss_chunk:,} tokens at once {origin(given)}"
    if plan.loss_chunk < tokens:
        yield "loss", logits
    elif given != "auto":
        yield "loss", f"{logits}, no fewer than a pass's {tokens:,}: no effect"


def _length(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    steps = f"{plan.steps:,} steps of {plan.tokens_per_step:,} tokens"
    yield "length", f"{steps} = {count(plan.tokens)} tokens"
    if len(plan.seq_lens) > 1:
        lengths = [f"{length:,} from step {start:,}" for start, length in plan.seq_lens]
        yield "", f"sequences of {', '.join(lengths)}"
    every = _period(plan)
    if config.checkpoint.every == "auto":
        every += f" {origin('auto')}"
    size = gib(plan.checkpoint_bytes)
    yield "checkpoint", f"{size} every {every}, {config.checkpoint.keep} kept"
    if plan.permanent_every_steps:
        number = plan.steps // plan.permanent_every_steps
        total = gib(number * plan.checkpoint_bytes)
        every = f"every {plan.permanent_every_steps:,} steps"
        yield "", f"one for good {every} too, {number:,} in all: {total}"
    batches = f"{config.train.eval_batches} global batches"
    yield "evaluation", f"every {plan.eval_every_steps:,} steps, {batches}"
    if plan.rungs:
        rungs = ", ".join(f"{rung:,}" for rung in plan.rungs)
        yield "halving", f"best {config.halving.keep:.0%} go on at steps {rungs}"


def _period(plan: RunPlan) -> str:
    """The checkpoint interval; in time too, if the speed is known."""
    every_steps = plan.checkpoint_every_steps
    if every_steps is None:
        return duration((plan.checkpoint_every_s or 0) / 3600)
    steps = f"{every_steps:,} steps"
    if plan.tokens_per_second is None or every_steps > plan.steps:
        return steps
    hours = every_steps * plan.tokens_per_step / plan.tokens_per_second / 3600
    return f"{steps} ({duration(hours)})"


def _memory(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    memory = plan.memory
    limit = "of an unknown amount"
    if plan.memory_available is not None:
        machine = config.cluster.gpu or "this machine"
        usable = gib(plan.memory_available)
        limit = f"of {usable} usable ({USABLE_FRACTION:.0%} of {machine})"
    yield "memory per rank", f"{gib(memory.total)} {limit}, most {MOMENTS[memory.moment]}"
    for part in PARTS:
        size = getattr(memory, part)
        if size:
            yield "", f"{gib(size):>10}  {part}"
    if memory.host:
        per_node = gib(memory.host * plan.gpus_per_node)
        yield "", f"{gib(memory.host):>10}  in host memory (optimizer), {per_node} per node"


def _time(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    if plan.tokens_per_second is None or plan.wall_hours is None or plan.gpu_hours is None:
        yield "time", f"not known: {_unknown_time(config, plan)}"
        return
    basis = "cluster.expected_mfu"
    if plan.timed_by:
        basis = f"measured by {plan.timed_by}"
    if plan.expected_mfu is not None:
        basis = f"at {plan.expected_mfu:.0%} MFU ({basis})"
    unit = "GPU" if config.cluster.gpu else "rank"
    each = plan.tokens_per_second / plan.world_size
    yield "throughput", f"{plan.tokens_per_second:,.0f} tokens/s, {each:,.0f} per {unit}, {basis}"
    digits = 0 if plan.gpu_hours >= 10 else 1
    hours = f"{plan.gpu_hours:,.{digits}f} {unit}-hours"
    yield "wall time", f"{duration(plan.wall_hours)}, {hours}, {basis}"
    if plan.jobs is not None:
        limits = plural(plan.jobs, "time limit")
        notice = _notice(config, plan)
        yield "jobs", f"{plan.jobs:,} {limits} of {config.cluster.time_min:,} min{notice}"


def _notice(config: RunConfig, plan: RunPlan) -> str:
    """A notice set by the user is kept, even if it seems too short."""
    if plan.signal_lead_s is None:
        return ""
    short = ""
    if plan.signal_lead_s < plan.notice_s:
        short = f"; it may need {plan.notice_s:,.0f} s"
    given = origin(config.cluster.signal_lead_s)
    return f", notice {plan.signal_lead_s:,} s before {given}{short}"


def _unknown_time(config: RunConfig, plan: RunPlan) -> str:
    if config.train.precision == "fp32":
        return "an MFU is a share of the bf16 peak, and this run is fp32"
    if plan.peak_tflops:
        return "needs cluster.expected_mfu"
    return "needs cluster.gpu and cluster.expected_mfu"
