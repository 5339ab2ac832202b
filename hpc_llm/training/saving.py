"""Coming back to a checkpoint, and saving new ones: when they are due, and what a failure means."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hpc_llm.checkpoint.errors import SaveFailed
from hpc_llm.checkpoint.manifest import FileEntry, Manifest
from hpc_llm.checkpoint.store import CheckpointStore
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.mixture import begun, check_begun
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import event_names
from hpc_llm.runs.heartbeat import Phase
from hpc_llm.storage.files import no_room
from hpc_llm.training.attempt import Attempt
from hpc_llm.zero.engine import Engine, gather_objects, versions

log = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one attempt. `store.on_published` hears of each that is saved."""

    def __init__(self, config: RunConfig, plan: RunPlan, attempt: Attempt, engine: Engine) -> None:
        self.store = CheckpointStore(
            attempt.checkpoints,
            config.checkpoint.keep,
            plan.permanent_every_steps,
            attempt.check_fence,
            attempt.number,
        )
        self._config = config
        self._plan = plan
        self._attempt = attempt
        self._engine = engine
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._wait_s = 0.0
        self._training_since = time.monotonic()

    def resume(self) -> int:
        """Load the newest checkpoint that is valid on all ranks; the steps it has done, or 0."""
        step = self._load()
        self._training_since = time.monotonic()
        return step

    def _load(self) -> int:
        attempt = self._attempt
        plan = self._plan
        beat = partial(attempt.beat, 0, Phase.STARTING)
        choice = self.store.choose(
            attempt.known_steps, attempt.rank, plan.world_size, gather_objects, beat
        )
        for step, why in choice.rejected:
            log.warning("checkpoint of step %d is not valid and is passed over: %s", step, why)
            attempt.record(event_names.CHECKPOINT_REJECTED, step=step, why=why)
        if choice.missing is not None:
            log.warning(
                "the checkpoint of step %d was saved, and is not in %s any more",
                choice.missing,
                self.store.folder,
            )
            attempt.record(event_names.CHECKPOINT_MISSING, step=choice.missing)
        if choice.manifest is None:
            log.info("starting at step 0 of %d", plan.steps)
            return 0
        step = choice.manifest.step
        check_begun(choice.manifest.phases, plan.phases, step)
        self._engine.load(self.store.folder, choice.manifest, attempt.rank, beat)
        self._saved_step = step
        log.info("going on from the checkpoint of step %d of %d", step, plan.steps)
        attempt.record(event_names.RESUMED, attempt=attempt.number, step=step)
        return step

    def is_due(self) -> bool:
        """Whether a save is due by the clock: rank 0's, which speaks for all through the flags."""
        every = self._plan.checkpoint_every_s
        if every is None or self._attempt.rank != 0:
            return False
        return time.monotonic() - self._saved_at >= every

    def take_wait_s(self) -> float:
        """How long training waited for saves since this was last asked."""
        wait_s = self._wait_s
        self._wait_s = 0.0
        return wait_s

    def save(self, done: int, final: bool) -> None:
        """Save after `done` steps, unless that is saved. Collective.

        A failure is fatal only where no later save will come: SaveFailed if `final`.
        """
        if done == self._saved_step:
            return
        begun_at = time.perf_counter()
        trained_s = time.monotonic() - self._training_since
        self._attempt.beat(done, Phase.SAVING)
        try:
            self._write(done)
        except SaveFailed as error:
            self._note_failure(done, error, final)
            if final:
                raise
        else:
            self._note_success(done, time.perf_counter() - begun_at, trained_s, final)
        self._saved_at = time.monotonic()
        self._wait_s = time.perf_counter() - begun_at

    def _write(self, done: int) -> None:
        failed = None
        if self._attempt.rank == 0:
            failed = self._begin(done)
        failed = gather_objects(failed)[0]  # no rank writes before that
        if failed is not None:
            raise SaveFailed(*failed)
        self._engine.save(self.store.folder, done, self._attempt.rank, self._publish)

    def _begin(self, done: int) -> tuple[str, bool] | None:
        """Make way on rank 0; where that fails, the words of a SaveFailed for all ranks."""
        try:
            self.store.begin(done)
        except OSError as error:
            return f"rank 0: {error.strerror or error}", no_room(error)
        return None

    def _publish(self, folder: Path, files: list[FileEntry]) -> None:
        """On rank 0, once every rank has written: the manifest makes the checkpoint exist."""
        step = int(folder.name.partition("-")[2])
        described = Manifest(
            step=step,
            tokens=step * self._plan.tokens_per_step,
            attempt=self._attempt.number,
            world_size=self._plan.world_size,
            zero_stage=self._plan.zero_stage,
            precision=self._config.train.precision,
            optimizer=self._engine.optimizer_name,
            versions=versions(),
            files=files,
            phases=begun(self._plan.phases, step),
        )
        self.store.publish(described)

    def _note_success(self, done: int, seconds: float, trained_s: float, final: bool) -> None:
        self._saved_step = done
        self._attempt.record(
            event_names.CHECKPOINTED,
            attempt=self._attempt.number,
            step=done,
            seconds=round(seconds, 3),
            trained_s=round(trained_s, 3),
            final=final,
        )
        log.info("step %d/%d: saved in %.1f s", done, self._plan.steps, seconds)
        if self._attempt.rank == 0:
            self._tidy(self.store.prune)

    def _note_failure(self, done: int, error: SaveFailed, final: bool) -> None:
        what_next = "" if final else "; trying again at the next save"
        log.error("step %d could not be saved (%s)%s", done, error, what_next)
        self._attempt.record(event_names.SAVE_FAILED, step=done, why=str(error))
        if self._attempt.rank == 0:
            self._tidy(lambda: self.store.discard(done))

    def _tidy(self, remove: Callable[[], object]) -> None:
        """What cannot be removed now is removed after a later save."""
        try:
            remove()
        except OSError as error:
            log.warning("old checkpoints stay for now: %s", error)
