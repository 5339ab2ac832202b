"""One rank that trains a list of cases in one process and prints what was asked of each as JSON.

`python engine_worker.py RANK WORLD_SIZE PORT CASES_JSON WHAT`; a case is [precision, zero_stage,
micro_batch, *words]. WHAT is losses: [loss, gradient norm] per step; reads: per step, how often the
host read a tensor while it was launched, how often it made one of numbers, and how often it waited
for the device; poison: the same as losses and whether the weights changed, with a loss that is no
number at step 1; graphs: after each step, how many graphs torch has compiled and why it broke one,
if it did; alive: bytes of tensors at the peak; buckets: the same as losses, with buckets of a few
elements, and when each of them began, see Began; theirs: the same as losses, with gradients summed
by DeepSpeed itself; optimizer: what the engine says that its optimizer is; or, on a GPU, syncs: per
step, where the host first waited for the device while it was launched.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_llm.config.compose import compose
from hpc_llm.config.schema import RunConfig
from hpc_llm.model.loss import IGNORED
from hpc_llm.planning.batch import accumulation, pass_rows
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.slurm.environment import RankEnvironment
from hpc_llm.training import device as devices

GLOBAL_BATCH = 8
SEQ_LEN = 16
STEPS = 4
VOCAB = 128
DEVICE = os.environ.get("ENGINE_WORKER_DEVICE", "cpu")
WORDS = [
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    f"model.vocab_size={VOCAB}",
    f"train.global_batch={GLOBAL_BATCH}",
    f"train.seq_len={SEQ_LEN}",
    f"train.duration={STEPS}steps",
    "optim=torch_adam",
    "optim.lr=0.01",
    "optim.warmup=1steps",
]


def global_batch(step: int, seq_len: int = SEQ_LEN) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets of `step`, [GLOBAL_BATCH, seq_len]; some targets masked, unevenly over the
    rows.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (GLOBAL_BATCH, seq_len + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row in range(GLOBAL_BATCH):
        targets[row, : row * 2] = IGNORED
    return tokens[:, :-1].contiguous(), targets


def plan_for(
    precision: str, stage: int, micro: int, world_size: int, *more: str
) -> tuple[RunConfig, RunPlan]:
    """The run of a case; `more` words replace those of their keys."""
    words = [
        f"train.precision={precision}",
        f"train.zero_stage={stage}",
        f"train.micro_batch={micro}",
        *more,
    ]
    given = {word.partition("=")[0] for word in words}
    kept = [word for word in WORDS if word.partition("=")[0] not in given]
    config = compose(
        [*kept, *words, f"cluster.gpus_per_node={world_size}", f"cluster.device={DEVICE}"]
    )
    return config, make_plan(config, None)


class Reads(TorchDispatchMode):
    """Counts what makes the host wait: for a device's tensor, for a copy to it, and for all that it
    has to do.
    """

    WAIT = (
        "_local_scalar_dense",
        "equal",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "unique_dim",
        "_unique2",
    )
    WAIT_ON_ITS_WAY = "lift_fresh"  # torch.tensor(number, device=…) waits for its copy

    def __init__(self) -> None:
        super().__init__()
        self.count = [0, 0, 0]
        # On a CPU it does nothing, whoever calls it; on a GPU it is torch.cuda.synchronize.
        self._waits = mock.patch.object(get_accelerator(), "synchronize", self._synchronize)

    def __enter__(self) -> Any:
        self._waits.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._waits.stop()
        super().__exit__(*error)

    def _synchronize(self, *_: Any) -> None:
        self.count[2] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count[0] += name in self.WAIT
        self.count[1] += name == self.WAIT_ON_ITS_WAY
        return func(*args, **(kwargs or {}))


class Waits(contextlib.ExitStack):
    """`first`: the stack where the host first waited for the GPU within, or nothing."""

    first = ""

    def __enter__(self) -> Any:
        torch.cuda.set_sync_debug_mode("warn")
        self.callback(torch.cuda.set_sync_debug_mode, "default")
        self.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        self.enter_context(mock.patch.object(warnings, "showwarning", self._note))
        return super().__enter__()

    def _note(self, message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            self.first = self.first or "".join(traceback.format_stack()[:-1])


class Began(contextlib.ExitStack):
    """Small buckets; `at`: how many gradients of the last pass had been summed when each began to
    be reduced.
    """

    def __enter__(self) -> Any:
        from deepspeed.runtime.zero import stage3, stage_1_and_2

        from hpc_llm.planning import model_states
        from hpc_llm.zero import gradient_sums, overlap

        self.restart()
        self.enter_context(mock.patch.object(overlap, "suits_one_owner", lambda part: True))
        self.enter_context(mock.patch.object(gradient_sums, "buckets", self._buckets))
        self.enter_context(mock.patch.object(overlap, "BUCKET", 5000))
        self.enter_context(mock.patch.object(model_states, "LEAST_BUCKET", 5000))
        self._watch(overlap.Overlap, "gradient_ready", self._sum)
        ready = "reduce_independent_p_g_buckets_and_remove_grads"
        for kind, begin in (
            (stage_1_and_2.DeepSpeedZeroOptimizer, "average_tensor"),
            (
                stage3.DeepSpeedZeroOptimizer_Stage3,
                "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads",
            ),
        ):
            self._watch(kind, ready, self._sum)
            self._watch(kind, begin, self._begin)
        return super().__enter__()

    def _sum(self) -> None:
        self.summed += 1

    def _begin(self) -> None:
        self.at.append(self.summed)

    def _buckets(self, *given: Any) -> Iterator[Any]:
        """Those of zero.overlap, each of which is noted when it begins."""
        from hpc_llm.zero import overlap

        for bucket in overlap.buckets(*given):

            def begin(bucket: overlap.Bucket = bucket) -> Any:
                self._begin()
                return bucket.begin()

            yield overlap.Bucket(begin, bucket.parameters)

    def _watch(self, kind: type, name: str, note: Callable[[], None]) -> None:
        method = getattr(kind, name)

        def noted(*given: Any, **named: Any) -> Any:
            note()
            return method(*given, **named)

        self.enter_context(mock.patch.object(kind, name, noted))

    def restart(self) -> None:
        self.summed = 0
        self.at = []  # gradients of the last pass so far, and that number when each bucket began


def _their_sums() -> Any:
    from hpc_llm.zero import gradient_sums

    return mock.patch.object(gradient_sums, "Sums", lambda optimizer: mock.Mock())


@contextlib.contextmanager
def nobody_else(place: RankEnvironment) -> Iterator[None]:
    """A group of one whose collectives are over when they return.

    A thread of Gloo holds what it has reduced until it is scheduled again: on a busy machine
    another 20 MB at the peak.
    """
    assert place.world_size == 1
    place.export(os.environ)
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    dist.destroy_process_group()


def passes_of(
    step: int, config: RunConfig, plan: RunPlan, rank: int
) -> list[tuple[torch.Tensor, ...]]:
    """This rank's part of the global batch; a short pass is filled up with masked rows.

    Where the run is packed, every row is two documents, which end elsewhere in each row and step.
    """
    length = config.train.seq_len
    tokens, targets = global_batch(step, length)
    ends = (torch.arange(GLOBAL_BATCH) + step) % (length - 1) + 1
    documents = 1 + (torch.arange(length) >= ends[:, None]).int()
    wholes = (
        (tokens, targets, documents) if config.data.packing == "best_fit" else (tokens, targets)
    )
    passes = []
    for index in range(plan.accumulation):
        start, end = pass_rows(GLOBAL_BATCH, plan.world_size, plan.micro_batch, rank, index)
        own = [torch.zeros(plan.micro_batch, length, dtype=whole.dtype) for whole in wholes]
        own[1].fill_(IGNORED)
        for part, whole in zip(own, wholes, strict=True):
            part[: end - start] = whole[start:end]
        passes.append(tuple(own))
    return passes


def main() -> None:
    rank, world_size, port = map(int, sys.argv[1:4])
    device = devices.choose_device(DEVICE, 0)
    what = sys.argv[5]
    place = RankEnvironment(rank, rank, world_size, world_size, "127.0.0.1", port)
    with nobody_else(place) if what == "alive" else devices.process_group(place, device):
        sys.path.append(str(Path(__file__).resolve().parents[2] / "tools" / "bench"))
        from alive import Alive

        from hpc_llm.model.build import build_model
        from hpc_llm.planning.schedule import learning_rate
        from hpc_llm.training.metrics import Readout
        from hpc_llm.zero.engine import Engine

        results = []
        for precision, stage, micro, *words in json.loads(sys.argv[4]):
            config, plan = plan_for(precision, stage, micro, world_size, *words)
            assert plan.accumulation == accumulation(GLOBAL_BATCH, world_size, micro)
            found: list[Any] = []
            watched: Any = {"alive": Alive, "buckets": Began, "theirs": _their_sums}.get(
                what, contextlib.nullcontext
            )()
            with watched as watching:
                models: list[Any] = []

                def make_model(
                    config: RunConfig = config, plan: RunPlan = plan, models: list[Any] = models
                ) -> Any:
                    model = build_model(config, plan)
                    models.append(model)
                    return model

                engine = Engine(config, plan, make_model, device, rank)
                for step in range(STEPS if what != "optimizer" else 0):
                    passes = passes_of(step, config, plan, rank)
                    lr = learning_rate(config.optim, step, STEPS, plan.warmup_steps)
                    before = engine.weights() if what == "poison" else {}
                    poisoned = what == "poison" and step == 1
                    hook = models[0].register_forward_hook(lambda *given: given[2] * float("nan"))
                    if not poisoned:
                        hook.remove()
                    if what == "syncs":
                        with Waits() as waits:
                            Readout(engine.train_step(passes, lr))
                        found.append(waits.first)
                        continue
                    if what == "buckets":
                        watching.restart()
                    with Reads() if what == "reads" else contextlib.nullcontext() as reads:
                        output = engine.train_step(passes, lr)
                    hook.remove()
                    losses = [
                        float(output.loss_sum) / int(output.counts[0]),
                        float(output.grad_norm),
                    ]
                    if what == "poison":
                        changed = any(
                            not torch.equal(before[name], one)
                            for name, one in engine.weights().items()
                        )
                        losses.append(changed)
                    if what == "graphs":
                        from torch._dynamo.utils import (
                            counters,
                        )  # by now: it must not be this that imports it

                        losses = [counters["stats"]["unique_graphs"], dict(counters["graph_break"])]
                    if what == "buckets":
                        losses.append([watching.summed, watching.at])
                    found.append(reads.count if reads is not None else losses)
            if what == "optimizer":
                found = [engine.optimizer_name]
            results.append([watching.peak] if what == "alive" else found)
            del engine
            gc.collect()
        if rank == 0:
            print("RESULT " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(
        0
    )  # as hpc_llm.train: a thread of the process group may outlive the interpreter and abort
