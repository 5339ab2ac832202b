"""Everything that talks to Slurm: its commands, records and environment variables, and a team's share of it.

Standard library only.
"""
