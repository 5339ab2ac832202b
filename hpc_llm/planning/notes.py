"""What a run may do and hardly anybody means: said in its plan and at its submission."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.planning.quantities import count

# Text read up to four times is nearly as good as new text, and past about sixteen times hardly
# anything is left to learn from it (Muennighoff et al. 2023, arXiv 2305.16264).
MANY_EPOCHS = 16
# Of data=stdlib: 12 MB of Python at four bytes a token, whatever the version.
DEMO_TOKENS = 3_000_000


def notes(config: RunConfig, plan: RunPlan) -> Iterator[str]:
    """One sentence for each, with the keys that change it."""
    if plan.warmup_steps > plan.steps:
        yield (
            f"optim.warmup={config.optim.warmup}: {plan.warmup_steps:,} steps, longer than the "
            f"run's {plan.steps:,}: lr never reaches optim.lr={config.optim.lr:g}"
        )
    yield from _repeated(config, plan)


def _repeated(config: RunConfig, plan: RunPlan) -> Iterator[str]:
    """Sources that are read more often than they can teach."""
    duration = f"train.duration={config.train.duration}"
    for name, epochs in plan.source_epochs.items():
        if epochs > MANY_EPOCHS:
            yield f"{duration} reads {name} {rounded(epochs)} times: give more text, or less of it"
    demo = demo_epochs(config, plan)
    if demo is not None and demo > MANY_EPOCHS:
        yield (
            f"data=stdlib is a try-out of some {count(DEMO_TOKENS)} tokens, and {duration} reads "
            f"it about {rounded(demo)} times: give text of your own (data=files data.source=DIR)"
        )


def demo_epochs(config: RunConfig, plan: RunPlan) -> float | None:
    """About how often the run reads data=stdlib before that is prepared; None of other data."""
    if plan.source_epochs or config.data.name != "stdlib":
        return None
    return plan.tokens / DEMO_TOKENS


def rounded(epochs: float) -> str:
    """Three digits without an exponent."""
    if epochs < 10:
        return f"{epochs:.2f}"
    if epochs < 100:
        return f"{epochs:.1f}"
    return f"{epochs:,.0f}"
