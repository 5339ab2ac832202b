"""What a person sees of a local run: a live line, the end, and what to type next."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpc_llm.config import hints
from hpc_llm.config.printable import printable, steered
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import RunPlan
from hpc_llm.recovery.causes import Cause
from hpc_llm.runs import event_names, ledger
from hpc_llm.runs.entries import End, end_of
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.story import read_story

_PLAIN_EVERY_S = 10.0  # between lines where no terminal can redraw one
_ERROR_LINES = 12  # the end of a traceback


class Show:
    """Follows metrics.jsonl and the ledger of one run.

    It draws on a terminal, and prints lines elsewhere.
    """

    def __init__(self, layout: RunLayout, plan: RunPlan) -> None:
        self.layout = layout
        self.plan = plan
        self.stopping = False
        self._console = Console(highlight=False, file=steered(sys.stdout))
        self._rows: list[dict[str, Any]] = []
        self._offset = 0
        self._printed_at = time.monotonic()
        self._printed_step = 0
        self._told_stopping = False
        self._seen_events = 0.0
        self._progress: Progress | None = None

    def header(self, config: RunConfig) -> None:
        """One line on what is about to run and where."""
        plan = self.plan
        self._seen_events = time.time()
        self._say(
            f"{config.model.name}: {plan.parameters / 1e6:,.1f} M parameters, {plan.steps:,} "
            f"steps of {plan.tokens_per_step:,} tokens, {config.optim.name}, "
            f"ZeRO-{plan.zero_stage}, {config.train.precision}, ranks {plan.world_size} × "
            f"micro-batch {plan.micro_batch} × passes {plan.accumulation}"
        )
        self._say(f"run directory: {self.layout.path}")

    def __enter__(self) -> Show:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._task = self._progress.add_task("starting", total=self.plan.steps)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update()
        if self._progress is not None:
            self._progress.stop()

    def update(self) -> None:
        """Read what is new and show it."""
        self._read_rows()
        if self.stopping and not self._told_stopping:
            self._told_stopping = True
            self._say("stopping: saving at the next step; once more leaves at once")
        for event in ledger.read(self.layout.ledger):
            if event.time > self._seen_events:
                self._seen_events = event.time
                self._show_event(event)
        last = self._last_row_with("loss")
        if last is None:
            return
        text = self._line(last)
        if self._progress is not None:
            self._progress.update(self._task, completed=last["step"], description=text)
        else:
            self._print_step(last, text)

    def _print_step(self, row: dict[str, Any], text: str) -> None:
        """A line for a step, now and then, and for the last one."""
        step = row["step"]
        plan = self.plan
        if time.monotonic() - self._printed_at < _PLAIN_EVERY_S and step != plan.steps:
            return
        if step != self._printed_step:
            left_s = (plan.steps - step) * plan.tokens_per_step / row["tokens_per_second"]
            self._say(f"step {step}/{plan.steps}  {text}  {left_s:.0f} s left")
        self._printed_at = time.monotonic()
        self._printed_step = step

    def complete(self) -> bool:
        """Whether the run has reached its end before."""
        return read_story(self.layout.ledger).has_reached(self.plan.steps)

    def summary(self) -> None:
        """Held-out loss against what knowing the frequencies of tokens alone would give."""
        self._read_rows()
        row = self._last_row_with("heldout_loss")
        if row is not None and self.plan.unigram_entropy is not None:
            self._say(
                f"held-out loss {row['heldout_loss']:.3f} nats per token after step "
                f"{row['step']:,}; unigram entropy of the corpus {self.plan.unigram_entropy:.3f}"
            )

    def ending(self, status: int, argv: list[str]) -> None:
        """How it ended and what to type next."""
        if status == 0:
            self.summary()
            self._say(f"complete: {self.layout.path}")
            self._say("next:")
            if self.layout.tensorboard.exists():
                shown = hints.command("status", str(self.layout.path), "--tensorboard")
                self._say(f"  {shown}")
            self._say(
                f"  {_submit(longer(argv, self.layout.name, 2 * self.plan.steps))}      "
                "# goes on, to twice as many steps"
            )
            return
        self._explain_newest()
        self._say(f"go on with: {_submit(argv)}")

    def _explain_newest(self) -> None:
        """Why the last attempt ended.

        Where its supervisor died, nobody says so, and the end of an earlier attempt is not its.
        """
        story = read_story(self.layout.ledger).since_submission()
        number = story.newest_attempt
        newest_end = None
        for end in story.ends:
            if end.attempt == number and end.name == event_names.ENDED:
                newest_end = end
        if newest_end is not None:
            self._explain(newest_end)
        elif number:
            log = self.layout.supervisor_log(number)
            self._say(
                f"attempt {number} was left by its supervisor, which died or was killed; its "
                f"log: {log}"
            )

    def _explain(self, end: End) -> None:
        rank = end.first_failed
        if end.cause == Cause.HOURS_SPENT:
            self._say(f"  {end.why}: give it more to go on")
        self._say(
            f"{end.cause} in attempt {end.attempt}; newest checkpoint: step {end.checkpoint_step}"
        )
        if rank is None or end.attempt is None:
            return
        log = self.layout.rank_log(end.attempt, rank)
        if end.cause == Cause.KILLED:
            self._say(
                f"  rank {rank} got SIGKILL from outside: the host ran out of memory, or "
                "somebody's hand"
            )
        else:
            for line in _error_lines(log):
                self._say(f"  {line}")
        self._say(f"{end.why}; all of rank {rank}: {log}")

    def _show_event(self, event: ledger.Event) -> None:
        facts = event.facts
        if event.event == event_names.RESUMED:
            self._say(f"going on from the checkpoint of step {facts['step']}")
        elif event.event == event_names.CHECKPOINT_REJECTED:
            self._say(
                f"checkpoint of step {facts['step']} is not valid and is passed over: "
                f"{facts['why']}"
            )
        elif event.event == event_names.CHECKPOINT_MISSING:
            self._say(f"checkpoint of step {facts['step']} was saved and is not there any more")
        elif event.event == event_names.SAVE_FAILED:
            self._say(f"step {facts['step']} could not be saved: {facts['why']}")
        elif event.event == event_names.ENDED and facts["restart"]:
            self._explain(end_of(event))

    def _line(self, row: dict[str, Any]) -> str:
        evaluated = self._last_row_with("heldout_loss")
        heldout = ""
        if evaluated is not None:
            heldout = f"  held-out {evaluated['heldout_loss']:.3f}"
        return (
            f"loss {row['loss']:.3f}{heldout}  {row['tokens_per_second']:,.0f} tokens/s  MFU "
            f"{row['mfu']:.1%}"
        )

    def _last_row_with(self, key: str) -> dict[str, Any] | None:
        for row in reversed(self._rows):
            if key in row:
                return row
        return None

    def _read_rows(self) -> None:
        path = self.layout.metrics
        if not path.exists():
            return
        if path.stat().st_size < self._offset:  # cut back to a checkpoint
            self._rows = []
            self._offset = 0
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._rows.append(json.loads(line))
                except ValueError:
                    # Cut back and grown again since: the offset lies inside another line.
                    self._rows = []
                    self._offset = 0
                    break
                self._offset += len(line)

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)
        sys.stdout.flush()


def longer(argv: Sequence[str], name: str, steps: int) -> list[str]:
    """The same arguments, with which the run `name` goes on until step `steps`."""
    kept = []
    for word in argv:
        key = word.lstrip("+").partition("=")[0]
        if key not in ("run.name", "train.duration"):
            kept.append(word)
    return [*kept, f"run.name={name}", f"train.duration={steps}steps"]


def _submit(argv: Sequence[str]) -> str:
    return hints.command("submit", *argv)


def _error_lines(log: Path) -> list[str]:
    """The last lines of a rank's log from its first error on; without one, its last eight."""
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    first = max(0, len(lines) - 8)
    for number, line in enumerate(lines):
        if " ERROR " in line:
            first = number
            break
    return lines[first:][-_ERROR_LINES:]
