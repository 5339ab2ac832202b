"""Every configuration key of a run, as frozen dataclasses; `config.building` makes them.

Keys carry their unit. `auto` (as a string) means that the plan (hpc_llm.planning) chooses the value
and writes it into plan.json. A field whose type ends in `| None` may be `null`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hpc_llm.config.optimizers import OptimizerName, optimizer

Auto = Literal["auto"]


@dataclass(frozen=True)
class RunSection:
    """Which run this is and where it is stored."""

    name: str | None = None  # null: derived from model, data and a hash of the configuration
    sweep: str | None = None  # folder below root that the runs of a sweep share; `-m` sets it
    root: str = "./runs"
    seed: int = 17
    group: str | None = None  # Unix group that may read the run; null keeps it private
    # For all attempts since the submission; then the run saves and stops.
    max_gpu_hours: float | None = None
    # Run or sweep below root that must be complete before this one starts.
    depends_on: str | None = None


@dataclass(frozen=True)
class RecipeConfig:
    """Published recipe of a model size, to which the defaults of `train` and `optim` refer."""

    lr: float
    global_batch: int  # sequences
    seq_len: int  # tokens
    duration: str


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer, pre-norm; the defaults are those of the MPT family."""

    name: str
    d_model: int
    n_heads: int
    n_layers: int
    vocab_size: int  # rows of the embedding: the tokenizer's vocabulary padded to a multiple of 128
    max_seq_len: int  # tokens
    recipe: RecipeConfig
    n_kv_heads: int | None = None  # heads of keys and values; null: n_heads; fewer: GQA; 1: MQA
    positions: Literal["alibi", "rope", "learned", "none"] = "alibi"
    alibi_bias_max: float = 8.0
    rope_theta: float = 10_000.0
    norm: Literal["layernorm", "low_precision_layernorm", "rmsnorm"] = "low_precision_layernorm"
    norm_eps: float = 1e-5
    ffn: Literal["gelu", "swiglu"] = "gelu"
    expansion_ratio: int = 4  # width of the FFN ÷ d_model
    d_ffn: int | None = None  # width of the FFN if it is not a multiple of d_model
    bias: bool = False  # in projections, and in norms that can have one
    tied: bool = True  # the embedding is also the output matrix
    qk_ln: bool = False  # queries and keys are normalised, each over all heads
    clip_qkv: float | None = None
    sliding_window: int | None = None  # tokens that a position attends to, itself included
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None  # logits become cap·tanh(logits ÷ cap)
    z_loss: float = 0.0  # times the squared log of the softmax's denominator, in the gradient only
    init_std: float = 0.02
    # Projections into the residual stream start smaller by sqrt(2·n_layers).
    scale_residual_init: bool = True

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads

    @property
    def ffn_size(self) -> int:
        return self.d_ffn or self.expansion_ratio * self.d_model


TEXT_SUFFIXES = (".txt", ".md", ".py")


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How documents are read from the files of a source, or of the single `data.source`."""

    suffixes: list[str] = field(
        default_factory=lambda: [*TEXT_SUFFIXES, ".jsonl", ".json", ".parquet", ".arrow"]
    )
    # A document of a text file; blank lines separate paragraphs.
    split: Literal["file", "paragraph", "line"] = "file"
    text_field: str = "text"  # in JSON, Parquet and Arrow; a.b is field b in a
    # Field that names a document in rejects.jsonl, beside its place in the file.
    id_field: str | None = None
    # Documents shorter than this, or longer than max_chars, are filtered out.
    min_chars: int | None = None
    max_chars: int | None = None
    # Only records whose fields have these values.
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(ReadingConfig):
    """One of several sources, and its share of the training tokens."""

    path: str  # folder or file; a relative one lies below data.source if that is given
    weight: float = 1.0  # share of the training tokens, normalised over the sources
    max_epochs: float | None = None  # how often its text is used at most


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadingConfig):
    """Text, its tokenizer and its shards. One cache below `run.root` serves all runs."""

    name: str
    source: str | None = None  # a folder or file; stdlib has its own
    # Empty: data.source alone, called data.name.
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    out: str | None = None  # folder of the shards; null: <run.root>/.data/<name>-<hash>
    # A SentencePiece model or a tokenizer.json to use; null trains one.
    tokenizer: str | None = None
    # What ends a document with data.tokenizer; null: the tokenizer's own end of text.
    eos_token: str | None = None
    vocab_size: int | None = None  # pieces to train; null: as many as the given tokenizer has
    heldout_fraction: float = 0.02  # of documents, chosen by a hash of their text
    deduplicate: bool = True  # a text is kept once, over all sources
    tokenizer_sample_mb: float = 32.0  # text that the tokenizer is trained on
    workers: int | Auto = "auto"  # processes that tokenise; auto: one per core
    max_reject_fraction: float = 0.2  # of documents; above this, preparation stops
    # Weights of the sources from 1e9tok, … on.
    mixture: dict[str, dict[str, float]] = field(default_factory=dict)
    # best_fit: whole documents that attend to themselves.
    packing: Literal["concatenated", "best_fit"] = "concatenated"
    mask_boundaries: bool = False  # concatenated: the first token of a document is not a target

    @property
    def source_names(self) -> list[str]:
        """Names of the sources in the order of their shards."""
        return sorted(self.sources) or [self.name]


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: OptimizerName  # a row of config.optimizers
    lr: float
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    # muon: for the hidden matrices, with the same schedule; lr is for the rest.
    muon_lr: float | None = None
    muon_momentum: float | None = None
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # L2 norm of the whole gradient; 0 turns clipping off
    schedule: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    warmup: str = "100steps"  # steps or tok
    min_lr_ratio: float = 0.1  # final lr ÷ lr
    decay_fraction: float = 0.2  # wsd: the last part of the run, in which lr decays

    @property
    def offloaded(self) -> bool:
        """Whether states and update are in host memory."""
        return optimizer(self.name).offloaded


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train.

    `global_batch` defines the mathematics; `micro_batch` depends on the machine.
    """

    duration: str  # 4800steps, 1e9tok, 2ep
    seq_len: int  # tokens
    global_batch: int  # sequences per optimizer step over all ranks
    # Shorter sequences at first: {512: 1e9tok, …}.
    seq_len_warmup: dict[str, str] = field(default_factory=dict)
    micro_batch: int | Auto = "auto"  # sequences per rank and forward pass
    zero_stage: int | Auto = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: bool | Auto = "auto"
    # See docs/models.md.
    attention: Literal["auto", "sdpa", "blocked", "folded", "flex", "flash"] = "auto"
    # Tokens whose logits are held at once; null: all of a pass.
    loss_chunk: int | Auto | None = "auto"
    compile: bool | Auto = "auto"  # torch.compile, block by block; auto: on a GPU
    eval_every: str = "500steps"  # steps or tok; held-out loss, also at the end
    eval_batches: int = 8  # global batches of held-out text


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run saves and what it keeps."""

    every: str = "500steps"  # steps, tok, s, min or h; auto: Daly's interval
    keep: int = 2  # newest checkpoints that stay
    permanent_every: str | None = None  # steps or tok; saved then too, and never pruned


@dataclass(frozen=True)
class ClusterConfig:
    """The machine and its Slurm. `launcher: local` runs processes here."""

    name: str
    launcher: Literal["local", "slurm"]
    nodes: int
    gpus_per_node: int  # ranks per node, also on a machine without GPUs
    # Held and paid for beyond `nodes`; they replace nodes that fail, without queueing.
    spare_nodes: int = 0
    device: Literal["auto", "cuda", "cpu"] = "auto"
    # E.g. a100-80gb, for memory and peak (planning.hardware); for others set the next two.
    gpu: str | None = None
    gpu_memory_gib: float | None = None  # as reported by the driver
    gpu_peak_tflops: float | None = None  # bf16, dense
    expected_mfu: float | None = None  # assumed MFU for time estimates, of the bf16 dense peak
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    # The site's dialect: gpus-per-node, gpus-per-node:TYPE, gres, gres:TYPE, none.
    gpu_request: str = "gpus-per-node"
    # CPUs of a rank; null: those that Slurm gives the job on a node ÷ its ranks there.
    cpus_per_gpu: int | None = None
    # OMP threads, at most the rank's CPUs; null: as many as these.
    threads_per_rank: int | None = None
    mem: str | None = None  # per node, Slurm's spelling; "0" is all; null requests none
    time_min: int | None = None  # wall-clock limit of one job, minutes
    # Notice before the limit, in which the run saves (planning.walltime).
    signal_lead_s: int | Auto = "auto"
    array_throttle: int | None = None  # runs of a sweep at once; without a cluster null means 1
    setup: list[str] = field(default_factory=list)  # shell lines: module load …, source …/activate
    exports: dict[str, str] = field(default_factory=dict)  # environment of job and ranks
    # Container command that wraps the step: apptainer exec …
    wrapper: list[str] = field(default_factory=list)
    # Further sbatch options: comment, switches, …
    sbatch: dict[str, str] = field(default_factory=dict)
    # Further options of the srun that starts the ranks: mpi, cpu-bind, container-image, …
    srun: dict[str, str] = field(default_factory=dict)
    python: str | None = None  # interpreter of the job; null: the one that submits it

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def held_gpus(self) -> int:
        """GPUs that a job holds and is charged for, those of spare nodes included."""
        return (self.nodes + self.spare_nodes) * self.gpus_per_node

    @property
    def has_gpus(self) -> bool:
        """Whether ranks train on GPUs, as far as is known here.

        With device=auto each rank decides when it starts.
        """
        return self.device == "cuda" or (
            self.device == "auto" and (self.gpu is not None or self.gpu_request != "none")
        )


@dataclass(frozen=True)
class RecoveryConfig:
    """Budgets of unattended restarts, one per cause, refilled by progress.

    An end counts until 24 hours of training and 1 % of the steps have been saved after it. A run
    without progress stops for any cause.
    """

    max_crashes: int = 3
    max_hangs: int = 3
    # Nodes that died during the run, and failures of nodes that were then excluded.
    max_node_failures: int = 10
    max_launch_failures: int = 5  # jobs that Slurm could not start
    # counted separately for host and GPU; a GPU failure counts only when the micro-batch can no
    # longer be halved
    max_out_of_memory: int = 1
    max_divergences: int = 3  # with on_divergence=skip
    max_preemptions: int | None = None  # null: no limit
    # Jobs of the run that another user, an administrator, cancelled: its user's scancel is final.
    max_admin_cancels: int = 3
    # What follows: submitted again at once, or held in the queue until you `scontrol release` it.
    on_admin_cancel: Literal["resubmit", "hold"] = "resubmit"
    max_no_progress: int = 3  # attempts in a row that end without a newer checkpoint
    on_divergence: Literal["stop", "skip"] = "stop"  # skip: roll back and leave the batch out
    # A loss this many nats above the last steps' median is also a divergence.
    spike_threshold: float | None = None
    # minimum silence of all ranks that counts as a hang; the limit is the larger of this and 20
    # step times; auto: a minute while they train, five in saves and evaluations
    hang_floor_s: float | Auto = "auto"
    start_timeout_s: float = 1800.0  # limit during start-up and during the first save or evaluation
    # Each job queues one that waits for its end: a watchdog without a process of its own.
    successor: bool = False
    node_exclusion_h: float = 24.0  # how long a node with evidence against it is excluded
    max_excluded_nodes: int = 8  # at once, for all runs below one root
    # A command, [URL] or [$VARIABLE] that holds a URL.
    notify: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HalvingConfig:
    """Successive halving of a sweep: at each rung the watchdog stops all runs but the best."""

    # Durations, each at an evaluation: [1000steps,4000steps].
    rungs: list[str] = field(default_factory=list)
    keep: float = 0.5  # fraction of a rung's runs that continue, rounded up; by held-out loss


@dataclass(frozen=True)
class SearchConfig:
    """A search by results: with `trials`, the search chooses among the values that -m sweeps."""

    trials: int | None = None  # total number
    parallel: int = 4  # trials at once; the more, the less each one knows about the others


@dataclass(frozen=True)
class TensorboardConfig:
    every: int = 10  # steps between points


@dataclass(frozen=True)
class TrackersConfig:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: TensorboardConfig | None = None


@dataclass(frozen=True)
class RunConfig:
    """One run, resolved. As JSON it is `config.json` in the run directory."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    cluster: ClusterConfig
    recovery: RecoveryConfig
    trackers: TrackersConfig
    halving: HalvingConfig = HalvingConfig()
    search: SearchConfig = SearchConfig()
    dry_run: bool = False
    test_only: bool = False
    local: bool = False
    json: bool = False
