"""Everything that `compare` reports about runs, as one value; and that value as JSON, CSV, Markdown
or text.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc_llm.config.errors import InputError
from hpc_llm.sweeps import judge, varied
from hpc_llm.sweeps.judge import Row, Spread, Verdict
from hpc_llm.sweeps.ladder import Ladder, ladders
from hpc_llm.sweeps.results import Result
from hpc_llm.sweeps.scaling import Interval, ScalingFit

_NAMES = {
    "heldout_loss": "held-out loss",
    "final_loss": "training loss (mean of the last 2 % of the steps)",
}

_MOST_KEYS = 6  # named in a line; --json has all


@dataclass(frozen=True)
class Report:
    """keys: what was swept; follow: other keys that differ because of those; notes: what a reader
    must know.
    """

    keys: list[str]
    follow: list[str]
    measure: str
    baseline: str
    rows: list[Row]
    verdict: Verdict
    against: str
    ladders: list[Ladder]
    incomplete: list[Result]
    notes: list[str]


def of(
    runs: Sequence[Result],
    *,
    baseline: str | None = None,
    against: str = "parameters",
    next_size: float | None = None,
) -> Report:
    """InputError if there is no run, or no such baseline."""
    if not runs:
        raise InputError("no runs to compare")
    keys, follow = varied.swept_keys(runs)
    found, repeated = varied.combinations(runs, keys)
    measure = judge.measure_of(found)
    base = judge.choose_baseline(found, baseline)
    return Report(
        keys=keys,
        follow=follow,
        measure=measure,
        baseline=base.label,
        rows=judge.rows(found, measure, base),
        verdict=judge.verdict(found, measure),
        against=against,
        ladders=ladders(found, measure, against, next_size),
        incomplete=[run for one in found for run in one.unfinished],
        notes=[
            f"{run.name}: has the values and the seed of another run and is not counted"
            for run in repeated
        ],
    )


def as_json(report: Report) -> dict[str, Any]:
    """For scripts."""
    return {
        "keys": report.keys,
        "follow": report.follow,
        "measure": report.measure,
        "baseline": report.baseline,
        "combinations": [dataclasses.asdict(row) for row in report.rows],
        "winner": dataclasses.asdict(report.verdict),
        "against": report.against,
        "ladders": [dataclasses.asdict(ladder) for ladder in report.ladders],
        "incomplete": [
            {"name": run.name, "step": run.step, "steps": run.steps} for run in report.incomplete
        ],
        "notes": report.notes,
    }


def as_csv(report: Report) -> str:
    """A line per combination, every number in full."""
    losses = ("heldout_loss", "best_loss", "final_loss")
    header = [*report.keys, "complete", "runs"]
    header += [column for loss in losses for column in (loss, f"{loss}_deviation")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*header, "p_baseline", "tokens_per_second", "gpu_hours"])
    for row in report.rows:
        spreads = [getattr(row, loss) for loss in losses]
        numbers = [
            number
            for one in spreads
            for number in ((one.mean, one.deviation) if one else (None, None))
        ]
        rest = (row.p_baseline, row.tokens_per_second, row.gpu_hours)
        table.writerow([*row.values.values(), row.complete, row.runs, *numbers, *rest])
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """A table for a paper or a README, and the findings below it."""
    header, *body = cells(report)
    numbers = len(header) - len(report.keys)
    rule = [" --- "] * len(report.keys) + [" ---: "] * numbers
    lines = ["|" + "|".join(rule) + "|"]
    table = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in (header, *body)
    ]
    return "\n".join(
        [table[0], *lines, *table[1:], "", *(f"- {line}" for line in findings(report))]
    )


def as_text(report: Report) -> str:
    """For a terminal."""
    table = cells(report)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join([*lines, "", *findings(report)])


def cells(report: Report) -> list[list[str]]:
    """The header and a line per combination."""
    header = [*(varied.short(key) for key in report.keys), "runs", "held-out", "best", "final"]
    lines = [[*header, "p vs baseline", "tokens/s", "GPU-hours"]]
    for row in report.rows:
        base = "baseline" if row.label == report.baseline else _number(row.p_baseline, ".2g")
        runs = str(row.complete) if row.complete == row.runs else f"{row.complete} of {row.runs}"
        losses = [_spread(row.heldout_loss), _spread(row.best_loss), _spread(row.final_loss)]
        rest = [base, _number(row.tokens_per_second, ",.0f"), _number(row.gpu_hours, ".3g")]
        lines.append([*(str(value) for value in row.values.values()), runs, *losses, *rest])
    return lines


def findings(report: Report) -> list[str]:
    """What the numbers say, in sentences."""
    said = []
    verdict = report.verdict
    by = f"by {_NAMES[report.measure]}, mean ± deviation over seeds"
    if not report.keys:
        said.append(
            f"{report.rows[0].complete} complete runs that differ in nothing but their seed: no "
            "winner to name"
        )
    elif verdict.winner is None:
        said.append(f"no winner: {verdict.why}")
    elif verdict.significant:
        said.append(f"winner: {verdict.winner} ({by}): {verdict.why}")
    else:
        said.append(
            f"lowest: {verdict.winner} ({by}), which is not shown to be a winner: {verdict.why}"
        )
    for ladder in report.ladders:
        of = f" of {ladder.label}" if ladder.label else ""
        said += [f"scaling{of}: {_law(ladder.fit, report.against) if ladder.fit else ladder.why}"]
    said += [
        f"not complete, left out of the losses: {run.name} (step {run.step} of {run.steps})"
        for run in report.incomplete
    ]
    if report.follow:
        more = (
            f" and {len(report.follow) - _MOST_KEYS} more"
            if len(report.follow) > _MOST_KEYS
            else ""
        )
        said.append(
            "differ too, and follow from the swept keys: "
            f"{', '.join(report.follow[:_MOST_KEYS])}{more}"
        )
    return said + report.notes


def _law(fit: ScalingFit, against: str) -> str:
    unit = "N" if against == "parameters" else "C"
    offset = f"{_interval(fit.c)} + " if fit.c else ""
    at = f"{fit.next_size:.3g} {'parameters' if against == 'parameters' else 'FLOPs'}"
    return (
        f"L({unit}) = {offset}{fit.a.value:.4g}·{unit}^−b, b = {_interval(fit.b)}, "
        f"through {len(fit.sizes)} sizes within {fit.residual:.2%}; predicts "
        f"{_interval(fit.next_loss)} at {at} (95 %)"
    )


def _interval(one: Interval) -> str:
    return f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]"


def _spread(one: Spread | None) -> str:
    if one is None:
        return "-"
    return f"{one.mean:.4f}" + (f" ± {one.deviation:.4f}" if one.deviation is not None else "")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
