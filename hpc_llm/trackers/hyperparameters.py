"""What a run is, in the few words by which runs are compared."""

from __future__ import annotations

from hpc_llm.config.schema import RunConfig

Hyperparameter = str | float | int | bool


def hyperparameters(config: RunConfig) -> dict[str, Hyperparameter]:
    """The keys by which runs are compared; all hundred keys would hide them."""
    model = config.model
    optim = config.optim
    train = config.train
    return {
        "model": model.name,
        "data": config.data.name,
        "optim": optim.name,
        "model.d_model": model.d_model,
        "model.n_layers": model.n_layers,
        "model.n_heads": model.n_heads,
        "optim.lr": optim.lr,
        "optim.weight_decay": optim.weight_decay,
        "optim.schedule": optim.schedule,
        "train.global_batch": train.global_batch,
        "train.seq_len": train.seq_len,
        "train.duration": train.duration,
        "run.seed": config.run.seed,
    }
