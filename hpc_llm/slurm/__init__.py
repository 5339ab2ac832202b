"""Slurm's side of things: its environment variables. Standard library only."""
