"""The transformer. Knows neither DeepSpeed nor Slurm."""
