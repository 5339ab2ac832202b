"""Whatever happens to a run, and in which order: it is not started for ever, nor beyond a budget,
nor once it is over.

A run, its Slurm job and the world's events as a state machine; supervisor and watchdog are the real
decisions.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpc_llm.recovery import outside
from hpc_llm.recovery.budgets import Budgets, Ended, seconds_left
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.observations import JobAnswer, RunSummary
from hpc_llm.recovery.policy import (
    AGAIN,
    ELSEWHERE,
    FINAL,
    IN_PLACE,
    Action,
    Cluster,
    Decision,
    decide_inside,
)
from hpc_llm.slurm.records import JobLife, QueuedJob

STEPS = 400  # of the whole run
REFILL_STEPS = 4  # a hundredth of them
REFILL_S = 86400.0
NOW = 1e6
FEW = st.integers(0, 3)
RETRIED = sorted(IN_PLACE | ELSEWHERE)
SLURM_ENDS = ["PREEMPTED", "NODE_FAIL", "TIMEOUT", "FAILED", "OUT_OF_MEMORY"]
ACCOUNT = (
    ("max_crashes", (Cause.CRASH, Cause.KILLED)),
    ("max_hangs", (Cause.HANG,)),
    ("max_divergences", (Cause.DIVERGED,)),
    ("max_launch_failures", (Cause.LAUNCH_FAILED,)),
    ("max_preemptions", (Cause.PREEMPTED,)),
    ("max_out_of_memory", (Cause.OUT_OF_MEMORY,)),
    ("max_out_of_memory", (Cause.GPU_OUT_OF_MEMORY,)),
)
NODE_FAILURES = (Cause.NODE_FAILURE, Cause.ORPHANED)
CHARGED = {*NODE_FAILURES, *(cause for _, causes in ACCOUNT for cause in causes)}


class Life(RuleBasedStateMachine):
    """`job` is what squeue says: running, pending, held, ended or cancelled; `over` as the ledger
    has it.

    Every life of the job begins a while after the one before (`life_start`); `started_at` is the
    newest attempt's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Ended] = []
        self.step = 0
        self.over = ""
        self.job = "pending"
        self.state = ""
        self.began = False
        self.life_start = 0.0
        self.started_at: float | None = None
        self.charged_life: float | None = None
        self.starts_since_progress = 0
        self.cancelled = False
        # What was saved by the end of each attempt, in seconds of training and in steps; a step
        # back and forth again is none.
        self.saved: list[tuple[float, int]] = []
        self.furthest = 0

    @initialize(
        budgets=st.builds(
            Budgets,
            max_crashes=FEW,
            max_no_progress=st.integers(1, 3),
            max_gpu_hours=st.none() | st.floats(1, 10),
            max_hangs=FEW,
            max_node_failures=FEW,
            max_launch_failures=FEW,
            max_out_of_memory=FEW,
            max_divergences=FEW,
            max_preemptions=st.none() | FEW,
            steps=st.just(STEPS),
        )
    )
    def submitted(self, budgets: Budgets) -> None:
        self.budgets = budgets

    # -- the world

    @precondition(lambda self: self.job == "pending")
    @rule()
    def slurm_starts_it(self) -> None:
        self.job = "running"
        self.began = True
        self._begins_a_life()
        self.started_at = self.life_start + 5.0

    @precondition(lambda self: self.job == "pending")
    @rule()
    def a_node_fails_to_launch_it(self) -> None:
        self.job = "held"
        self._begins_a_life()

    @precondition(lambda self: self.job == "pending")
    @rule()
    def a_node_fails_before_an_attempt_begins_and_slurm_requeues_it(self) -> None:
        self.job = "requeued"
        self.state = "NODE_FAIL"
        self._begins_a_life()

    @precondition(lambda self: self.job == "pending")
    @rule()
    def the_job_starts_and_nobody_comes(self) -> None:
        self.job = "nobody"
        self._begins_a_life()

    @precondition(lambda self: self.job == "running")
    @rule(
        cause=st.sampled_from(RETRIED),
        steps=st.integers(0, 9),
        hours=st.floats(0, 3),
        bad=st.booleans(),
        enough=st.booleans(),
        days=st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    )
    def an_attempt_fails(
        self, cause: Cause, steps: int, hours: float, bad: bool, enough: bool, days: float
    ) -> None:
        cluster = Cluster(frozenset({"n1"}) if bad else frozenset(), enough)
        self._ends(cause, steps, min(hours, self._hours_left()), node="n1", days=days)
        self._follow(decide_inside(self.history, self.budgets, cluster), cause, inside=True)

    @precondition(lambda self: self.job == "running" and len(self.history) > 2)
    @rule(cause=st.sampled_from(sorted(FINAL)))
    def an_attempt_ends_for_good(self, cause: Cause) -> None:
        self._ends(cause, STEPS - self.step if cause is Cause.COMPLETED else 0, 0.1)
        self._follow(decide_inside(self.history, self.budgets), cause, inside=True)

    @precondition(lambda self: self.job == "running" and self.budgets.max_gpu_hours is not None)
    @rule()
    def its_hours_are_spent(self) -> None:
        self._ends(Cause.HOURS_SPENT, 1, self._hours_left())
        self._follow(decide_inside(self.history, self.budgets), Cause.HOURS_SPENT, inside=True)
        assert self.over

    def _hours_left(self) -> float:
        """The supervisor lets no attempt have more."""
        return seconds_left(self.history, self.budgets, 1) / 3600

    @precondition(lambda self: self.job == "running")
    @rule(
        state=st.sampled_from(SLURM_ENDS),
        steps=st.integers(0, 9),
        hours=st.floats(0, 3),
        requeue=st.booleans(),
        days=st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    )
    def slurm_takes_it_away(
        self, state: str, steps: int, hours: float, requeue: bool, days: float
    ) -> None:
        self._ends(Cause.LOST, steps, min(hours, self._hours_left()), days=days)
        self.job, self.state = ("requeued", state) if requeue else ("ended", state)

    @precondition(lambda self: self.job == "pending" and self.step > 0)
    @rule(steps=st.integers(1, 9))
    def its_newest_checkpoints_are_lost(self, steps: int) -> None:
        self.step = max(0, self.step - steps)

    @precondition(lambda self: self.job == "running")
    @rule(steps=st.integers(0, 9), hours=st.floats(0, 3))
    def nobody_is_left_in_it(self, steps: int, hours: float) -> None:
        self._ends(Cause.LOST, steps, min(hours, self._hours_left()))
        self.job = "orphan"

    @precondition(lambda self: self.job not in ("ended", "cancelled") and len(self.history) > 2)
    @rule()
    def its_user_cancels_it(self) -> None:
        if self.job == "running":
            self._ends(Cause.LOST, 0, 0.1)
        self.job = "cancelled"
        self.state = "CANCELLED"
        self.cancelled = True

    @precondition(lambda self: any(end.node for end in self.history))
    @rule()
    def the_bad_node_is_excluded(self) -> None:
        self.history = [replace(end, node_excluded=end.node is not None) for end in self.history]

    # -- the watchdog
    # --------------------------------------------------------------------------------------------

    @rule()
    def slurm_is_silent(self) -> None:
        assert (
            outside.decide_outside(self._run(), replace(self._seen(), asked=False), NOW).action
            is Action.NOTHING
        )

    @rule()
    def a_pass(self) -> None:
        seen = self._seen()
        earlier = outside.silence(self._run(), seen, NOW - 90, outside.NO_SILENCE)
        decision = outside.decide_outside(self._run(), seen, NOW, earlier)
        if decision.action is Action.NOTHING:
            return
        if decision.action in AGAIN and decision.cause is Cause.LAUNCH_FAILED:
            step = self.history[-1].checkpoint_step if self.history else 0
            self.history.append(Ended(Cause.LAUNCH_FAILED, step, step, 0.0))
            self.saved.append(self.saved[-1] if self.saved else (0.0, 0))
            self.charged_life = seen.life_start
        elif decision.cause and self.history and self.history[-1].cause is Cause.LOST:
            self.history[-1] = replace(self.history[-1], cause=decision.cause)
        self._follow(decision, decision.cause)

    def _run(self) -> RunSummary:
        return RunSummary(
            address="12",
            submitted_at=NOW - 9000,
            completed=self.over == "completed",
            final=self.over or None,
            history=self.history,
            budgets=self.budgets,
            heartbeat_at=NOW - 1 if self.job == "running" else NOW - 9000,
            began=self.began,
            started_at=self.started_at,
            charged_life=self.charged_life,
        )

    def _seen(self) -> JobAnswer:
        reason = {"held": "launch failed requeued held", "requeued": "BeginTime"}.get(
            self.job, "Priority"
        )
        runs = dict.fromkeys(("running", "orphan", "nobody"), "RUNNING")
        state = {**runs, "ended": self.state, "cancelled": "CANCELLED"}.get(self.job, "PENDING")
        start = NOW + 100 if self.job == "requeued" else self.life_start
        queued = QueuedJob("12", 12, state, reason, 1, None, start, "", "one", "/")
        last = (
            JobLife("12", 12, self.state, None, 0, 0, None, self.life_start, NOW - 10, "n1", "one")
            if self.state
            else None
        )
        return JobAnswer(True, queued, True, last)

    # -- what follows
    # --------------------------------------------------------------------------------------------

    def _ends(
        self, cause: Cause, steps: int, hours: float, node: str | None = None, days: float = 0.0
    ) -> None:
        before = self.step
        self.step = min(STEPS, self.step + steps)
        trained_s = days * REFILL_S
        self.history.append(Ended(cause, before, self.step, hours, node, trained_s=trained_s))
        seconds, saved_steps = self.saved[-1] if self.saved else (0.0, 0)
        new = max(0, self.step - max(before, self.furthest))
        if new:
            seconds += trained_s * new / (self.step - before)
        self.furthest = max(self.furthest, self.step)
        self.saved.append((seconds, saved_steps + new))
        if self.step > before:
            self.starts_since_progress = 0

    def _begins_a_life(self) -> None:
        self.life_start += 1000.0
        self.starts_since_progress += 1

    def _follow(self, decision: Decision, cause: Cause | None, *, inside: bool = False) -> None:
        """inside: it is the supervisor's, which sees the end that it decides about."""
        if decision.action in AGAIN:
            assert not self.over, f"{decision} of a run that is over"
            assert not self.cancelled, f"{decision} of a run that its user cancelled"
            self._spends_nothing_beyond_its_budgets()
            if decision.restart:
                assert inside
                self.starts_since_progress += 1
            else:
                self.job = "pending"
                self.state = ""
                self.began = self.began and decision.action is Action.EXPEDITE
            return
        if self.over == "":
            self.over = "completed" if cause is Cause.COMPLETED else str(cause or decision.action)
        if self.job != "cancelled":
            self.job = "ended"
            self.state = self.state or "FAILED"

    # -- what must hold
    # ------------------------------------------------------------------------------------------

    def _spends_nothing_beyond_its_budgets(self) -> None:
        """Asked when it is started again: what happens after that, or is found out, nobody could
        know.
        """
        budgets = self.budgets
        history = self._unforgiven()
        for name, causes in ACCOUNT:
            used = sum(end.cause in causes and not end.node_excluded for end in history)
            limit = getattr(budgets, name)
            assert limit is None or used <= limit, f"{used} of {name}={limit}"
        nodes = sum(
            end.cause in NODE_FAILURES or (end.node_excluded and end.cause in CHARGED)
            for end in history
        )
        assert nodes <= budgets.max_node_failures
        self._spends_no_more_in_all_than_progress_gives_back()
        history = self.history
        assert (
            budgets.max_gpu_hours is None
            or sum(end.gpu_hours for end in history) < budgets.max_gpu_hours
        )
        moved = [
            end.checkpoint_step > end.start_step
            for end in history
            if not self._beside_the_point(end)
        ]
        row = next((count for count, one in enumerate(reversed(moved)) if one), len(moved))
        assert row == 0 or row < budgets.max_no_progress

    def _unforgiven(self) -> list[Ended]:
        """The ends after which less than a day of training, or of a hundredth of the steps, was
        saved.
        """
        seconds, steps = self.saved[-1]
        return [
            end
            for end, (at_s, at_steps) in zip(self.history, self.saved, strict=True)
            if seconds - at_s < REFILL_S or steps - at_steps < REFILL_STEPS
        ]

    def _spends_no_more_in_all_than_progress_gives_back(self) -> None:
        seconds, steps = self.saved[-1]
        refills = min(seconds // REFILL_S, steps // REFILL_STEPS)
        for name, causes in ACCOUNT:
            limit = getattr(self.budgets, name)
            used = sum(end.cause in causes and not end.node_excluded for end in self.history)
            assert limit is None or used <= (limit + 1) * (refills + 1)

    @invariant()
    def it_is_not_started_for_ever_whatever_the_cause(self) -> None:
        """Every start without progress is charged to one of these, the first one to none."""
        if hasattr(self, "budgets"):
            most = (
                self.budgets.max_no_progress
                + self.budgets.max_launch_failures
                + self.budgets.max_node_failures
            )
            assert self.starts_since_progress <= most + 1, (
                f"{self.starts_since_progress} starts, {self.budgets}"
            )

    @staticmethod
    def _beside_the_point(end: Ended) -> bool:
        """Another budget than that for a lack of progress bounds such ends."""
        stuck = end.checkpoint_step <= end.start_step
        return stuck and (
            end.cause is Cause.LAUNCH_FAILED or (end.node_excluded and end.cause in CHARGED)
        )


Life.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=40)
TestLife = Life.TestCase
