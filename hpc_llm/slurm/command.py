"""Run one Slurm command, and tell "no" from "no answer" by what it says.

    SlurmError
      SlurmUnavailable   Slurm could not be asked: nothing is known
      SlurmRefused       Slurm answered, and the answer is no
        LimitReached     because of a limit on jobs at once

Every command ends after a bounded time. Standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from hpc_llm.slurm import records

TIMEOUT_S = 60.0

# Variables that say which Slurm to ask; the others describe a job, or set options.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCONTROL_", "SLURMD_")
# What Slurm says when it could not be asked (slurm_errno.c), in any release.
_UNREACHABLE = re.compile(
    "|".join(
        (
            "unable to contact slurm controller",
            "socket timed out",
            "connection (refused|timed out|reset|failure)",
            "communication connection failure",
            "zero bytes were transmitted",
            "unexpected message received",
            "backup controller",
            "controller in standby",
            "insane message length",
            "temporarily unable to accept",
            "munge",
            "authentication (plugin|credential)",
            "protocol authentication",
            "unable to connect to database",
            "send/recv",
            "receive operation",
            "transport endpoint",
            "resource temporarily unavailable",
            "no route to host",
            "unable to process configuration",
            "configuration source",
            "cannot stat file",
            "problem talking to the database",
        )
    ),
    re.IGNORECASE,
)
# What it says of a question that is wrong, or not for this user (PrivateData): asking again, or
# later, changes nothing.
_CLIENTS_FAULT = re.compile(
    r"access/permission denied|accounting storage is disabled|unrecognized option"
    r"|\binvalid\b(?!.*\b(message|credential|protocol|response)\b)",
    re.IGNORECASE,
)
# acct_policy.c: AssocMaxSubmitJobLimit, AssocGrpSubmitJobsLimit, QOSMaxSubmitJobPerUserLimit, …
_SUBMIT_LIMIT = re.compile(r"(Assoc|QOS)(Max|Grp)SubmitJob\w*Limit")
_COMMAND_NAME = re.compile(r"^(sbatch|squeue|sacct|scontrol|scancel): (error: )?")


def named_cluster(environment: Mapping[str, str]) -> str | None:
    """The cluster that every command asks because the user has named it; None: this node's own."""
    return environment.get("SLURM_CLUSTERS") or None


class SlurmError(Exception):
    """One line in Slurm's own words."""


class SlurmUnavailable(SlurmError):
    """Slurm could not be reached, or did not answer in time: nothing is known."""


class SlurmRefused(SlurmError):
    """Slurm answered, and the answer is no."""


class LimitReached(SlurmRefused):
    """Refused because of MaxSubmitJobs, or a similar limit of an association or a QOS."""


def call(*argv: str) -> str:
    """What a Slurm command prints. SlurmUnavailable or SlurmRefused if it fails."""
    done = _run(list(argv))
    if done.returncode:
        raise _error(argv, done)
    return done.stdout


def call_with_script(argv: tuple[str, ...], script: str) -> str:
    """What a command says, on either stream, of the batch script on its standard input."""
    done = _run(list(argv), script)
    if done.returncode:
        raise _error(argv, done)
    return done.stderr + done.stdout


def refusal(message: str) -> SlurmRefused:
    """The exception for a submission that Slurm refused with this message."""
    if _SUBMIT_LIMIT.search(message):
        return LimitReached(message)
    return SlurmRefused(message)


def unreachable(message: str) -> bool:
    """Whether a command's message means that Slurm could not be reached."""
    return _UNREACHABLE.search(message) is not None


def one_line(text: str) -> str:
    """A command's message as one line, without the command's name before each part."""
    parts: list[str] = []
    for line in text.splitlines():
        part = _COMMAND_NAME.sub("", line).strip()
        if part and part not in parts:
            parts.append(part)
    return "; ".join(parts)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what an enclosing job or a shell's start-up file tells Slurm's commands."""
    clean = {}
    for name, value in environment.items():
        if name in _KEPT or not name.startswith(_FOREIGN):
            clean[name] = value
    clean["LC_ALL"] = environment.get("LC_ALL", "C.UTF-8")
    return clean


def _run(argv: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(os.environ)
    if argv[0] != "sbatch":  # its environment becomes the job's
        environment |= {"SLURM_TIME_FORMAT": records.TIME_FORMAT, "SLURM_BITSTR_LEN": "0"}
    try:
        return subprocess.run(
            argv,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{argv[0]} is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{argv[0]} gave no answer within {TIMEOUT_S:.0f} s") from None


def _error(argv: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> SlurmError:
    message = one_line(done.stderr or done.stdout)
    if not message:
        message = f"no word why (exit status {done.returncode})"
    if _is_an_answer(argv, done.returncode, message):
        return SlurmRefused(f"{argv[0]}: {message}")
    return SlurmUnavailable(f"{argv[0]}: {message}")


def _is_an_answer(argv: tuple[str, ...], status: int, message: str) -> bool:
    """Whether a failed command means no.

    A failed query is unknown, unless Slurm says that it will not answer such a question. status:
    negative if a signal ended the command.
    """
    if status < 0 or unreachable(message):
        return False
    is_query = argv[0] in ("squeue", "sacct", "sinfo") or argv[1:2] == ("show",)
    return not is_query or _CLIENTS_FAULT.search(message) is not None
