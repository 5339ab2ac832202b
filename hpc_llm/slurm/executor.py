"""A batch script → a job id, through submitit. The only file that imports it.

submitit would pickle a function and write its own script around it. Here it submits the script of
the run directory: there is no pickle that refers to changing code, and submitit leaves nothing
behind.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from hpc_llm.slurm import client

SBATCH_TIMEOUT_S = (
    100  # sbatch itself waits MessageTimeout (10 s, on large sites 60 s or more) and retries
)
_TIMED_OUT = 124  # timeout(1)'s own exit status
_SIGNALS = range(
    129, 193
)  # 128 + the signal that ended sbatch; 255 is its own, for options it does not know


class ScriptExecutor(submitit.SlurmExecutor):
    """Submits `script` as it is."""

    def __init__(self, script: Path, folder: str, options: Sequence[str]) -> None:
        super().__init__(folder)
        self._script = script
        self._options = options

    def submit_script(self) -> int:
        """The job id; for an array, the array's."""
        return int(self._submit_command("").job_id)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script.read_text()

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # The file in the run directory itself, so that `scontrol show job` names it, in an
        # environment without Slurm options. timeout(1) also keeps Ctrl-C from killing sbatch
        # half-way.
        ours = client.clean_environment(os.environ)
        removed = [word for name in os.environ if name not in ours for word in ("-u", name)]
        return [
            "timeout",
            str(SBATCH_TIMEOUT_S),
            "env",
            *removed,
            "sbatch",
            *self._options,
            str(self._script),
        ]


def submit(script: Path, options: Sequence[str] = ()) -> int:
    """The id of the job (for an array, of the array) that `sbatch OPTIONS script` made.

    SlurmRefused: there is no job. SlurmUnavailable: not known; look for the job by its name before
    trying again.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            return ScriptExecutor(script, folder, options).submit_script()
    except OSError as error:  # submitit writes a file before sbatch, and others after it
        raise client.SlurmUnavailable(f"sbatch {script}: {error}") from None
    except FailedSubmissionError as error:
        raise client.SlurmUnavailable(" ".join(str(error).split())) from None
    except FailedJobError as error:
        cause = error.__cause__
        code = cause.returncode if isinstance(cause, subprocess.CalledProcessError) else -1
        if code == _TIMED_OUT:
            raise client.SlurmUnavailable(
                f"sbatch: no answer within {SBATCH_TIMEOUT_S} s"
            ) from None
        said = client.one_line(str(error))
        lost = code < 0 or code in _SIGNALS or not said or client.unreachable(said)
        said = f"sbatch: {said or f'ended with status {code}'}"
        raise (client.SlurmUnavailable(said) if lost else client.refusal(said)) from None
