"""A real Slurm cluster on one machine: what tools/local_slurm does, standard library only.

site.py       what kind of site it is (nodes, GPUs, preemption, accounting), kept as JSON in the
cluster's folder conf_files.py the text of slurm.conf, slurmdbd.conf and gres.conf: pure functions
of the site processes.py  daemons started in the foreground, remembered by pid, stopped by pid
machine.py    what must hold here before a cluster starts; commands and sockets cluster.py    up,
down, status, env and the faults one can ask for
"""
