"""hpc_llm: train language models on any Slurm cluster, without root and without Kubernetes."""

__version__ = "0.1.0"
