"""Keeps one run alive in its place: attempt after attempt, until it is done, stopped or out of
budget.

`python -m hpc_llm.supervise RUN_DIR`, in the run's code snapshot: by `submit` on this machine, or
as the batch shell of a Slurm job. Standard library only, so that it starts on any node and outside
any container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hpc_llm.checkpoint.manifest import newest_step
from hpc_llm.planning.experience import Limit, Speed
from hpc_llm.recovery import look
from hpc_llm.recovery.causes import Cause
from hpc_llm.recovery.history import attempts_since_submission
from hpc_llm.recovery.policy import (
    Action,
    Budgets,
    Cluster,
    Decision,
    Ended,
    decide_inside,
    exhausted,
    seconds_left,
)
from hpc_llm.runs import attempts, event_names, freeze, ledger, orders, wake
from hpc_llm.runs.experience import Remembered, steady_tokens_per_second
from hpc_llm.runs.layout import RootLayout, RunLayout
from hpc_llm.runs.orders import ExitCode
from hpc_llm.runs.story import fold
from hpc_llm.storage.files import append_line, restrict_access
from hpc_llm.storage.locks import held_by_us
from hpc_llm.storage.parent import die_with_parent
from hpc_llm.storage.patience import patiently
from hpc_llm.supervise.ending import Ending, bad_nodes, bear_witness, judge
from hpc_llm.supervise.place import Place
from hpc_llm.supervise.step_watch import StepWatch
from hpc_llm.supervise.steps import StepEnd, StepSpec, never_started

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
HEARTBEAT_S = 10.0
T = TypeVar("T")
BUSY = 75  # exit status where another supervisor holds the run (EX_TEMPFAIL)


class Supervisor:
    """One run's attempts in one place."""

    def __init__(self, run_dir: Path, place: Place) -> None:
        self.layout = RunLayout(run_dir.absolute())
        self.place = place
        self.config, self.plan = freeze.read_config(self.layout), freeze.read_plan(self.layout)
        self.signals: list[int] = []
        self._gpus = self.config.cluster.held_gpus

    def run(self) -> int:
        """Attempts until the policy says stop; the exit status of the run."""
        restrict_access(self.config.run.group)
        ours = (
            held_by_us(self.layout.lock) if self.place.exclusive else contextlib.nullcontext(True)
        )
        with self._signals_into_pipe(), ours as alone:
            if not alone:
                print(f"{self.layout.path}: {attempts.TRAINED_ELSEWHERE}", file=sys.stderr)
                return BUSY
            if self._over():
                return 0
            number: int | None = self._patiently(lambda: attempts.claim(self.layout))
            while number is not None:
                cause, decision = self._attempt(number)
                if not decision.restart or self.signals:
                    return self._leave(cause)
                number = self._after(number)
            return self._leave(Cause.FENCED)

    def _over(self) -> bool:
        """Whether there is nothing left to do: for a job that Slurm has queued again, also where
        the run was ended.
        """
        record = self._patiently(lambda: look.read_record(self.layout))
        if record.facts.completed or not self.place.restarts:
            return record.facts.completed
        spent = exhausted(record.facts.history, record.facts.budgets)
        if spent and record.facts.final is None:
            ledger.Ledger(self.layout.ledger, f"supervisor-{os.getpid()}").write(
                event_names.GIVEN_UP, why=spent
            )
        return bool(spent) or record.facts.final is not None

    def _leave(self, cause: Cause) -> int:
        """The exit status; where Slurm is about to requeue the job, once it says so."""
        if (
            cause not in (Cause.COMPLETED, Cause.FENCED)
            and not self._place_ends()
            and self.place.going()
        ):
            while not self._place_ends() and self.place.going() is not False:
                self._sleep(HEARTBEAT_S)
        return _exit_status(cause)

    def _after(self, number: int) -> int | None:
        """The number of a restart in this place; None where another has taken it, and with it the
        run.
        """
        try:
            return self._patiently(lambda: attempts.follow(self.layout, number))
        except attempts.Fenced as error:
            _say(self.layout.supervisor_log(number), f"{_now()} {error}")
            return None

    def _attempt(self, number: int) -> tuple[Cause, Decision]:
        book = ledger.SupervisorLedger(self.layout.ledger, f"supervisor-{number:04d}", self._sleep)
        log = self.layout.supervisor_log(number)
        began = time.time()
        step_before = self._patiently(lambda: newest_step(self.layout.checkpoints))
        until = time.monotonic() + self._patiently(lambda: self._seconds_left(number, step_before))
        book.write(
            event_names.STARTED, attempt=number, checkpoint_step=step_before, **self.place.facts()
        )
        _say(
            log, f"{_now()} attempt {number}: {self.plan.world_size} ranks from step {step_before}"
        )
        spec = self._patiently(lambda: self._spec(number))
        vigil = StepWatch(self.layout, self.place, self.config.recovery, book, number, self.signals)
        end = self._train(spec, number, log, vigil, until)
        hours = (time.time() - began) / 3600 * self._gpus
        ending = self._patiently(lambda: self._judge(number, end, vigil))
        ended = {
            "attempt": number,
            **ending.facts(),
            "checkpoint_step": self._patiently(lambda: newest_step(self.layout.checkpoints)),
            "gpu_hours": round(hours, 6),
        }
        if (
            ending.cause is not Cause.FENCED
        ):  # the metrics may be another attempt's, of another plan
            self._patiently(lambda: self._remember(ended, ending.cause, step_before))
        decision = self._patiently(lambda: self._decide(ended))
        _say(log, f"{_now()} {ending.cause}, exit codes by rank {end.exit_codes}; {decision.why}")
        if ending.failure:
            _say(log, ending.failure.text)
        self._conclude(book, ended, ending.cause, decision)
        return ending.cause, decision

    def _train(
        self, spec: StepSpec, number: int, log: Path, vigil: StepWatch, until: float
    ) -> StepEnd:
        """The ranks of an attempt, from their start to their end."""
        try:
            step = self.place.start(spec, attempts.Fence(self.layout, number), log)
        except OSError as error:
            return never_started(spec, error)
        return vigil.keep(step, until, self._sleep)

    def _judge(self, number: int, end: StepEnd, vigil: StepWatch) -> Ending:
        """What ended the attempt; a newer one is reason enough, whatever became of ranks that Slurm
        has given up.
        """
        if attempts.Fence(self.layout, number).tripped():
            return Ending(Cause.FENCED, end, None, None)
        ending = judge(
            self.layout,
            number,
            end,
            hang=vigil.hang,
            let_go=vigil.let_go or self._told_in_vain(end),
            in_slurm=not self.place.parental,
            outlives_nodes=self.place.outlives_nodes,
            signals=self.signals,
            hours_spent=vigil.hours_spent,
            hosts=self.place.hosts,
            world_size=self.plan.world_size,
            steps=self.plan.steps,
        )
        bear_witness(self.layout, number, ending, self.place.hosts, self.plan.world_size)
        return ending

    def _told_in_vain(self, end: StepEnd) -> bool:
        """Whether ranks died of a SIGTERM before they listened to it, and the job is not being
        ended: by a person's.
        """
        unheard = end.first_failed is None and -signal.SIGTERM in end.exit_codes.values()
        return unheard and not self.place.going()

    def _conclude(
        self, book: ledger.Ledger, ended: dict[str, Any], cause: Cause, decision: Decision
    ) -> None:
        """Write the end down, and have the run started elsewhere where that was decided."""
        if cause is Cause.LOST or (self._place_ends() and cause is not Cause.COMPLETED):
            return  # Slurm tells better than we why this attempt ended
        if cause is Cause.COMPLETED:
            book.write(event_names.ENDED, **ended, restart=False)
            book.write(event_names.COMPLETED, attempt=ended["attempt"], steps=self.plan.steps)
            self.place.finished(self.layout)
            return
        restart = decision.restart and not self.signals
        book.write(
            event_names.ENDED,
            **ended,
            restart=restart,
            action=decision.action.value,
            why=decision.why,
        )
        if cause is Cause.HOURS_SPENT:
            book.write(event_names.GIVEN_UP, why=decision.why)
        if restart and decision.nodes:
            book.write(
                event_names.EXCLUDED, nodes=list(decision.nodes), why="left out of this allocation"
            )
            self.place.leave_out(decision.nodes)
        fence = attempts.Fence(self.layout, ended["attempt"])
        elsewhere = decision.action in (Action.REQUEUE, Action.REQUEUE_EXCLUDING)
        if not elsewhere or self._patiently(fence.tripped):
            return
        if decision.action is Action.REQUEUE_EXCLUDING and self.place.hand_over(self.layout, book):
            return
        if how := self.place.come_back(fence):
            book.write(event_names.REQUEUED, attempt=ended["attempt"], how=how)
            wake.wake_watchdog(self.layout)

    def _seconds_left(self, number: int, newest_checkpoint: int) -> float:
        """Until run.max_gpu_hours is spent, which a run that never fails would not notice."""
        history = self._history(number, ledger.read(self.layout.ledger), newest_checkpoint)
        return seconds_left(history, Budgets.of(self.config.run, self.config.recovery), self._gpus)

    def _history(
        self, number: int, events: Sequence[ledger.Event], newest_checkpoint: int
    ) -> list[Ended]:
        """The attempts up to `number` of the submission that it is of."""
        ours = _up_to(number, events)
        return attempts_since_submission(
            fold(ours), newest_checkpoint, self.plan.world_size, self._gpus
        )

    def _decide(self, ended: dict[str, Any]) -> Decision:
        events = [
            *ledger.read(self.layout.ledger),
            ledger.Event(time.time(), event_names.ENDED, "", ended),
        ]
        history = self._history(ended["attempt"], events, ended["checkpoint_step"])
        bad = bad_nodes(self.layout, self.config.recovery)
        failed = {node for node in [history[-1].node] if node is not None}
        enough = self.place.outlives_nodes and self.place.enough_without(bad | failed)
        decision = decide_inside(
            history, Budgets.of(self.config.run, self.config.recovery), Cluster(bad, enough)
        )
        return decision.elsewhere() if self.place.time_is_up(self.signals) else decision

    def _sleep(self, seconds: float, files: Sequence[int] = ()) -> None:
        """Until a signal, a child's end, a readable file, the next heartbeat, or `seconds`."""
        ready, _, _ = select.select([self._wake, *files], [], [], min(HEARTBEAT_S, seconds))
        if self._wake in ready:
            os.read(self._wake, 4096)
        with contextlib.suppress(OSError):
            self.layout.heartbeat.touch()

    def _patiently(self, action: Callable[[], T]) -> T:
        """What `action` gives once the file system lets it: whatever the ranks survive, their
        supervisor does too.
        """
        return patiently(action, self._sleep)

    def _place_ends(self) -> bool:
        return any(self.place.ends_with(number) for number in self.signals)

    def _micro_batch(self, number: int) -> int:
        """Sequences per rank and pass: the plan's, or what an attempt left that had too little GPU
        memory.

        Of this submission's attempts alone: the plan of a later one may be for larger GPUs, and has
        been made with what is remembered of the same ones.
        """
        story = fold(_up_to(number, ledger.read(self.layout.ledger))).since_submission()
        smaller = [end.micro_batch for end in story.ends if end.micro_batch is not None]
        return min([self.plan.micro_batch, *smaller])

    def _remember(self, ended: dict[str, Any], cause: Cause, first_step: int) -> None:
        """What this attempt has shown, for the attempts to come and the next runs alike.

        What was too much for a GPU is halved.
        """
        plan = self.plan
        way = (self.plan.zero_stage, self.plan.activation_checkpointing)
        known = Remembered(RootLayout.of(self.layout), self.config, plan.attention, plan.compile)
        micro_batch = self._micro_batch(ended["attempt"])
        if speed := steady_tokens_per_second(self.layout, first_step):
            known.note_speed(*way, micro_batch, Speed(speed, plan.world_size, self.layout.name))
        if cause is Cause.GPU_OUT_OF_MEMORY:
            ended["micro_batch"] = max(1, micro_batch // 2)
            ended["halved"] = ended["micro_batch"] < micro_batch
            known.note_limit(*way, Limit(ended["micro_batch"], self.layout.name))

    def _spec(self, number: int) -> StepSpec:
        world_size = self.plan.world_size
        cluster = self.config.cluster
        ranks_here = world_size // max(1, len(self.place.hosts))
        cores = len(os.sched_getaffinity(0)) // ranks_here
        command = [cluster.python or sys.executable, "-m", "hpc_llm.train", str(self.layout.path)]
        told = orders.RankOrders(
            attempt=number,
            micro_batch=self._micro_batch(number),
            rendezvous=f"{self.layout.path}/{number}",
            supervisor=os.getpid() if self.place.parental else None,
            hold=not self.place.parental,
        )
        return StepSpec(
            command=[*cluster.wrapper, *command],
            directory=self.layout.code,
            environment={**cluster.exports, **told.export()},
            world_size=world_size,
            threads_per_rank=cluster.threads_per_rank or cluster.cpus_per_gpu or max(1, cores),
            log=lambda rank: self.layout.rank_log(number, rank),
        )

    @contextlib.contextmanager
    def _signals_into_pipe(self) -> Iterator[None]:
        """Signals only note themselves and wake the loop through a pipe."""
        self._wake, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda got, _: self.signals.append(got))
        if orders.PARENT in os.environ:  # after the handlers: the parent may be dead already
            die_with_parent(int(os.environ[orders.PARENT]), signal.SIGTERM)
        yield


def _up_to(number: int, events: Sequence[ledger.Event]) -> list[ledger.Event]:
    """What attempt `number` goes by: a submission or an attempt that came later is none of its
    business.
    """
    return [
        event
        for event in events
        if event.facts.get("after_attempt", 0) < number and event.facts.get("attempt", 0) <= number
    ]


def _say(log: Path, text: str) -> None:
    """A line for people; without effect where it cannot be written."""
    with contextlib.suppress(OSError):
        append_line(log, text)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _exit_status(cause: Cause) -> int:
    if cause is Cause.COMPLETED:
        return 0
    if cause is Cause.CONFIG_ERROR:
        return 2
    return int(ExitCode.STOPPED) if cause is Cause.STOPPED else 1
