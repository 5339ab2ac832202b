"""The training loop and its parts: the DeepSpeed engine, optimizers, schedule, metrics, stopping."""
