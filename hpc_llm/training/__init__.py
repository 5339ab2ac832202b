"""The training loop and what it needs: schedule, metrics, stopping. DeepSpeed stays in zero/."""
