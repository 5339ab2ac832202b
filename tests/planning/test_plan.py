"""From a configuration to its numbers, or to all that is wrong with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import pytest

from hpc_llm.config import checks
from hpc_llm.config.compose import compose_all
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.batch import accumulation
from hpc_llm.planning.choice import choose
from hpc_llm.planning.data_facts import DataFacts
from hpc_llm.planning.experience import Experience, Limit, Speed
from hpc_llm.planning.hardware import GIB
from hpc_llm.planning.plan import RunPlan, make_plan
from hpc_llm.planning.refusal import suggestions
from hpc_llm.planning.step_mode import StepMode
from tests.configs import make_config, presets, slurm_clusters

DATA = DataFacts(
    directory="/data/x",
    tokens=1_000_000,
    heldout_tokens=10_000,
    vocab_size=4096,
    unigram_entropy=6.5,
)


def plan(
    *words: str, data: DataFacts | None = None, memory_available: int | None = None
) -> RunPlan:
    return make_plan(make_config(*words), data, memory_available=memory_available)


def problems(*words: str, data: DataFacts | None = None) -> list[str]:
    with pytest.raises(InputError) as raised:
        plan(*words, data=data)
    return raised.value.problems


def test_mpt_7b_on_64_gpus() -> None:
    found = plan("model=mpt-7b", "cluster=a100x64")
    assert (found.world_size, found.nodes, found.gpus_per_node) == (64, 8, 8)
    assert found.micro_batch * found.accumulation * found.world_size == 1024
    assert (found.zero_stage, found.activation_checkpointing) == (1, False)
    assert (found.steps, found.tokens_per_step, found.tokens) == (
        63_900,
        1024 * 2048,
        63_900 * 1024 * 2048,
    )
    assert (found.warmup_steps, found.eval_every_steps, found.checkpoint_every_steps) == (
        100,
        500,
        500,
    )
    assert found.memory_available is not None
    assert found.memory.total <= found.memory_available < 80 * GIB
    assert found.peak_tflops == 312
    assert found.gpu_hours == pytest.approx(
        found.flops_per_token * found.tokens / (312e12 * 0.5) / 3600
    )
    assert found.wall_hours is not None
    assert found.wall_hours * 64 == pytest.approx(found.gpu_hours)
    assert found.jobs == 7


def test_the_published_run_takes_the_published_time() -> None:
    """MPT-7B: 440 A100-40GB, 1 T tokens, about 9.5 days, 2,769 tokens/s/GPU from start to end."""
    found = plan("experiment=mpt-7b")
    assert (found.world_size, found.micro_batch * found.accumulation) == (440, 4)
    assert found.wall_hours == pytest.approx(9.5 * 24, rel=0.03)
    assert found.tokens_per_second == pytest.approx(440 * 2769, rel=0.03)
    assert found.tokens >= 10**12


@pytest.mark.parametrize("name", presets("experiment"))
def test_every_experiment_has_a_plan(name: str) -> None:
    for config in compose_all([f"experiment={name}", "-m"]):
        assert make_plan(config, None).steps > 0


NOTHING_FITS = {
    ("mpt-7b-storywriter-65k", "a100x440")
}  # one sequence's activations are 31 of a GPU's 40 GiB


@pytest.mark.parametrize("cluster", slurm_clusters())
@pytest.mark.parametrize("model", presets("model"))
def test_every_preset_plans_or_is_refused_with_a_remedy_that_works(
    model: str, cluster: str
) -> None:
    config = replace(
        make_config(f"model={model}"), cluster=make_config(f"cluster={cluster}").cluster
    )
    config = replace(config, train=replace(config.train, global_batch=2048))
    assert not checks.problems(config)
    try:
        found = make_plan(config, None)
    except InputError as error:
        remedy = "choose a smaller model" if (model, cluster) in NOTHING_FITS else "these fit: `"
        assert all(remedy in problem for problem in error.problems)
    else:
        assert found.memory_available is None or found.memory.total <= found.memory_available


@pytest.mark.parametrize(
    "words",
    [
        ("model=mpt-30b", "cluster=a100x8", "train.micro_batch=8"),
        ("model=mpt-70b", "cluster=a100x8"),
        ("model=mpt-70b", "cluster=a100x8", "train.zero_stage=2"),
        ("model=mpt-13b", "cluster=a100x8", "train.zero_stage=1"),
        ("model=mpt-7b", "cluster=a100x8", "train.zero_stage=1", "train.micro_batch=40"),
        (
            *("model=mpt-13b", "cluster=a100x8", "train.zero_stage=2"),
            *("train.activation_checkpointing=false", "train.micro_batch=2"),
        ),
        ("model=mpt-30b", "cluster=a100x440", "train.zero_stage=2", "train.micro_batch=4"),
        (
            "model=mpt-1b",
            "cluster=h100x8",
            "train.micro_batch=32",
            "train.activation_checkpointing=false",
        ),
        (
            "model=mpt-7b",
            "cluster=a100x8",
            "optim=cpu_adam",
            "train.zero_stage=1",
            "train.micro_batch=64",
        ),
        ("model=mpt-13b", "cluster=a100x8", "optim=fused_lion", "train.zero_stage=1"),
        ("model=mpt-70b", "cluster=h100x8", "train.precision=fp32", "train.zero_stage=0"),
    ],
)
def test_suggested_settings_fit_when_they_are_typed(words: tuple[str, ...]) -> None:
    (problem,) = problems(*words)
    assert " GiB more than the " in problem
    found = problem.partition("these fit: ")[2].split("`")[1::2]
    assert found
    for text in found:
        typed = plan(*words, *text.split())
        assert typed.memory_available is not None
        assert typed.memory.total <= typed.memory_available


@pytest.mark.parametrize(
    ("optimizer", "host"),
    [("fused_adam", "cpu_adam"), ("torch_adam", "cpu_adam"), ("fused_lion", "cpu_lion")],
)
def test_offloading_that_is_suggested_keeps_the_mathematics(optimizer: str, host: str) -> None:
    (problem,) = problems(
        "model=mpt-13b", "cluster=a100x8", "train.zero_stage=1", f"optim={optimizer}"
    )
    assert f"`optim={host}" in problem
    assert "optim=" not in problem.replace(f"optim={host}", "")


def test_the_suggested_number_of_nodes_is_the_least() -> None:
    config = make_config("model=mpt-70b", "cluster=a100x8")
    usable = int(79.1 * GIB * 0.92)
    nodes = next(
        int(s.overrides.split("=")[1])
        for s in suggestions(config, usable)
        if "nodes" in s.overrides
    )
    fewer = replace(config, cluster=replace(config.cluster, nodes=nodes - 1))
    assert choose(fewer, usable) is None


def test_a_machine_without_any_fitting_setting_says_so() -> None:
    with pytest.raises(
        InputError, match=r"neither ZeRO-3, offloading nor a rank per sequence fits"
    ):
        make_plan(make_config("model=mpt-70b", "cluster=a100x8"), None, memory_available=2 * GIB)


def test_measured_memory_goes_before_the_named_gpu() -> None:
    roomy = plan("model=mpt-7b", "cluster=a100x64", memory_available=200 * GIB)
    assert roomy.memory_available == int(200 * GIB * 0.92)
    assert roomy.micro_batch > plan("model=mpt-7b", "cluster=a100x64").micro_batch


def test_settings_that_the_user_fixed_are_kept() -> None:
    words = ("train.zero_stage=3", "train.micro_batch=3", "train.activation_checkpointing=true")
    found = plan("model=mpt-1b", "cluster=a100x64", *words)
    assert (found.zero_stage, found.micro_batch, found.activation_checkpointing) == (3, 3, True)
    assert found.accumulation == 3  # 8 rows per rank: 3 + 3 + 2


@pytest.mark.parametrize(
    ("batch", "expected"), [(8, (2, 1)), (16, (4, 1)), (19, (5, 1)), (64, (8, 2)), (68, (6, 3))]
)
def test_on_a_cpu_rows_per_rank_are_the_micro_batch_up_to_8(
    batch: int, expected: tuple[int, int]
) -> None:
    found = plan("cluster=local-slurm", f"train.global_batch={batch}")
    assert (found.micro_batch, found.accumulation) == expected
    assert found.memory_available is found.wall_hours is found.gpu_hours is found.jobs is None


def test_the_same_batch_at_any_number_of_ranks() -> None:
    for nodes in range(1, 20):
        config = make_config("model=mpt-125m", "cluster=a100x8")
        found = make_plan(replace(config, cluster=replace(config.cluster, nodes=nodes)), None)
        assert found.tokens_per_step == 256 * 2048
        assert found.accumulation == accumulation(256, found.world_size, found.micro_batch)


def test_fp32_may_run_at_stage_0_and_has_no_share_of_the_bf16_peak() -> None:
    found = plan("model=mpt-125m", "cluster=a100x8", "train.precision=fp32", "train.zero_stage=0")
    assert found.zero_stage == 0
    assert found.wall_hours is found.peak_tflops is None


def test_epochs_are_counted_in_the_tokens_of_the_data() -> None:
    found = plan("train.duration=2ep", data=DATA)
    assert found.steps == -(-2_000_000 // found.tokens_per_step)
    assert (found.data_directory, found.unigram_entropy) == ("/data/x", 6.5)


def test_epochs_are_exact_where_samples_are_counted() -> None:
    """Two epochs of 4,000 packed rows take more positions than the text has tokens."""
    counted = replace(DATA, source_tokens={"stdlib": 1_000_000}, samples={"stdlib": 4_000})
    found = plan("train.duration=2ep", "train.global_batch=16", "train.seq_len=256", data=counted)
    assert (found.steps, found.source_epochs) == (500, {"stdlib": 2.0})


def test_epochs_of_unprepared_data_name_the_command_that_prepares() -> None:
    (problem,) = problems("train.duration=2ep")
    assert problem.startswith("train.duration='2ep': ")
    assert "prepare data=stdlib first" in problem


@pytest.mark.parametrize(
    ("word", "steps", "seconds"),
    [
        ("500steps", 500, None),
        ("1e6tok", 245, None),
        ("90s", None, 90.0),
        ("20min", None, 1200.0),
        ("2h", None, 7200.0),
    ],
)
def test_checkpoints_come_by_steps_tokens_or_time(
    word: str, steps: int | None, seconds: float | None
) -> None:
    found = plan(f"checkpoint.every={word}", "checkpoint.permanent_every=2e6tok")
    assert (found.checkpoint_every_steps, found.checkpoint_every_s) == (steps, seconds)
    assert found.permanent_every_steps == 489


def test_all_mistakes_are_told_at_once() -> None:
    found = problems(
        "model=mpt-7b",
        "cluster=a100x8",
        "train.duration=4800 bananas",
        "optim.warmup=2ep",
        "train.eval_every=5min",
        "checkpoint.every=-3steps",
        "cluster.gpu=a100-90gb",
        "train.global_batch=4",
        "cluster.signal_lead_s=600",
        "cluster.time_min=10",
        "run.name='two words'",
    )
    keys = {problem.partition("=")[0] for problem in found}
    assert keys == {
        *("train.duration", "optim.warmup", "train.eval_every", "checkpoint.every", "cluster.gpu"),
        *("train.global_batch", "cluster.signal_lead_s", "run.name"),
    }
    assert "train.duration='4800 bananas': a number and its unit: 4800steps, 1e9tok, 2ep" in found
    assert next(p for p in found if p.startswith("cluster.gpu=")).startswith(
        "cluster.gpu='a100-90gb': one of a100-80gb"
    )


GH200 = ("model=mpt-7b", "cluster=a100x8", "cluster.gpu=gh200")


def test_a_gpu_that_is_not_in_the_table_may_be_described() -> None:
    found = plan(*GH200, "cluster.gpu_memory_gib=94.5", "cluster.gpu_peak_tflops=989")
    assert found.memory_available == int(0.92 * int(94.5 * GIB))
    assert found.peak_tflops == 989
    smaller = plan(*GH200[:2], "cluster.gpu_memory_gib=63.4")  # an A100 of another size
    assert (smaller.peak_tflops, smaller.memory_available) == (312, int(0.92 * int(63.4 * GIB)))


def test_a_gpu_that_is_described_in_part_or_without_a_name_is_refused() -> None:
    (line,) = problems(*GH200, "cluster.gpu_memory_gib=94.5")
    assert (
        line.startswith("cluster.gpu='gh200': one of ")
        and "give cluster.gpu_memory_gib and" in line
    )
    (line,) = problems("cluster=local-slurm", "cluster.gpu_peak_tflops=989")
    assert line == (
        "cluster.gpu_memory_gib, cluster.gpu_peak_tflops: have an effect with cluster.gpu=NAME "
        "alone"
    )
    (line,) = problems("cluster.expected_mfu=0.4")
    assert line == "cluster.expected_mfu=0.4: has an effect with cluster.gpu=NAME alone"


@pytest.mark.parametrize(
    ("rungs", "said"),
    [
        ("[1000steps,4096000tok]", None),
        ("[1500steps]", "rungs lie at evaluations, every 1000 steps (train.eval_every)"),
        (
            "[2000steps,1000steps]",
            "increasing, above 0 and before the run's end (10000 steps) are expected",
        ),
        ("[10000steps]", "increasing, above 0 and before the run's end (10000 steps) are expected"),
    ],
)
def test_rungs_lie_at_evaluations_before_the_end(rungs: str, said: str | None) -> None:
    words = (
        "cluster=local-slurm",
        "run.sweep=s",
        "train.duration=10000steps",
        "train.eval_every=1000steps",
    )
    words += (f"halving.rungs={rungs}", "train.seq_len=256", "train.global_batch=8")
    if said is None:
        assert plan(*words).rungs == [1000, 2000]
    else:
        assert problems(*words) == [f"halving.rungs={rungs.strip('[]')}: {said}"]


@dataclass(frozen=True)
class _Halved(Experience):
    most: int

    def limit(self, mode: StepMode) -> Limit | None:
        return Limit(self.most, "first") if mode == StepMode(1, False) else None


@pytest.mark.parametrize(("most", "expected"), [(16, 15), (7, 5), (3, 3), (1, 1)])
def test_a_micro_batch_stays_below_what_failed_and_wastes_no_rows_for_it(
    most: int, expected: int
) -> None:
    words = ("model=mpt-125m", "cluster=a100x8", "train.global_batch=120", "train.zero_stage=1")
    found = make_plan(make_config(*words), None, experience=_Halved(most))
    assert (found.micro_batch, found.halved_by) == (expected, None if most == 16 else "first")
    given = make_plan(make_config(*words, "train.micro_batch=15"), None, experience=_Halved(most))
    assert (given.micro_batch, given.halved_by) == (15, None)


class _Timed(Experience):
    def speed(self, mode: StepMode, micro_batch: int) -> Speed | None:
        return Speed(80_000.0, 8, "first")


@pytest.mark.parametrize(("cluster", "mfu"), [("a100x64", True), ("local-slurm", False)])
def test_times_are_those_that_a_run_alike_has_shown_scaled_to_the_ranks(
    cluster: str, mfu: bool
) -> None:
    config = make_config("model=mpt-125m", f"cluster={cluster}")
    found = make_plan(config, None, experience=_Timed())
    speed = 10_000.0 * found.world_size
    assert (found.tokens_per_second, found.timed_by) == (speed, "first")
    assert found.wall_hours == pytest.approx(found.tokens / speed / 3600)
    if mfu:
        assert found.peak_tflops and found.expected_mfu
        peak = found.peak_tflops * 1e12 * found.world_size
        assert found.expected_mfu == pytest.approx(speed * found.flops_per_token / peak)
    else:
        assert found.expected_mfu is None


@pytest.mark.parametrize(
    "word", ["train.global_batch=0", "train.micro_batch=0", "model.d_model=0", "cluster.nodes=0"]
)
def test_sizes_of_zero_are_refused_not_divided_by(word: str) -> None:
    assert any(problem.startswith(word) for problem in problems("cluster=local-slurm", word))


def test_a_micro_batch_larger_than_a_ranks_rows_is_refused() -> None:
    (problem,) = problems("cluster=local-slurm", "train.micro_batch=5")
    assert problem.startswith("train.micro_batch=5: at most 4, ")


def test_bf16_at_stage_0_is_refused_once() -> None:
    (problem,) = problems("train.zero_stage=0")
    assert problem.startswith("train.zero_stage=0: ")


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    (problem,) = problems(data=replace(DATA, vocab_size=5000))
    assert problem.startswith("model.vocab_size=4096: at least 5000, ")
    assert "model.vocab_size=5120" in problem


def test_a_budget_below_the_planned_gpu_hours_is_no_error() -> None:
    assert plan("model=mpt-7b", "cluster=a100x64", "run.max_gpu_hours=1").steps == 63_900


def test_a_plan_is_plain_data() -> None:
    found = plan("model=mpt-7b", "cluster=a100x64")
    assert json.loads(json.dumps(asdict(found)))["memory"]["weights"] == found.memory.weights


def test_planning_does_not_change_its_configuration() -> None:
    config: RunConfig = make_config("model=mpt-7b", "cluster=a100x64")
    before = asdict(config)
    make_plan(config, None)
    assert asdict(config) == before


def test_logits_in_chunks_are_a_remedy_where_they_are_what_does_not_fit() -> None:
    long = ("model=mpt-7b-storywriter-65k", "train.seq_len=49152")
    words = (*long, "cluster=a100x440", "train.global_batch=440", "train.compile=false")
    with pytest.raises(InputError, match=r"these fit: `train\.loss_chunk=4096`"):
        plan(*words)
    assert plan(*words, "train.loss_chunk=4096").steps > 0


def test_fused_lion_gets_no_part_that_its_kernel_cannot_count() -> None:
    words = ("model=mpt-3b", "cluster=h100x8", "optim=fused_lion", "train.zero_stage=1")
    with pytest.raises(
        InputError, match="optim=fused_lion: its kernel takes fewer than 2,147,483,648 weights"
    ):
        plan(*words, "cluster.gpus_per_node=1")
    assert plan(*words, "cluster.gpus_per_node=2").zero_stage == 1
    assert (
        plan(
            "model=mpt-3b", "cluster=h100x8", "train.zero_stage=1", "cluster.gpus_per_node=1"
        ).zero_stage
        == 1
    )
