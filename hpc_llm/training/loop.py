"""One attempt from start to end: resume, train step by step, save, stop when asked."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from hpc_llm.config.schema import RunConfig
from hpc_llm.data import stream
from hpc_llm.data.loader import Batches, Passes, Share, heldout_batches
from hpc_llm.model.build import build_model
from hpc_llm.planning.lengths import length_at
from hpc_llm.planning.parameters import flops_per_token
from hpc_llm.planning.plan import RunPlan
from hpc_llm.planning.schedule import learning_rate
from hpc_llm.runs import event_names
from hpc_llm.runs.heartbeat import Phase
from hpc_llm.storage.files import write_atomic
from hpc_llm.storage.patience import patiently
from hpc_llm.trackers import jsonl
from hpc_llm.trackers.open import Opening, open_trackers
from hpc_llm.training.attempt import Attempt
from hpc_llm.training.divergence import SpikeRule, data_step
from hpc_llm.training.metrics import Metrics, Pending, Readout, measured_peak_flops
from hpc_llm.training.saving import Saver
from hpc_llm.training.stop import Diverged, Flags, Outcome, StopFlag
from hpc_llm.zero.engine import Engine, gather_objects

log = logging.getLogger(__name__)


def run(
    config: RunConfig, plan: RunPlan, attempt: Attempt, device: torch.device, stop: StopFlag
) -> Outcome:
    """Resume, and train to the end of the plan or until asked to stop."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    share = Share(attempt.rank, plan.world_size, config.train.global_batch, plan.micro_batch)
    engine = Engine(config, plan, lambda: build_model(config, plan), device, attempt.rank)
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
    trackers = []
    if attempt.rank == 0:
        patiently(attempt.check_fence)
        opening = Opening(
            config, start, attempt.metrics, attempt.tracker_folder, attempt.check_fence
        )
        trackers = open_trackers(opening)
    if plan.peak_tflops:
        peak_flops = plan.peak_tflops * 1e12
    else:
        peak_flops = measured_peak_flops(device, config.train.precision)
    by_length = {length: flops_per_token(config.model, length) for _, length in plan.seq_lens}

    def flops(step: int) -> float:
        return by_length[length_at(plan.seq_lens, step - 1)]

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

    return Metrics(
        trackers,
        plan.tokens_per_step,
        flops,
        peak_flops * plan.world_size,
        SpikeRule(config.recovery.spike_threshold),
        report_slow,
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
        self.saver = Saver(config, plan, attempt, engine)

    def resume(self) -> int:
        """Load the newest checkpoint that is valid on all ranks; the steps it has done, or 0."""
        plan = self.plan
        log.info(
            "micro-batch %d, %d passes, ZeRO %d",
            plan.micro_batch,
            plan.accumulation,
            plan.zero_stage,
        )
        if plan.checkpoint_every_s is not None:
            log.info("saving every %.1f s", plan.checkpoint_every_s)
        return self.saver.resume()

    def train(self, start: int, metrics: Metrics) -> Outcome:
        """Train from step `start` to the end of the plan, or until asked to stop.

        Saves at the end either way. Diverged, SaveFailed (if even the last save failed) and Fenced
        pass through.
        """
        plan = self.plan
        _freeze_garbage_collector()
        if start in plan.rungs:
            # The last attempt may have been killed after the save, before the evaluation.
            self._evaluate(start, metrics)
            metrics.restart_clock()

        for step in range(start, plan.steps):
            done = step + 1
            if step > start and self._changes_length(step):
                self.attempt.beat(step, Phase.STARTING)  # a new shape may be compiled anew

            # --------------------------------------------------------------------------------------
            # The batch, a function of the step: the loader has read ahead, so there is no wait.
            waited_from = time.perf_counter()
            waiting = partial(self.attempt.beat, step, Phase.LOADING)
            passes = self.batches.step(data_step(step, self.attempt.skipped), waiting)
            data_wait_s = time.perf_counter() - waited_from

            # --------------------------------------------------------------------------------------
            # The step: on a GPU it is only launched here. The flags go along with a sum over ranks
            # that is made anyway.
            lr = learning_rate(self.config.optim, step, plan.steps, plan.warmup_steps)
            raised = Flags(self.stop.stop, self.stop.hold, self.saver.is_due())
            numbers = Readout(self.engine.train_step(passes, lr, raised))
            launched_at = time.perf_counter()

            # --------------------------------------------------------------------------------------
            # The numbers of the step before, which are there by now, and what all ranks agree on.
            save_wait_s = self.saver.take_wait_s()
            flags = metrics.push(Pending(done, lr, numbers, data_wait_s, save_wait_s, launched_at))
            # The second step may still compile, for longer than a hang between steps may last.
            self.attempt.beat(done, Phase.TRAINING if step > start else Phase.STARTING)
            if step == start + 1:
                _freeze_garbage_collector()  # by now everything is compiled and allocated

            # --------------------------------------------------------------------------------------
            # What is due between two steps: a save, an evaluation.
            if done < plan.steps:  # the last step's come below
                self._save_if_due(done, metrics, asked=flags.save)
                self._evaluate_if_due(done, metrics)

            # --------------------------------------------------------------------------------------
            # The end, where any rank was asked for it.
            if flags.stop:
                metrics.flush()
                self.saver.save(done, final=True)
                return Outcome.HELD if flags.hold else Outcome.STOPPED

        metrics.flush()
        # An attempt that was stopped in the last step has saved and left without an evaluation.
        if plan.steps > start or not self._is_evaluated():
            self._evaluate(plan.steps, metrics)
        self.saver.save(plan.steps, final=True)
        return Outcome.FINISHED

    def _changes_length(self, step: int) -> bool:
        lengths = self.plan.seq_lens
        return length_at(lengths, step) != length_at(lengths, step - 1)

    def explain(self, diverged: Diverged) -> None:
        """Record what the step was trained on, and the first layer to show it. Collective.

        The layer is looked for with the weights as they are now.
        """
        attempt = self.attempt
        taken = data_step(diverged.step - 1, attempt.skipped)
        where, layer = self.engine.first_not_finite(self.batches.step(taken)) or (None, None)
        if attempt.rank != 0:
            return
        patiently(attempt.check_fence)
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
            write_atomic(attempt.divergence, text)
        except OSError as error:
            log.warning("%s: %s", attempt.divergence, error.strerror)
        attempt.record(event_names.DIVERGED, attempt=attempt.number, **facts)

    def _save_if_due(self, done: int, metrics: Metrics, asked: bool) -> None:
        due = asked
        for every in (self.plan.checkpoint_every_steps, self.plan.permanent_every_steps):
            if every is not None and done % every == 0:
                due = True
        if due:
            metrics.flush()  # a loss that is not finite must show before it is saved
            self.saver.save(done, final=False)
            metrics.restart_clock()

    def _evaluate_if_due(self, done: int, metrics: Metrics) -> None:
        if done % self.plan.eval_every_steps == 0:
            metrics.flush()
            self._evaluate(done, metrics)
            metrics.restart_clock()

    def _evaluate(self, done: int, metrics: Metrics) -> None:
        self.attempt.beat(done, Phase.EVALUATING)
        loss = self.engine.evaluate(self.heldout)
        if loss is None:
            log.warning("step %d: the held-out samples have no target: no held-out loss", done)
            return
        metrics.log({"step": done, "heldout_loss": loss})
        if done in self.plan.rungs:
            rung = self.plan.rungs.index(done)
            self.attempt.record(event_names.RUNG, rung=rung, step=done, heldout_loss=loss)
        log.info("step %d/%d: held-out loss %.4f", done, self.plan.steps, loss)

    def _is_evaluated(self) -> bool:
        """Whether an earlier attempt evaluated the last step; rank 0 looks for all."""
        evaluated = self.attempt.rank == 0 and self._has_last_evaluation()
        return bool(gather_objects(evaluated)[0])

    def _has_last_evaluation(self) -> bool:
        rows = jsonl.read(self.attempt.metrics)
        return any(row["step"] == self.plan.steps and "heldout_loss" in row for row in rows)


def _freeze_garbage_collector() -> None:
    """Leave what exists now out of later collections.

    One that walks all of torch costs a few ms, at random steps.
    """
    gc.collect()
    gc.freeze()
