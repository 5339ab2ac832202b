"""What ended an attempt: a table of exit codes."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.recovery.causes import Cause, classify, origin
from hpc_llm.runs.orders import ExitCode

STOPPED = int(ExitCode.STOPPED)


@pytest.mark.parametrize(
    ("exit_codes", "first_failed", "cause"),
    [
        ([0], None, Cause.COMPLETED),
        ([0, 0, 0, 0], None, Cause.COMPLETED),
        ([STOPPED], None, Cause.STOPPED),
        ([STOPPED, STOPPED], None, Cause.STOPPED),
        ([0, STOPPED], None, Cause.STOPPED),  # asked to in the very last step
        ([1], 0, Cause.CRASH),
        ([3, 0], 0, Cause.CRASH),
        ([-signal.SIGSEGV, -signal.SIGKILL], 0, Cause.CRASH),
        ([-signal.SIGABRT], 0, Cause.CRASH),
        ([-signal.SIGKILL], 0, Cause.KILLED),
        ([1, -signal.SIGKILL], 1, Cause.KILLED),  # the other one saw its peer vanish
        ([-signal.SIGKILL, 1], 1, Cause.CRASH),  # it crashed, we killed the other one
        ([2, -signal.SIGKILL], 0, Cause.CONFIG_ERROR),
        ([-signal.SIGKILL, 81], 1, Cause.FENCED),
        ([82, 82], 0, Cause.CHECKPOINT_UNREADABLE),
        ([83, 83], 0, Cause.STORAGE_FULL),
        ([84, 84], 0, Cause.DIVERGED),
        ([STOPPED, 1], 1, Cause.CRASH),  # one saved, one died while saving
        ([-signal.SIGTERM], 0, Cause.CRASH),
    ],
)
def test_the_first_rank_to_fail_says_what_ended_the_attempt(
    exit_codes: list[int], first_failed: int | None, cause: Cause
) -> None:
    assert classify(dict(enumerate(exit_codes)), first_failed) is cause


KILL = -signal.SIGKILL
SEGV = -signal.SIGSEGV
ABORT = -signal.SIGABRT


@pytest.mark.parametrize(
    ("noticed", "rank"),
    [
        ([], None),
        ([(1, 1), (0, 1)], 1),  # two that say nothing: as they were noticed
        ([(1, ABORT), (0, 1)], 1),
        ([(1, 1), (0, KILL)], 0),  # lost its peer, and was noticed before it
        ([(1, ABORT), (2, 1), (0, KILL)], 0),
        ([(1, 1), (0, SEGV)], 0),
        ([(1, 1), (0, 86)], 0),
        ([(0, KILL), (1, 86)], 0),
        ([(1, 83), (0, 83)], 1),
    ],
)
def test_a_rank_with_a_reason_of_its_own_goes_before_those_that_lost_it(
    noticed: list[tuple[int, int]], rank: int | None
) -> None:
    assert origin(dict(noticed)) == rank


@settings(deadline=None)
@given(st.lists(st.integers(-64, 255), min_size=1, max_size=8), st.data())
def test_what_other_ranks_leave_with_changes_nothing(
    exit_codes: list[int], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(exit_codes) - 1))
    codes = dict(enumerate(exit_codes))
    assert classify(codes, rank) is classify({rank: codes[rank]}, rank)


def test_every_exit_code_of_ours_has_a_cause_of_its_own() -> None:
    failing = [code for code in ExitCode if code not in (ExitCode.COMPLETED, ExitCode.STOPPED)]
    assert len({classify({0: int(code)}, 0) for code in failing}) == len(failing)


def test_our_exit_codes_are_nobody_elses() -> None:
    """1 and 2 are everybody's; 64–78 sysexits.h's, 126–165 the shell's; Slurm passes 0–255 on."""
    ours = [code for code in ExitCode if code > 2]
    assert all(79 <= code < 126 for code in ours)
    assert {int(code) for code in ExitCode if code <= 2} == {0, 1, 2}


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_is_written_to_the_ledger_as_a_word_and_read_back(cause: Cause) -> None:
    assert Cause(str(cause)) is cause
    assert str(cause).replace("-", "").isalpha()
