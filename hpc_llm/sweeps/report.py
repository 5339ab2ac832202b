"""Everything that `compare` reports about runs, as one value.

And that value as JSON, CSV, Markdown or text.
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
_LOSSES = ("heldout_loss", "best_loss", "final_loss")
_MOST_KEYS = 6  # named in a line; --json has all


@dataclass(frozen=True)
class Report:
    """What is known of the runs, and what it says."""

    keys: list[str]  # that were swept
    follow: list[str]  # other keys that differ because of those
    measure: str
    baseline: str
    rows: list[Row]
    verdict: Verdict
    against: str
    ladders: list[Ladder]
    incomplete: list[Result]
    notes: list[str]  # what a reader must know


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
    combinations, repeated = varied.combinations(runs, keys)
    measure = judge.measure_of(combinations)
    base = judge.choose_baseline(combinations, baseline)
    incomplete = []
    for combination in combinations:
        incomplete += combination.unfinished
    notes = []
    for run in repeated:
        notes.append(f"{run.name}: has the values and the seed of another run and is not counted")
    return Report(
        keys=keys,
        follow=follow,
        measure=measure,
        baseline=base.label,
        rows=judge.rows(combinations, measure, base),
        verdict=judge.verdict(combinations, measure),
        against=against,
        ladders=ladders(combinations, measure, against, next_size),
        incomplete=incomplete,
        notes=notes,
    )


def as_json(report: Report) -> dict[str, Any]:
    """For scripts."""
    incomplete = []
    for run in report.incomplete:
        incomplete.append({"name": run.name, "step": run.step, "steps": run.steps})
    return {
        "keys": report.keys,
        "follow": report.follow,
        "measure": report.measure,
        "baseline": report.baseline,
        "combinations": [dataclasses.asdict(row) for row in report.rows],
        "winner": dataclasses.asdict(report.verdict),
        "against": report.against,
        "ladders": [dataclasses.asdict(ladder) for ladder in report.ladders],
        "incomplete": incomplete,
        "notes": report.notes,
    }


def as_csv(report: Report) -> str:
    """A line per combination, every number in full."""
    header = [*report.keys, "complete", "runs"]
    for loss in _LOSSES:
        header += [loss, f"{loss}_deviation"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*header, "p_baseline", "tokens_per_second", "gpu_hours"])
    for row in report.rows:
        line = [*row.values.values(), row.complete, row.runs]
        for loss in _LOSSES:
            spread = getattr(row, loss)
            if spread is None:
                line += [None, None]
            else:
                line += [spread.mean, spread.deviation]
        table.writerow([*line, row.p_baseline, row.tokens_per_second, row.gpu_hours])
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """A table for a paper or a README, and the findings below it."""
    header, *body = cells(report)
    num_numbers = len(header) - len(report.keys)
    rule = [" --- "] * len(report.keys) + [" ---: "] * num_numbers
    lines = [_markdown_line(header), f"|{'|'.join(rule)}|"]
    for line in body:
        lines.append(_markdown_line(line))
    lines.append("")
    for finding in findings(report):
        lines.append(f"- {finding}")
    return "\n".join(lines)


def _markdown_line(line: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in line]
    return f"| {' | '.join(escaped)} |"


def as_text(report: Report) -> str:
    """For a terminal."""
    table = cells(report)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
        padded = "  ".join(map(str.ljust, line, widths))
        lines.append(padded.rstrip())
    return "\n".join([*lines, "", *findings(report)])


def cells(report: Report) -> list[list[str]]:
    """The header and a line per combination."""
    header = [*map(varied.short, report.keys), "runs", "held-out", "best", "final"]
    lines = [[*header, "p vs baseline", "tokens/s", "GPU-hours"]]
    for row in report.rows:
        runs = str(row.runs)
        if row.complete < row.runs:
            runs = f"{row.complete} of {row.runs}"
        p = _number(row.p_baseline, ".2g")
        if row.label == report.baseline:
            p = "baseline"
        line = [*map(str, row.values.values()), runs]
        line += [_spread(row.heldout_loss), _spread(row.best_loss), _spread(row.final_loss)]
        line += [p, _number(row.tokens_per_second, ",.0f"), _number(row.gpu_hours, ".3g")]
        lines.append(line)
    return lines


def findings(report: Report) -> list[str]:
    """What the numbers say, in sentences."""
    sentences = [_winner(report)]
    for ladder in report.ladders:
        shared = f" of {ladder.label}" if ladder.label else ""
        sentences.append(f"scaling{shared}: {_law_of(ladder, report.against)}")
    for run in report.incomplete:
        sentences.append(
            f"not complete, left out of the losses: {run.name} (step {run.step} of {run.steps})"
        )
    if report.follow:
        keys = ", ".join(report.follow[:_MOST_KEYS])
        if len(report.follow) > _MOST_KEYS:
            keys += f" and {len(report.follow) - _MOST_KEYS} more"
        sentences.append(f"differ too, and follow from the swept keys: {keys}")
    return sentences + report.notes


def _winner(report: Report) -> str:
    verdict = report.verdict
    by = f"by {_NAMES[report.measure]}, mean ± deviation over seeds"
    if not report.keys:
        return (
            f"{report.rows[0].complete} complete runs that differ in nothing but their seed: no "
            "winner to name"
        )
    if verdict.winner is None:
        return f"no winner: {verdict.why}"
    if verdict.significant:
        return f"winner: {verdict.winner} ({by}): {verdict.why}"
    return f"lowest: {verdict.winner} ({by}), which is not shown to be a winner: {verdict.why}"


def _law_of(ladder: Ladder, against: str) -> str:
    if ladder.fit is None:
        return str(ladder.why)
    return _law(ladder.fit, against)


def _law(fit: ScalingFit, against: str) -> str:
    symbol = "C"
    unit = "FLOPs"
    if against == "parameters":
        symbol = "N"
        unit = "parameters"
    offset = f"{_interval(fit.c)} + " if fit.c else ""
    return (
        f"L({symbol}) = {offset}{fit.a.value:.4g}·{symbol}^−b, b = {_interval(fit.b)}, "
        f"through {len(fit.sizes)} sizes within {fit.residual:.2%}; predicts "
        f"{_interval(fit.next_loss)} at {fit.next_size:.3g} {unit} (95 %)"
    )


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.deviation is None:
        return f"{spread.mean:.4f}"
    return f"{spread.mean:.4f} ± {spread.deviation:.4f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
