"""Everything that knows how Slurm spells things: commands, records, variables, batch scripts.

Standard library only, but for executor.py, which hands scripts to submitit.
"""
