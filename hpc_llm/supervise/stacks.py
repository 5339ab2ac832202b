"""Where this node's ranks are stuck, seen from outside by py-spy; nothing if it is not installed.

`python -m hpc_llm.supervise.stacks RUN_DIR`. Standard library only. It also works for a process
that is stopped, or spins in C without reacting to signals; what the ranks can report themselves,
faulthandler writes into their logs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 20.0


def main() -> int:
    """Print the stacks of every rank of the run on this node."""
    # Also beside this interpreter: a job calls it by its path, and its environment may not be on
    # PATH.
    beside = str(Path(sys.executable).parent)
    program = shutil.which("py-spy") or shutil.which("py-spy", path=beside)
    if program is None:
        return 0
    for pid in pids_of_ranks(sys.argv[1]):
        command = [program, "dump", "--nonblocking", "--pid", str(pid)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
            print(done.stdout or done.stderr, flush=True)
        except subprocess.TimeoutExpired:
            print(f"py-spy gave no answer on process {pid}", flush=True)
    return 0


def pids_of_ranks(run_dir: str) -> list[int]:
    """Processes here whose command line ends in `hpc_llm.train RUN_DIR`, except launchers."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        if argv[-2:] == [b"hpc_llm.train", run_dir.encode()] and b"srun" not in argv[0]:
            pids.append(int(folder.name))
    return sorted(pids)


if __name__ == "__main__":
    sys.exit(main())
