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

from hpc_llm.slurm import command, records
from hpc_llm.slurm.command import SlurmError, SlurmUnavailable
from hpc_llm.slurm.records import Submission

# sbatch itself waits MessageTimeout (10 s, on large sites 60 s or more) and retries.
SBATCH_TIMEOUT_S = 100
_TIMED_OUT = 124  # timeout(1)'s own exit status
# 128 + the signal that ended sbatch; 255 is its own, for options it does not know.
_SIGNALS = range(129, 193)


class ScriptExecutor(submitit.SlurmExecutor):
    """Submits `script` as it is."""

    def __init__(self, script: Path, folder: str, options: Sequence[str]) -> None:
        super().__init__(folder)
        self._script = script
        self._options = options
        self._answer = ""

    def submit_script(self) -> Submission:
        """What sbatch said of the job. FailedSubmissionError where it named none."""
        self._submit_command("")
        submission = records.read_submission(self._answer)
        assert submission is not None  # else submitit has raised
        return submission

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script.read_text()

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        # The file in the run directory itself, so that `scontrol show job` names it, in an
        # environment without Slurm options. timeout(1) also keeps Ctrl-C from killing sbatch
        # half-way. Both streams are one: notes on an accepted job come on the other one.
        argv = ["sh", "-c", 'exec "$@" 2>&1', "sh", "timeout", str(SBATCH_TIMEOUT_S), "env"]
        foreign = os.environ.keys() - command.clean_environment(os.environ).keys()
        for name in sorted(foreign):
            argv += ["-u", name]
        return [*argv, "sbatch", *self._options, str(self._script)]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:
        """Of `sbatch`'s answer; submitit's own takes the first `job N` in it for the id."""
        self._answer = string if isinstance(string, str) else string.decode(errors="replace")
        submission = records.read_submission(self._answer)
        if submission is None:
            raise FailedSubmissionError(f"sbatch said no job id: {command.one_line(self._answer)}")
        return str(submission.job_id)


def submit(script: Path, options: Sequence[str] = ()) -> Submission:
    """The job (for an array, the array) that `sbatch OPTIONS script` made.

    SlurmRefused: there is no job. SlurmUnavailable: not known; look for the job by its name before
    trying again.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            return ScriptExecutor(script, folder, options).submit_script()
    except OSError as error:  # submitit writes a file before sbatch, and others after it
        raise SlurmUnavailable(f"sbatch {script}: {error}") from None
    except FailedSubmissionError as error:
        raise SlurmUnavailable(" ".join(str(error).split())) from None
    except FailedJobError as error:
        raise _slurm_error(error) from None


def _slurm_error(error: FailedJobError) -> SlurmError:
    cause = error.__cause__
    status = cause.returncode if isinstance(cause, subprocess.CalledProcessError) else -1
    if status == _TIMED_OUT:
        return SlurmUnavailable(f"sbatch: no answer within {SBATCH_TIMEOUT_S} s")
    said = cause.output if isinstance(cause, subprocess.CalledProcessError) else str(error)
    message = command.one_line(said or "")
    if not message:
        return SlurmUnavailable(f"sbatch: ended with status {status}")
    if status < 0 or status in _SIGNALS or command.unreachable(message):
        return SlurmUnavailable(f"sbatch: {message}")
    return command.refusal(f"sbatch: {message}")
