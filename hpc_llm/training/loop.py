"""One attempt from start to end: agree on a checkpoint, resume from it, train step by step, save,
stop when asked.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from hpc_llm.checkpoint import choose, manifest, retention
from hpc_llm.checkpoint.errors import SaveFailed
from hpc_llm.checkpoint.manifest import FileEntry, Manifest
from hpc_llm.config.schema import RunConfig
from hpc_llm.data import stream
from hpc_llm.data.loader import Batches, Passes, Share, heldout_batches
from hpc_llm.model.build import build_model
from hpc_llm.planning.lengths import length_at
from hpc_llm.planning.mixture import begun, check_begun
from hpc_llm.planning.parameters import flops_per_token
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import event_names
from hpc_llm.runs.heartbeat import Phase
from hpc_llm.storage.files import write_atomic
from hpc_llm.trackers import jsonl
from hpc_llm.trackers.jsonl import JsonlTracker
from hpc_llm.trackers.protocol import Tracker
from hpc_llm.training.divergence import SpikeRule, data_step
from hpc_llm.training.metrics import Metrics, Pending, Readout, measured_peak_flops
from hpc_llm.training.schedule import learning_rate
from hpc_llm.training.stop import Diverged, Outcome, StopFlag
from hpc_llm.zero.engine import Engine, gather_objects, versions

log = logging.getLogger(__name__)
STOP = 0
HOLD = 1
SAVE = 2  # places among the flags that the ranks agree on with every step


@dataclass(frozen=True)
class Attempt:
    """The parts of its run that an attempt may use."""

    number: int
    rank: int
    checkpoints: Path
    metrics: Path
    tensorboard: Path
    known_steps: int  # newest step that the ledger has as saved
    check_fence: Callable[[], None]  # raises if a newer attempt exists
    record: Callable[..., None]  # one ledger event; only rank 0 writes
    skipped: tuple[int, ...]  # steps of the data's order that are left out
    divergence: Path  # file for a record of what a diverged step was trained on
    beat: Callable[[int, Phase], None]  # a sign of life: steps done, and the phase that begins now


def run(
    config: RunConfig, plan: RunPlan, attempt: Attempt, device: torch.device, stop: StopFlag
) -> Outcome:
    """Resume, and train to the end of the plan or until asked to stop."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    share = Share(attempt.rank, plan.world_size, config.train.global_batch, plan.micro_batch)
    way = (plan.activation_checkpointing, plan.attention, plan.compile, plan.loss_chunk)
    engine = Engine(config, plan, lambda: build_model(config, *way), device, attempt.rank)
    data = Path(plan.data_directory)
    order = stream.training(config, plan, data, len(attempt.skipped))
    with Batches(order, share, pinned=device.type == "cuda") as batches:
        heldout = heldout_batches(stream.heldout(config, plan, data), share)
        trainer = Trainer(config, plan, attempt, engine, batches, list(heldout), stop)
        start = trainer.resume()
        metrics = open_metrics(config, plan, attempt, device, start)
        try:
            return trainer.train(start, metrics)
        except Diverged as diverged:
            trainer.explain(diverged)
            raise
        finally:
            metrics.close()


def open_metrics(
    config: RunConfig, plan: RunPlan, attempt: Attempt, device: torch.device, start: int
) -> Metrics:
    """The run's trackers on rank 0, none elsewhere; rows after step `start` are dropped."""
    trackers: list[Tracker] = []
    if attempt.rank == 0:
        attempt.check_fence()
        trackers.append(JsonlTracker(attempt.metrics, start, attempt.check_fence))
        if config.trackers.tensorboard is not None:
            from hpc_llm.trackers.tensorboard import (
                TensorboardTracker,
                treatment_of,
            )  # 0.4 s to import, on one rank

            every = config.trackers.tensorboard.every
            treatment = treatment_of(config)
            trackers.append(TensorboardTracker(attempt.tensorboard, start, every, treatment))
    peak = (
        plan.peak_tflops * 1e12
        if plan.peak_tflops
        else measured_peak_flops(device, config.train.precision)
    )
    spikes = SpikeRule(config.recovery.spike_threshold)

    def report_slow(step: int, rank: int, factor: float) -> None:
        if attempt.rank == 0:
            log.warning(
                "step %d: rank %d takes %.2f times the others' forward pass; all wait for it",
                step,
                rank,
                factor,
            )
            attempt.record(
                event_names.SLOW_RANK, attempt=attempt.number, step=step, rank=rank, factor=factor
            )

    by_length = {length: flops_per_token(config.model, length) for _, length in plan.seq_lens}

    def flops(step: int) -> float:
        return by_length[length_at(plan.seq_lens, step - 1)]

    return Metrics(
        trackers, plan.tokens_per_step, flops, peak * plan.world_size, spikes, report_slow
    )


class Trainer:
    """One attempt of a run."""

    def __init__(
        self,
        config: RunConfig,
        plan: RunPlan,
        attempt: Attempt,
        engine: Engine,
        batches: Batches,
        heldout: Sequence[Passes],
        stop: StopFlag,
    ) -> None:
        self.config = config
        self.plan = plan
        self.attempt = attempt
        self.engine = engine
        self.batches = batches
        self.heldout = heldout
        self.stop = stop
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._save_wait_s = 0.0
        self._save_failed: SaveFailed | None = None

    def resume(self) -> int:
        """Load the newest checkpoint that is valid on all ranks; the number of steps it has done, 0
        if none.
        """
        attempt = self.attempt
        plan = self.plan
        log.info(
            "micro-batch %d, %d passes, ZeRO %d",
            plan.micro_batch,
            plan.accumulation,
            plan.zero_stage,
        )
        if plan.checkpoint_every_s is not None:
            log.info("saving every %.1f s", plan.checkpoint_every_s)
        chosen = choose.newest_valid(
            attempt.checkpoints,
            attempt.known_steps,
            attempt.rank,
            self.plan.world_size,
            gather_objects,
        )
        for step, why in chosen.rejected:
            log.warning("checkpoint of step %d is not valid and is passed over: %s", step, why)
            attempt.record(event_names.CHECKPOINT_REJECTED, step=step, why=why)
        if chosen.manifest is None:
            log.info("starting at step 0 of %d", self.plan.steps)
            return 0
        check_begun(chosen.manifest.phases, plan.phases, chosen.manifest.step)
        beat = partial(attempt.beat, 0, Phase.STARTING)
        self.engine.load(attempt.checkpoints, chosen.manifest, attempt.rank, beat)
        self._saved_step = chosen.manifest.step
        log.info("going on from the checkpoint of step %d of %d", self._saved_step, self.plan.steps)
        attempt.record(event_names.RESUMED, attempt=attempt.number, step=self._saved_step)
        return self._saved_step

    def train(self, start: int, metrics: Metrics) -> Outcome:
        """Train from step `start` to the end of the plan, or until asked to stop; saves at the end
        either way.

        Diverged, SaveFailed (if even the last save failed) and Fenced pass through.
        """
        _leave_garbage()
        if (
            start in self.plan.rungs
        ):  # the last attempt may have been killed after the save, before the evaluation
            self._evaluate(start, metrics)
            metrics.restart_clock()
        for step in range(start, self.plan.steps):
            waited = time.perf_counter()
            passes = self.batches.step(data_step(step, self.attempt.skipped))
            data_wait_s = time.perf_counter() - waited
            lr = learning_rate(self.config.optim, step, self.plan.steps, self.plan.warmup_steps)
            output = self.engine.train_step(
                passes, lr, flags=(self.stop.stop, self.stop.hold, self._save_due())
            )
            numbers = Readout(output)
            launched_at = time.perf_counter()
            flags = metrics.push(
                Pending(step + 1, lr, numbers, data_wait_s, self._save_wait_s, launched_at)
            )
            self._save_wait_s = 0.0
            self.attempt.beat(step + 1, Phase.TRAINING)
            if step == start + 1:
                _leave_garbage()  # by now everything is compiled and allocated
            self._boundary(step + 1, metrics, asked_to_save=bool(flags and flags[SAVE]))
            if flags and flags[STOP]:
                metrics.flush()
                self._save(step + 1, final=True)
                return Outcome.HELD if flags[HOLD] else Outcome.STOPPED
        metrics.flush()
        if (
            self.plan.steps > start or not self._evaluated()
        ):  # stopped in the last step, it saved and left
            self._evaluate(self.plan.steps, metrics)
        self._save(self.plan.steps, final=True)
        return Outcome.FINISHED

    def explain(self, diverged: Diverged) -> None:
        """What the step was trained on, and the first layer to show it with the weights as they are
        now. Collective.
        """
        taken = data_step(diverged.step - 1, self.attempt.skipped)
        where, layer = self.engine.first_not_finite(self.batches.step(taken)) or (None, None)
        if self.attempt.rank != 0:
            return
        self.attempt.check_fence()
        facts = {
            "step": diverged.step,
            "data_step": taken,
            "layer": layer,
            "pass": where,
            "why": str(diverged),
        }
        numbers = {"loss": str(diverged.loss), "grad_norm": str(diverged.grad_norm)}
        samples = [
            {"source": source, "sample": sample} for source, sample in self.batches.samples(taken)
        ]
        text = json.dumps({**facts, **numbers, "samples": samples}, indent=2) + "\n"
        try:
            write_atomic(self.attempt.divergence, text)
        except OSError as error:
            log.warning("%s: %s", self.attempt.divergence, error.strerror)
        self.attempt.record(event_names.DIVERGED, attempt=self.attempt.number, **facts)

    def _boundary(self, done: int, metrics: Metrics, asked_to_save: bool) -> None:
        """What is due after `done` steps; the last step's is left to the end of `train`."""
        if done == self.plan.steps:
            return
        periods = (self.plan.checkpoint_every_steps, self.plan.permanent_every_steps)
        if asked_to_save or any(every is not None and done % every == 0 for every in periods):
            metrics.flush()  # a loss that is not finite must show before it is saved
            self._save(done, final=False)
            metrics.restart_clock()
        if done % self.plan.eval_every_steps == 0:
            metrics.flush()
            self._evaluate(done, metrics)
            metrics.restart_clock()

    def _evaluated(self) -> bool:
        """Whether an earlier attempt came to evaluate the last step; rank 0 looks for all."""
        found = self.attempt.rank == 0 and any(
            row["step"] == self.plan.steps and "heldout_loss" in row
            for row in jsonl.read(self.attempt.metrics)
        )
        return bool(gather_objects(found)[0])

    def _evaluate(self, done: int, metrics: Metrics) -> None:
        self.attempt.beat(done, Phase.EVALUATING)
        loss = self.engine.evaluate(self.heldout)
        metrics.log({"step": done, "heldout_loss": loss})
        if done in self.plan.rungs:
            self.attempt.record(
                event_names.RUNG, rung=self.plan.rungs.index(done), step=done, heldout_loss=loss
            )
        log.info("step %d/%d: held-out loss %.4f", done, self.plan.steps, loss)

    def _save_due(self) -> bool:
        """Rank 0's clock speaks for all, through the flags."""
        every = self.plan.checkpoint_every_s
        return (
            every is not None
            and self.attempt.rank == 0
            and time.monotonic() - self._saved_at >= every
        )

    def _save(self, done: int, final: bool) -> None:
        """Save after `done` steps, unless that is saved; a failure is fatal only where no later
        save will come.
        """
        if done == self._saved_step:
            return
        begun = time.perf_counter()
        self.attempt.beat(done, Phase.SAVING)
        if self.attempt.rank == 0:
            self.attempt.check_fence()
            retention.remove(
                manifest.folder_of(self.attempt.checkpoints, done)
            )  # left by an attempt that died
        gather_objects(None)
        try:
            self.engine.save(self.attempt.checkpoints, done, self.attempt.rank, self._publish)
        except SaveFailed as error:
            log.error(
                "step %d could not be saved (%s)%s",
                done,
                error,
                "" if final else "; trying again at the next save",
            )
            self.attempt.record(event_names.SAVE_FAILED, step=done, why=str(error))
            if self.attempt.rank == 0:
                retention.remove(manifest.folder_of(self.attempt.checkpoints, done))
            if final:
                raise
        else:
            self._saved_step = done
            seconds = time.perf_counter() - begun
            self.attempt.record(
                event_names.CHECKPOINTED,
                attempt=self.attempt.number,
                step=done,
                seconds=round(seconds, 3),
            )
            log.info("step %d/%d: saved in %.1f s", done, self.plan.steps, seconds)
            if self.attempt.rank == 0:
                keep = self.config.checkpoint.keep
                permanent = self.plan.permanent_every_steps
                retention.prune(self.attempt.checkpoints, keep, permanent)
        self._saved_at = time.monotonic()
        self._save_wait_s = time.perf_counter() - begun

    def _publish(self, folder: Path, files: list[FileEntry]) -> None:
        """On rank 0, once every rank has written: the manifest makes the checkpoint exist."""
        self.attempt.check_fence()
        step = int(folder.name.partition("-")[2])
        described = Manifest(
            step=step,
            tokens=step * self.plan.tokens_per_step,
            attempt=self.attempt.number,
            world_size=self.plan.world_size,
            zero_stage=self.plan.zero_stage,
            precision=self.config.train.precision,
            optimizer=self.engine.optimizer_name,
            versions=versions(),
            files=files,
            phases=begun(self.plan.phases, step),
        )
        manifest.publish(folder, described)


def _leave_garbage() -> None:
    """What is there now stays: collections that walk all of torch cost a few ms at random steps."""
    gc.collect()
    gc.freeze()
