"""A model and its optimizer under DeepSpeed: one exact optimizer step, saving and loading.

The other rooms meet DeepSpeed only through this Engine. What it does otherwise than DeepSpeed by
itself is listed in patches.py, and known_versions.py says for which releases that holds.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpc_llm import __version__
from hpc_llm.checkpoint.manifest import FileEntry, Manifest, folder_of
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.model.init import initialise, initialise_all
from hpc_llm.model.loss import IGNORED
from hpc_llm.model.not_finite import gradients_of, not_finite
from hpc_llm.model.transformer import Block
from hpc_llm.planning.model_states import bucket_elements
from hpc_llm.planning.plan import RunPlan
from hpc_llm.zero import clipping, optimizers, patches, reshape, start_up
from hpc_llm.zero.checkpoint_files import ManifestCheckpointEngine
from hpc_llm.zero.forward_clock import ForwardClock

log = logging.getLogger(__name__)

# Per pass tokens, targets and, where packed, documents; see data.loader.
Passes = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True)
class StepOutput:
    """Numbers of one optimizer step, the same on all ranks.

    They are tensors of the device: reading one waits for it.
    """

    loss_sum: Tensor  # fp32, over all target tokens of the global batch
    counts: Tensor  # int64 [num_targets, *flags], summed over ranks
    # int64 [world_size]: microseconds of each rank's newest known forward pass, 0: not known
    forward_us: Tensor
    grad_norm: Tensor | float  # before clipping; infinite or NaN if the step was skipped


class Engine:
    """A model that trains. All methods are collective."""

    def __init__(
        self,
        config: RunConfig,
        plan: RunPlan,
        make_model: Callable[[], nn.Module],
        device: torch.device,
        rank: int,
    ) -> None:
        patches.apply_to_process()
        self._plan = plan
        self._device = device
        self.world_size = plan.world_size
        self._zero_stage = plan.zero_stage
        self._precision = config.train.precision
        self._rank = rank
        self._grad_norm: Tensor | float = 0.0
        self._grad_clip = config.optim.grad_clip or math.inf
        settings = deepspeed_settings(config, plan)
        model = _initialised_model(config, plan, make_model, settings, rank)

        optimizer_device = "cpu" if config.optim.offloaded else device.type
        optimizer = optimizers.make(
            config.optim, list(model.named_parameters()), optimizer_device, plan.compile
        )
        package = type(optimizer).__module__.partition(".")[0]
        self.optimizer_name = f"{package}.{type(optimizer).__name__}"
        self._optimizer = optimizer
        self._clips_in_kernel = clipping.fits(optimizer)
        if self._clips_in_kernel:
            settings = {**settings, "gradient_clipping": 0.0}
            settings["bf16"] = {**settings["bf16"], "check_grad_overflow": False}
            clipping.install(optimizer, self._grad_clip, self._norm)
        self._deepspeed_clips = settings["gradient_clipping"]

        with start_up.compiling_later():
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings
            )
        patches.apply_to_engine(self._engine)
        self._forward_clock = ForwardClock(device)

    def train_step(self, passes: Passes, lr: float, flags: Sequence[bool] = ()) -> StepOutput:
        """One optimizer step over the global batch.

        `flags` come back, in StepOutput.counts, as how many ranks raised each.
        The gradient is that of (sum of losses) ÷ (global number of target tokens), whatever the
        split into ranks and passes: DeepSpeed averages over ranks, hence the factor world_size.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        num_targets = sum(int((targets != IGNORED).sum()) for _, targets, *_ in passes)
        forward_us = [0] * self.world_size
        if self._zero_stage < 3:
            forward_us[self._rank] = self._forward_clock.newest_us()
        # One sum over ranks carries all that they have to agree on.
        sums = torch.tensor([num_targets, *map(int, flags), *forward_us], dtype=torch.int64)
        sums = sums.to(self._device, non_blocking=True)
        if self.world_size > 1:
            dist.all_reduce(sums)
        counts, times = sums.split([1 + len(flags), self.world_size])
        scale = self.world_size / counts[0].clamp(min=1).float()  # a step may have no target
        loss_sum = torch.zeros((), dtype=torch.float32, device=self._device)
        for number, arrays in enumerate(passes):
            with self._forward_clock if number == 0 else contextlib.nullcontext():
                loss = self._engine(*map(self._to_device, arrays))
            self._engine.backward(loss * scale, scale_wrt_gas=False)
            if self._zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
                self._grad_norm = self._norm_at_stage_0()
            with self._step_guard():
                self._engine.step()
            loss_sum += loss.detach()
        if self.world_size > 1:
            dist.all_reduce(loss_sum)
        return StepOutput(loss_sum, counts, times, self._norm())

    def _step_guard(self) -> contextlib.AbstractContextManager[None]:
        """The context of a step, so that one whose gradient is not finite changes nothing.

        At the other stages DeepSpeed skips such a step itself, if the optimizer's kernel does not.
        """
        if self._clips_in_kernel:
            return clipping.unchecked()
        if self._zero_stage == 0 and not math.isfinite(self._grad_norm):
            return clipping.left_out(self._engine.optimizer)
        return contextlib.nullcontext()

    def _norm_at_stage_0(self) -> Tensor:
        """Norm of the gradients, which DeepSpeed would not report.

        Also clips them if the optimizer does not.
        """
        parameters = list(self._engine.module.parameters())
        if not self._clips_in_kernel:
            return torch.nn.utils.clip_grad_norm_(parameters, self._grad_clip)
        gradients = [each.grad for each in parameters if each.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _norm(self) -> Any:
        """Norm of the newest whole gradient, as in the optimizer's step."""
        norm = self._grad_norm
        if self._zero_stage > 0:
            norm = self._engine.optimizer._global_grad_norm
        if isinstance(norm, Tensor):
            # Where the norm of a group is not finite, DeepSpeed says -1.
            return torch.where(norm < 0, math.inf, norm)
        return norm

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Passes]) -> float | None:
        """Mean loss in nats per target token over the `batches` of all ranks; None without one."""
        self._engine.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for passes in batches:
            for arrays in passes:
                total[0] += self._engine(*map(self._to_device, arrays)).double().cpu()
                total[1] += int((arrays[1] != IGNORED).sum())
        self._engine.train()
        total = total.to(self._device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return float(total[0] / total[1]) if total[1] else None

    def first_not_finite(self, passes: Passes) -> tuple[str, str] | None:
        """Where some rank's `passes` are first not finite: "forward" or "backward", and the module.

        Bypasses DeepSpeed's engine, so no gradient is reduced and no step begun; none can be
        afterwards. It needs more memory than a step, for hooks and uncompiled blocks, and may not
        fit: the divergence is then reported without the module.
        """
        model = self._engine.module
        # ZeRO 3's hooks reduce without .grad.
        for hook in getattr(self._engine.optimizer, "_leaf_module_hooks", ()):
            hook.remove()
        with not_finite(model) as seen:
            try:
                for inputs in passes:
                    loss = model(*map(self._to_device, inputs))
                    gradients_of(loss / max(1, int((inputs[1] != IGNORED).sum())), model)
            except RuntimeError as error:
                log.warning("where it begins was not found: %s", str(error).partition("\n")[0])
        seen_by_rank = gather_objects((seen.forward[:1], seen.backward[:1]))
        for number, direction in enumerate(("forward", "backward")):
            for seen_there in seen_by_rank:
                for first in seen_there[number]:
                    return direction, first
        return None

    def save(
        self,
        checkpoints: Path,
        step: int,
        rank: int,
        publish: Callable[[Path, list[FileEntry]], None],
    ) -> None:
        """Write checkpoint `step`, and `publish` it on rank 0.

        SaveFailed on all ranks if any could not write its part.
        """
        self._engine.checkpoint_engine = ManifestCheckpointEngine(rank, gather_objects, publish)
        folder = folder_of(checkpoints, step)
        self._engine.save_checkpoint(str(checkpoints), tag=folder.name, save_latest=False)

    def load(
        self, checkpoints: Path, manifest: Manifest, rank: int, beat: Callable[[], None]
    ) -> None:
        """Restore weights and optimizer from a verified checkpoint.

        It may be of another world size and ZeRO stage. `beat` is called with every file.
        InputError if precision or optimizer differ, or if the stages store states differently: 1
        and 2 are alike, 0 and 3 are not.
        """
        folder = folder_of(checkpoints, manifest.step)
        vouched = {folder / entry.name for entry in manifest.files}
        written = (manifest.world_size, manifest.zero_stage, manifest.precision, manifest.optimizer)
        wanted = (self.world_size, self._zero_stage, self._precision, self.optimizer_name)
        if written[2:] != wanted[2:] or self._zero_stage not in manifest.stages:
            labels = ("ranks", "ZeRO stage", "precision", "optimizer")
            changes = [
                f"{label} {old} → {new}"
                for label, old, new in zip(labels, written, wanted, strict=True)
                if old != new
            ]
            raise InputError(
                f"checkpoint of step {manifest.step} cannot be loaded: {', '.join(changes)}; "
                "resume with the settings it was saved with "
                f"(train.zero_stage={manifest.zero_stage}; the number of ranks may change)"
            )
        if written == wanted or self._zero_stage == 0:  # at stage 0 every rank has everything
            self._load(folder, vouched, rank, beat, universal=False)
            return
        with reshape.universal(folder, rank, gather_objects, beat) as whole:
            made = set(whole.rglob("*.pt"))  # by ourselves, from files that the manifest names
            self._load(whole, made, rank, beat, universal=True)

    def _load(
        self,
        folder: Path,
        vouched: set[Path],
        rank: int,
        beat: Callable[[], None],
        universal: bool,
    ) -> None:
        reader = ManifestCheckpointEngine(rank, gather_objects, lambda *_: None)
        reader.vouched = vouched
        reader.beat = beat
        self._engine.checkpoint_engine = reader
        self._engine._config.load_universal_checkpoint = universal
        with optimizers.own_groups(self._optimizer) if universal else contextlib.nullcontext():
            self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        self._engine._config.load_universal_checkpoint = False
        if self._zero_stage > 0:
            # This run's own; DeepSpeed restores that of the attempt that saved.
            self._engine.optimizer.clip_grad = self._deepspeed_clips

    def weights(self) -> dict[str, Tensor]:
        """Full fp32-or-bf16 weights by name, on the CPU, on every rank."""
        whole = {}
        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, enabled=self._zero_stage == 3):
                whole[name] = parameter.detach().cpu().clone()
        return whole

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def _initialised_model(
    config: RunConfig,
    plan: RunPlan,
    make_model: Callable[[], nn.Module],
    settings: dict[str, Any],
    rank: int,
) -> nn.Module:
    """The model with its first weights, at ZeRO 3 in parts from its making on."""
    if plan.compile or plan.attention == "flex":
        # It cannot be imported for the first time where zero.Init has changed torch.Tensor.
        import torch._dynamo  # noqa: F401
    if plan.zero_stage < 3:
        model = make_model()
        initialise_all(model, config.model, config.run.seed)
        return model
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = make_model()
    # A block that is gathered whole has no hooks inside, each of which would break the graph.
    deepspeed.utils.set_z3_leaf_modules(model, [Block])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if rank == 0:
                initialise(name, parameter, config.model, config.run.seed)
    return model


def deepspeed_settings(config: RunConfig, plan: RunPlan) -> dict[str, Any]:
    """DeepSpeed's own configuration for this run."""
    zero: dict[str, Any] = {"stage": plan.zero_stage, "contiguous_gradients": True}
    # DeepSpeed's default buckets of 5e8 elements would dwarf a small model.
    zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = bucket_elements(plan.parameters)
    if plan.zero_stage == 2 and plan.world_size > 1:
        # Reduce while backward goes on; DeepSpeed's default at stage 3 alone.
        zero["overlap_comm"] = True
    if config.optim.offloaded:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.cluster.device != "cpu"}
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # At stage 0 DeepSpeed clips without reporting the norm, and some optimizers clip
        # themselves: see Engine.
        "gradient_clipping": config.optim.grad_clip if plan.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Stage 1 adds each gradient to its fp32 sum and frees it, instead of keeping all of them to
        # the step's end.
        "bf16": {"enabled": config.train.precision == "bf16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**62,
        # On by default, which makes the host wait for the device twice per step, for numbers that
        # are never read.
        "timers": {"throughput": {"enabled": False}},
    }


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in their order, on every rank."""
    if dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def versions() -> dict[str, Any]:
    """What wrote a checkpoint."""
    return {
        "hpc_llm": __version__,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
    }
