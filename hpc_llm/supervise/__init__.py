"""Runs in the job, outside any container: keeps one run's ranks alive. Standard library only."""
