"""The training loop and what it stands on: the DeepSpeed engine, optimizers, schedule, metrics, stopping."""
