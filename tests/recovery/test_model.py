"""Whatever happens to a run, and in which order: it is not started for ever, nor beyond a budget, nor once it is over.

A run, its Slurm job and the world's events as a state machine; supervisor and watchdog are the real decisions.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpc_llm.recovery import watch
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.policy import AGAIN, ELSEWHERE, FINAL, IN_PLACE, Action, Budgets, Cluster, Decision, Ended, decide
from hpc_llm.recovery.watch import JobFacts, RunFacts
from hpc_llm.slurm.records import JobLife, QueuedJob

STEPS = 40  # of the whole run
NOW = 1e6
FEW = st.integers(0, 3)
RETRIED = sorted(IN_PLACE | ELSEWHERE)
SLURM_ENDS = ["PREEMPTED", "NODE_FAIL", "TIMEOUT", "FAILED", "OUT_OF_MEMORY"]
ACCOUNT = {
    "max_crashes": (Cause.CRASH, Cause.KILLED),
    "max_hangs": (Cause.HANG,),
    "max_divergences": (Cause.DIVERGED,),
    "max_launch_failures": (Cause.LAUNCH_FAILED,),
    "max_preemptions": (Cause.PREEMPTED,),
}


class Life(RuleBasedStateMachine):
    """`job` is what squeue says: running, pending, held, ended or cancelled; `over` as the ledger has it."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Ended] = []
        self.step, self.over = 0, ""
        self.job, self.state, self.began = "pending", "", False
        self.restarted_over = False

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
        )
    )
    def submitted(self, budgets: Budgets) -> None:
        self.budgets = budgets

    # -- the world -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.job == "pending")
    @rule()
    def slurm_starts_it(self) -> None:
        self.job, self.began = "running", True
        self._starts()

    @precondition(lambda self: self.job == "pending")
    @rule()
    def a_node_fails_to_launch_it(self) -> None:
        self.job, self.began = "held", False

    @precondition(lambda self: self.job == "running")
    @rule(
        cause=st.sampled_from(RETRIED),
        steps=st.integers(0, 3),
        hours=st.floats(0, 3),
        bad=st.booleans(),
        enough=st.booleans(),
    )
    def an_attempt_fails(self, cause: Cause, steps: int, hours: float, bad: bool, enough: bool) -> None:
        cluster = Cluster(frozenset({"n1"}) if bad else frozenset(), enough)
        self._ends(cause, steps, hours, node="n1")
        self._follow(decide(self.history, self.budgets, cluster), cause)

    @precondition(lambda self: self.job == "running" and len(self.history) > 2)
    @rule(cause=st.sampled_from(sorted(FINAL)))
    def an_attempt_ends_for_good(self, cause: Cause) -> None:
        self._ends(cause, STEPS - self.step if cause is Cause.COMPLETED else 0, 0.1)
        self._follow(decide(self.history, self.budgets), cause)

    @precondition(lambda self: self.job == "running")
    @rule(state=st.sampled_from(SLURM_ENDS), steps=st.integers(0, 9), hours=st.floats(0, 3), requeue=st.booleans())
    def slurm_takes_it_away(self, state: str, steps: int, hours: float, requeue: bool) -> None:
        self._ends(Cause.LOST, steps, hours)
        self.job, self.state = ("requeued", state) if requeue else ("ended", state)

    @precondition(lambda self: self.job == "running")
    @rule(steps=st.integers(0, 9), hours=st.floats(0, 3))
    def nobody_is_left_in_it(self, steps: int, hours: float) -> None:
        self._ends(Cause.LOST, steps, hours)
        self.job = "orphan"

    @precondition(lambda self: self.job not in ("ended", "cancelled") and len(self.history) > 2)
    @rule()
    def its_user_cancels_it(self) -> None:
        if self.job == "running":
            self._ends(Cause.LOST, 0, 0.1)
        self.job, self.state = "cancelled", "CANCELLED"

    @precondition(lambda self: any(end.node for end in self.history))
    @rule()
    def the_bad_node_is_excluded(self) -> None:
        self.history = [replace(end, node_excluded=end.node is not None) for end in self.history]

    # -- the watchdog --------------------------------------------------------------------------------------------

    @rule()
    def a_pass(self) -> None:
        run = RunFacts(
            address="12",
            submitted_at=NOW - 9000,
            completed=self.over == "completed",
            final=self.over or None,
            history=self.history,
            budgets=self.budgets,
            heartbeat_at=NOW - 1 if self.job == "running" else NOW - 9000,
            began=self.began,
        )
        decision = watch.decide(run, self._seen(), NOW)
        if decision.action is Action.NOTHING:
            return
        told = watch.charged(run, decision.cause) if decision.cause else self.history
        if decision.action in AGAIN or decision.action is Action.STOP:
            self.history = list(told)
        self._follow(decision, decision.cause)

    def _seen(self) -> JobFacts:
        reason = {"held": "launch failed requeued held", "requeued": "BeginTime"}.get(self.job, "Priority")
        state = {"running": "RUNNING", "orphan": "RUNNING", "ended": self.state, "cancelled": "CANCELLED"}.get(
            self.job, "PENDING"
        )
        start = NOW + 100 if self.job == "requeued" else NOW - 8000
        queued = QueuedJob("12", 12, state, reason, 1, None, start, "", "one", "/")
        last = JobLife("12", 12, self.state, None, 0, 0, None, None, NOW - 10, "n1", "one") if self.state else None
        return JobFacts(True, queued, True, last)

    # -- what follows --------------------------------------------------------------------------------------------

    def _ends(self, cause: Cause, steps: int, hours: float, node: str | None = None) -> None:
        before, self.step = self.step, min(STEPS, self.step + steps)
        self.history.append(Ended(cause, before, self.step, hours, node))

    def _follow(self, decision: Decision, cause: Cause | None) -> None:
        if decision.action in AGAIN:
            self.restarted_over |= bool(self.over)
            if decision.restart:
                self._starts()
            else:
                self.job, self.state = "pending", ""
                self.began = self.began and decision.action not in (Action.RESUBMIT, Action.RELEASE)
            return
        if self.over == "":
            self.over = "completed" if cause is Cause.COMPLETED else str(cause or decision.action)
        if self.job != "cancelled":
            self.job, self.state = "ended", self.state or "FAILED"

    def _starts(self) -> None:
        self.restarted_over |= bool(self.over)

    # -- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def what_is_over_stays_over(self) -> None:
        assert not self.restarted_over

    @property
    def goes_on(self) -> bool:
        """Whether somebody has decided that the run trains on; what Slurm requeues by itself nobody has seen yet."""
        return bool(self.history) and not self.over and self.job in ("running", "pending")

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        for name, causes in ACCOUNT.items() if self.goes_on else ():
            used = sum(end.cause in causes and not end.node_excluded for end in self.history)
            limit = getattr(self.budgets, name)
            assert limit is None or used <= limit, f"{used} of {name}={limit}"

    @invariant()
    def it_is_not_started_for_ever_without_progress(self) -> None:
        if self.goes_on:
            moved = [end.checkpoint_step > end.start_step for end in self.history if not self._beside_the_point(end)]
            row = next((count for count, one in enumerate(reversed(moved)) if one), len(moved))
            assert row < self.budgets.max_no_progress

    @invariant()
    def hours_that_are_spent_start_nothing(self) -> None:
        if self.goes_on and self.budgets.max_gpu_hours is not None:
            assert sum(end.gpu_hours for end in self.history) < self.budgets.max_gpu_hours

    @staticmethod
    def _beside_the_point(end: Ended) -> bool:
        return end.checkpoint_step <= end.start_step and (end.node_excluded or end.cause is Cause.LAUNCH_FAILED)


Life.TestCase.settings = settings(deadline=None, max_examples=200, stateful_step_count=40)
TestLife = Life.TestCase
