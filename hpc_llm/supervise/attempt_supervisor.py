"""Supervises one attempt: its ranks from start to end, and what is written and decided about it.

Standard library only.
"""

from __future__ import annotations

import time

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.planning.experience import Limit, Speed
from hpc_llm.recovery.budgets import seconds_left
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import Action, Cluster, Decision, decide_inside
from hpc_llm.runs import event_names, ledger, wake
from hpc_llm.runs.experience import Remembered, steady_tokens_per_second
from hpc_llm.runs.layout import RootLayout
from hpc_llm.runs.ledger import Event, SupervisorLedger
from hpc_llm.runs.story import Story
from hpc_llm.supervise.attempt import RunAttempt
from hpc_llm.supervise.ending import AttemptEnd, Ending, bad_nodes, judge, report_evidence
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.step_watch import StepWatch
from hpc_llm.supervise.steps import StepEnd, StepSpec, failed_start
from hpc_llm.supervise.waiting import Waiting


class AttemptSupervisor:
    """One attempt in one place, from its start to the last word about it in the ledger."""

    def __init__(self, attempt: RunAttempt, place: Place, waiting: Waiting) -> None:
        self._attempt = attempt
        self._place = place
        self._waiting = waiting
        self._patiently = waiting.patiently
        self._book = SupervisorLedger(
            attempt.layout.ledger, f"supervisor-{attempt.number:04d}", waiting.sleep
        )

    def run(self) -> tuple[Cause, Decision]:
        """Train; why that ended, and what was decided about it."""
        attempt = self._attempt
        began = time.time()
        start_step = self._patiently(self._newest_step)
        now = time.monotonic()
        story = self._patiently(self._story)
        until = now + self._seconds_left(story, start_step)
        self._book.write(
            event_names.STARTED,
            attempt=attempt.number,
            checkpoint_step=start_step,
            **self._place.facts(),
        )
        attempt.say_now(
            f"attempt {attempt.number}: {attempt.plan.world_size} ranks from step {start_step}"
        )
        # Read again: where clocks differ a submission knows its first attempt by the job's number,
        # which is in the ledger only since this attempt has started.
        micro_batch = attempt.micro_batch(self._patiently(self._story))
        watch = StepWatch(attempt, self._place, self._book, self._waiting.signals)
        step_end = self._train(attempt.step_spec(self._place, micro_batch), watch, until)
        gpu_hours = round((time.time() - began) / 3600 * attempt.held_gpus, 6)
        ending = self._patiently(lambda: judge(step_end, watch, self._place, attempt))
        end = self._patiently(lambda: self._end(ending, gpu_hours, micro_batch, start_step))
        decision = self._patiently(lambda: self.decide(end))
        attempt.say_now(
            f"{end.cause}, exit codes by rank {step_end.exit_codes}; {decision.why}",
        )
        if ending.failure:
            attempt.say(ending.failure.text)
        self.conclude(end, decision)
        return end.cause, decision

    def _newest_step(self) -> int:
        return newest_step(self._attempt.layout.checkpoints)

    def _story(self, *news: Event) -> Story:
        """What the ledger, and `news` that are not in it yet, tell the attempt now."""
        return self._attempt.story([*ledger.read(self._attempt.layout.ledger), *news])

    def _seconds_left(self, story: Story, start_step: int) -> float:
        """Until run.max_gpu_hours is spent, which a run that never fails would not notice."""
        attempt = self._attempt
        history = attempt.history(story, start_step)
        return seconds_left(history, attempt.budgets, attempt.held_gpus)

    def _train(self, spec: StepSpec, watch: StepWatch, until: float) -> StepEnd:
        """The ranks of the attempt, from their start to their end."""
        try:
            step = self._place.start(spec, self._attempt.fence, self._attempt.log)
        except OSError as error:
            return failed_start(spec, error)
        return watch.until_done(step, until, self._waiting.sleep)

    def _end(
        self, ending: Ending, gpu_hours: float, micro_batch: int, start_step: int
    ) -> AttemptEnd:
        """`ending`, with what it left, and what the next attempts should know of it."""
        number = self._attempt.number
        newest = self._newest_step()
        if ending.cause is Cause.FENCED:  # the metrics may be another attempt's, of another plan
            return AttemptEnd(number, ending, newest, gpu_hours)
        smaller = self._remember(ending.cause, micro_batch, start_step)
        halved = smaller is not None and smaller < micro_batch
        return AttemptEnd(number, ending, newest, gpu_hours, smaller, halved)

    def _remember(self, cause: Cause, micro_batch: int, start_step: int) -> int | None:
        """Note for later runs what this attempt has shown: its speed, and what was too much.

        The micro-batch for the attempts to come, half of this one's, where a GPU had too little
        memory for it.
        """
        layout = self._attempt.layout
        plan = self._attempt.plan
        known = Remembered(
            RootLayout.of(layout), self._attempt.config, plan.attention, plan.compile
        )
        speed = steady_tokens_per_second(layout, start_step)
        if speed:
            known.note_speed(plan.mode, micro_batch, Speed(speed, plan.world_size, layout.name))
        if cause is not Cause.GPU_OUT_OF_MEMORY:
            return None
        smaller = max(1, micro_batch // 2)
        known.note_limit(plan.mode, Limit(smaller, layout.name))
        return smaller

    def decide(self, end: AttemptEnd) -> Decision:
        """What to do after `end`, by all that the ledger and the evidence against nodes say now."""
        attempt = self._attempt
        story = self._story(Event(time.time(), event_names.ENDED, "", end.facts()))
        fenced = end.cause is Cause.FENCED and attempt.fence.tripped()
        if not fenced:  # what was seen of a fenced attempt is not to be relied on
            report_evidence(end.ending, story, self._place.hosts, attempt)
        history = attempt.history(story, end.checkpoint_step)
        bad = bad_nodes(attempt.layout, attempt.config.recovery)
        lost = set(bad)
        if history[-1].node is not None:
            lost.add(history[-1].node)
        enough = self._place.outlives_nodes and self._place.enough_without(lost)
        decision = decide_inside(history, attempt.budgets, Cluster(bad, enough))
        if self._place.time_is_up(self._waiting.signals):
            return decision.elsewhere()
        return decision

    def conclude(self, end: AttemptEnd, decision: Decision) -> None:
        """Write `end` down, and have the run started elsewhere where that was decided."""
        signals = self._waiting.signals
        ends_here = self._place.got_final_signal(signals)
        if end.cause is Cause.LOST or (ends_here and end.cause is not Cause.COMPLETED):
            return  # Slurm tells better than we why this attempt ended
        if end.cause is Cause.COMPLETED:
            self._complete(end)
            return
        restart = decision.restart and not signals
        self._book.write(
            event_names.ENDED,
            **end.facts(),
            restart=restart,
            action=decision.action.value,
            why=decision.why,
        )
        if end.cause is Cause.HOURS_SPENT:
            job = self._place.facts().get("job")
            self._book.write(
                event_names.GIVEN_UP,
                why=decision.why,
                job=job,
                after_attempt=self._attempt.number,
            )
        if restart and decision.nodes:
            self._book.write(
                event_names.EXCLUDED, nodes=list(decision.nodes), why="left out of this allocation"
            )
            self._place.leave_out(decision.nodes)
        if decision.action in (Action.REQUEUE, Action.REQUEUE_EXCLUDING):
            self._start_elsewhere(decision)

    def _complete(self, end: AttemptEnd) -> None:
        steps = self._attempt.plan.steps
        self._book.write(event_names.ENDED, **end.facts(), restart=False)
        self._book.write(event_names.COMPLETED, attempt=end.number, steps=steps)
        self._place.finished(self._attempt.layout)

    def _start_elsewhere(self, decision: Decision) -> None:
        """By the job that waits for this one's end, or by a requeue. Not behind the fence."""
        layout = self._attempt.layout
        fence = self._attempt.fence
        if self._patiently(fence.tripped):
            return
        excluding = decision.action is Action.REQUEUE_EXCLUDING
        if excluding and self._place.hand_to_successor(layout, self._book):
            return
        how = self._place.requeue(fence)
        if how:
            self._book.write(event_names.REQUEUED, attempt=self._attempt.number, how=how)
            wake.wake_watchdog(layout)
