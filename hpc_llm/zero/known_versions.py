"""Refuses releases of DeepSpeed and torch whose insides this program does not know.

Standard library only, and imports neither: a name that has moved would otherwise show as the
traceback of an import, or as a step that is silently wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from hpc_llm.config.errors import InputError


@dataclass(frozen=True)
class Known:
    """The releases of a library that zero/ was read and tested against."""

    library: str
    releases: tuple[str, ...]
    requirement: str  # the same for pip

    def holds(self, version: str) -> bool:
        """Whether `version` is one of them: 0.19.8+local is 0.19.8, 2.13.1 belongs to 2.13."""
        numbers = re.match(r"[0-9.]*[0-9]", version)
        if numbers is None:
            return False
        parts = numbers.group().split(".")
        prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return not prefixes.isdisjoint(self.releases)


# DeepSpeed before 0.19.8 has no is_invalid_grad_norm: at ZeRO 1 in bf16 a gradient that is not
# finite ends the run by an assertion instead of being skipped, and Muon does not orthogonalise
# there. torch: `grad_scale` and `found_inf` of its fused AdamW, without which nothing would clip.
KNOWN = (
    Known("deepspeed", ("0.19.8",), "deepspeed==0.19.8"),
    Known("torch", ("2.10", "2.11", "2.12", "2.13"), "torch>=2.10,<2.14"),
)


def refuse_unknown_versions() -> None:
    """InputError, in one line, if a library is missing here or of an unknown release."""
    problem = problem_with({known.library: _installed(known.library) for known in KNOWN})
    if problem is not None:
        raise InputError(problem)


def problem_with(installed: Mapping[str, str | None]) -> str | None:
    """What is wrong with these versions, and the command that mends it; None if nothing is."""
    problems: list[str] = []
    requirements: list[str] = []
    for known in KNOWN:
        version = installed[known.library]
        if version is not None and known.holds(version):
            continue
        state = "is not installed" if version is None else f"{version} is installed"
        problems.append(
            f"{known.library} {state}, the insides of {', '.join(known.releases)} are known"
        )
        requirements.append(f"'{known.requirement}'")
    if not problems:
        return None
    return f"{'; '.join(problems)}: python -m pip install {' '.join(requirements)}"


def _installed(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
