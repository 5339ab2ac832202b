"""What a run will need, as pure numbers: no torch, no clock, no Slurm."""
