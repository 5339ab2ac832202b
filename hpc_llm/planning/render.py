"""The plan as a plain-text table of at most 25 lines, to be checked by an engineer before the job
is queued.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpc_llm.config.duration import parse
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import padded_rows
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.lengths import STEPS_OR_TOKENS
from hpc_llm.planning.memory import USABLE_FRACTION
from hpc_llm.planning.plan import RunPlan

LABEL_WIDTH = 16


def render(config: RunConfig, plan: RunPlan) -> str:
    """Lines of `label  value`, sizes in GiB, counts with thousands separators."""
    rows = [
        *_what(config, plan),
        *_batch(config, plan),
        *_length(config, plan),
        *_memory(config, plan),
        *_time(config, plan),
    ]
    return "\n".join(f"{label:<{LABEL_WIDTH}}{value}".rstrip() for label, value in rows)


def _what(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    model = config.model
    cluster = config.cluster
    optim = config.optim
    yield (
        "model",
        (
            f"{model.name}: {_count(plan.parameters)} parameters, "
            f"{plan.flops_per_token / 1e9:,.3g} GFLOP per token"
        ),
    )
    ranks = "rank" if plan.gpus_per_node == 1 else "ranks"
    nodes = "1 node" if plan.nodes == 1 else f"{plan.nodes} nodes"
    yield (
        "machine",
        (
            f"{cluster.name}: {nodes} × {plan.gpus_per_node} {cluster.gpu or ranks}, "
            f"{config.train.precision}"
        ),
    )
    yield (
        "optimizer",
        (
            f"{optim.name}, lr {optim.lr:g}, {optim.schedule}, warm-up {plan.warmup_steps:,} "
            f"steps{_late(plan)}"
        ),
    )
    yield (
        "data",
        f"{config.data.name}" + (f" in {plan.data_directory}" if plan.data_directory else ""),
    )
    if config.data.packing == "best_fit":
        padding = (
            "padding not known before it is packed"
            if plan.padding is None
            else f"{plan.padding:.2%} padding"
        )
        yield "", f"documents packed by best fit, {padding}"
    if config.data.sources:
        yield from _mixture(config, plan)
    elif plan.source_epochs:
        (epochs,) = plan.source_epochs.values()
        yield "", f"read {epochs:,.3g} times" if epochs > 1 else f"{epochs:.2%} of it is read"


def _mixture(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    """One line per phase with its shares, and how often each source is read."""
    for start, phase in zip(["", *config.data.mixture], plan.phases, strict=True):
        total = sum(phase.weights.values())
        shares = ", ".join(
            f"{name} {weight / total:.3g}" for name, weight in phase.weights.items() if weight
        )
        yield (
            ("mixture" if phase.start == 0 else ""),
            f"from step {phase.start:,}{_rounded(start, plan)}: {shares}",
        )
    if plan.source_epochs:
        yield (
            "",
            "epochs: "
            + ", ".join(f"{name} {epochs:.3g}" for name, epochs in plan.source_epochs.items()),
        )


def _rounded(start: str, plan: RunPlan) -> str:
    """Notes if a phase begins later than requested, at the next whole step."""
    if not start or parse(start, STEPS_OR_TOKENS).unit == "steps":
        return ""
    return (
        f" ({start}, rounded up)"
        if parse(start, STEPS_OR_TOKENS).amount % plan.tokens_per_step
        else f" ({start})"
    )


def _batch(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    train = config.train
    padded = padded_rows(train.global_batch, plan.world_size, plan.micro_batch)
    product = f"ranks {plan.world_size} × micro {plan.micro_batch} × passes {plan.accumulation}"
    note = f" − {padded} masked rows (uneven)" if padded else ""
    yield (
        "global batch",
        f"{train.global_batch:,} sequences of {train.seq_len:,} tokens = {product}{note}",
    )
    less = f", more was too much for {plan.halved_by}" if plan.halved_by else ""
    yield "micro-batch", f"{plan.micro_batch} {_origin(train.micro_batch)}{less}"
    yield "ZeRO stage", f"{plan.zero_stage} {_origin(train.zero_stage)}"
    state = "on" if plan.activation_checkpointing else "off"
    yield "act. ckpt", f"{state} {_origin(train.activation_checkpointing)}"
    yield "attention", f"{plan.attention} {_origin(train.attention)}"
    yield "compiled", f"{'yes' if plan.compile else 'no'} {_origin(train.compile)}"
    tokens = plan.micro_batch * train.seq_len
    if plan.loss_chunk is not None and (plan.loss_chunk < tokens or train.loss_chunk != "auto"):
        idle = (
            f", no fewer than a pass's {tokens:,}: no effect" if plan.loss_chunk >= tokens else ""
        )
        yield (
            "loss",
            f"logits of {plan.loss_chunk:,} tokens at once {_origin(train.loss_chunk)}{idle}",
        )


def _length(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    yield (
        "length",
        f"{plan.steps:,} steps of {plan.tokens_per_step:,} tokens = {_count(plan.tokens)} tokens",
    )
    if len(plan.seq_lens) > 1:
        lengths = ", ".join(f"{length:,} from step {start:,}" for start, length in plan.seq_lens)
        yield "", f"sequences of {lengths}"
    every = _period(plan)
    every += f" {_origin('auto')}" if config.checkpoint.every == "auto" else ""
    yield (
        "checkpoint",
        f"{_gib(plan.checkpoint_bytes)} every {every}, {config.checkpoint.keep} kept",
    )
    if plan.permanent_every_steps:
        number = plan.steps // plan.permanent_every_steps
        size = _gib(number * plan.checkpoint_bytes)
        yield (
            "",
            (
                f"one for good every {plan.permanent_every_steps:,} steps too, {number:,} in all: "
                f"{size}"
            ),
        )
    yield (
        "evaluation",
        f"every {plan.eval_every_steps:,} steps, {config.train.eval_batches} global batches",
    )
    if plan.rungs:
        yield (
            "halving",
            (
                f"best {config.halving.keep:.0%} go on at steps "
                f"{', '.join(f'{rung:,}' for rung in plan.rungs)}"
            ),
        )


def _period(plan: RunPlan) -> str:
    """The checkpoint interval; in time too, if the speed is known."""
    if plan.checkpoint_every_steps is None:
        return _hours((plan.checkpoint_every_s or 0) / 3600)
    steps = f"{plan.checkpoint_every_steps:,} steps"
    if plan.tokens_per_second is None or plan.checkpoint_every_steps > plan.steps:
        return steps
    return f"{steps} ({_hours(plan.checkpoint_every_steps * plan.tokens_per_step / plan.tokens_per_second / 3600)})"


_MOMENTS = {
    "loss": "at the loss",
    "backward": "as backward begins",
    "gradients": "as backward ends",
    "step": "in the optimizer's step",
}


def _memory(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    memory = plan.memory
    available = plan.memory_available
    limit = "of an unknown amount"
    if available is not None:
        limit = (
            f"of {_gib(available)} usable ({USABLE_FRACTION:.0%} of "
            f"{config.cluster.gpu or 'this machine'})"
        )
    yield "memory per rank", f"{_gib(memory.total)} {limit}, most {_MOMENTS[memory.moment]}"
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "buckets",
        "overhead",
    ):
        if getattr(memory, part):
            yield "", f"{_gib(getattr(memory, part)):>10}  {part}"
    if memory.host:
        yield (
            "",
            (
                f"{_gib(memory.host):>10}  in host memory (optimizer), "
                f"{_gib(memory.host * plan.gpus_per_node)} per node"
            ),
        )


def _time(config: RunConfig, plan: RunPlan) -> Iterator[tuple[str, str]]:
    if plan.tokens_per_second is None or plan.wall_hours is None or plan.gpu_hours is None:
        yield "time", "not known: " + _unknown_time(config, plan)
        return
    basis = f"measured by {plan.timed_by}" if plan.timed_by else "cluster.expected_mfu"
    if plan.expected_mfu is not None:
        basis = f"at {plan.expected_mfu:.0%} MFU ({basis})"
    each = plan.tokens_per_second / plan.world_size
    unit = "GPU" if config.cluster.gpu else "rank"
    yield "throughput", f"{plan.tokens_per_second:,.0f} tokens/s, {each:,.0f} per {unit}, {basis}"
    yield (
        "wall time",
        (
            f"{_hours(plan.wall_hours)}, {plan.gpu_hours:,.{0 if plan.gpu_hours >= 10 else 1}f} "
            f"{unit}-hours, {basis}"
        ),
    )
    if plan.jobs is not None:
        limits = "time limit" if plan.jobs == 1 else "time limits"
        yield (
            "jobs",
            f"{plan.jobs:,} {limits} of {config.cluster.time_min:,} min{_notice(config, plan)}",
        )


def _notice(config: RunConfig, plan: RunPlan) -> str:
    """A notice set by the user is kept, even if it seems too short."""
    if plan.signal_lead_s is None:
        return ""
    given = config.cluster.signal_lead_s
    short = f"; it may need {plan.notice_s:,.0f} s" if plan.signal_lead_s < plan.notice_s else ""
    return f", notice {plan.signal_lead_s:,} s before {_origin(given)}{short}"


def _unknown_time(config: RunConfig, plan: RunPlan) -> str:
    if config.train.precision == "fp32":
        return "an MFU is a share of the bf16 peak, and this run is fp32"
    return (
        "needs cluster.expected_mfu"
        if plan.peak_tflops
        else "needs cluster.gpu and cluster.expected_mfu"
    )


def _late(plan: RunPlan) -> str:
    return (
        " (longer than the run: lr never reaches its peak)"
        if plan.warmup_steps > plan.steps
        else ""
    )


def _origin(given: object) -> str:
    return "(auto)" if given == "auto" else "(given)"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / GIB:.3f} GiB"


def _hours(hours: float) -> str:
    return (
        f"{hours / 24:,.1f} days"
        if hours >= 48
        else f"{hours:,.1f} h"
        if hours >= 1
        else f"{hours * 60:,.1f} min"
    )


def _count(number: float) -> str:
    scale, unit = next(
        (s, u)
        for s, u in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1, ""))
        if number >= s or s == 1
    )
    return f"{number / scale:,.4g}{unit}" if unit else f"{number:,.0f}"
