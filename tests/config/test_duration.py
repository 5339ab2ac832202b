"""Durations as users write them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.config.duration import SECONDS, UNITS, Duration, parse
from hpc_llm.config.errors import InputError
from hpc_llm.planning.lengths import lengths
from tests.configs import make_config

ALL = ("steps", "tok", "ep", "s", "min", "h")
SPACES = st.sampled_from(["", " ", "  "])


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=10**15), st.sampled_from(sorted(UNITS)), SPACES)
def test_whole_amounts_are_read_exactly(amount: int, unit: str, space: str) -> None:
    assert parse(f"{amount}{space}{unit}", ALL) == Duration(amount, UNITS[unit])


@settings(deadline=None)
@given(
    st.integers(1, 999), st.integers(0, 12), st.sampled_from(["e", "E", "e+"]), st.sampled_from(ALL)
)
def test_amounts_are_read_as_powers_of_ten_too(
    digits: int, exponent: int, sign: str, unit: str
) -> None:
    assert parse(f"{digits}{sign}{exponent}{unit}", ALL) == Duration(digits * 10**exponent, unit)


@settings(deadline=None)
@given(st.floats(min_value=1e-3, max_value=1e15, allow_nan=False), st.sampled_from(ALL))
def test_what_is_shown_can_be_typed_again(amount: float, unit: str) -> None:
    shown = str(Duration(float(f"{amount:g}"), unit))
    assert str(parse(shown, ALL)) == shown


@settings(deadline=None)
@given(st.integers(1, 10**13), st.integers(1, 10**7))
def test_steps_cover_the_tokens_and_no_step_more(tokens: int, tokens_per_step: int) -> None:
    steps = parse(f"{tokens}tok", ("tok",)).steps(tokens_per_step)
    assert (steps - 1) * tokens_per_step < tokens <= steps * tokens_per_step


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 10**9), st.integers(1, 10**6))
def test_epochs_cover_the_data_and_no_step_more(
    epochs: int, tokens_per_epoch: int, tokens_per_step: int
) -> None:
    steps = parse(f"{epochs}ep", ("ep",)).steps(tokens_per_step, tokens_per_epoch)
    assert steps == math.ceil(Fraction(epochs * tokens_per_epoch, tokens_per_step))


def test_the_published_durations() -> None:
    assert parse("1e12tok", ALL).steps(1760 * 2048) == 277_433
    assert parse("4800steps", ALL).steps(256 * 2048) == 4800
    assert parse("0.5ep", ALL).steps(1000, 4000) == 2
    assert parse("1step", ALL).steps(1) == 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400)])
def test_wall_time_is_seconds(text: str, seconds: float) -> None:
    duration = parse(text, ("s", "min", "h"))
    assert duration.is_time
    assert duration.seconds() == seconds


@pytest.mark.parametrize("unit", sorted(SECONDS))
def test_wall_time_is_no_number_of_steps(unit: str) -> None:
    with pytest.raises(ValueError, match="is not a number of steps"):
        Duration(1, unit).steps(1000)


def test_an_epoch_of_unknown_length_is_no_number_of_steps() -> None:
    with pytest.raises(ValueError, match="2ep is not a number of steps"):
        Duration(2, "ep").steps(1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "300",
        "steps",
        "-3steps",
        "3 4steps",
        "3stepz",
        "3Steps",
        "1e-3tok",
        "0x10tok",
        ".5ep",
        "1_0tok",
        "nan",
    ],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^a number and its unit: 4800steps, 1e9tok, 2ep, 90s, 20min, 2h$"
    ):
        parse(text, ALL)


@pytest.mark.parametrize("text", ["20min", "2ep"])
def test_a_unit_that_makes_no_sense_here_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^a number and its unit: 4800steps, 1e9tok$"):
        parse(text, ("steps", "tok"))


@pytest.mark.parametrize("text", ["0steps", "0.0tok", "1e999tok"])
def test_nothing_and_infinity_are_no_durations(text: str) -> None:
    with pytest.raises(InputError, match="above 0"):
        parse(text, ALL)


def test_a_warm_up_may_be_none() -> None:
    assert parse("0steps", ("steps",), none=True).steps(1) == 0
    assert lengths(make_config("optim.warmup=0steps"), None).warmup_steps == 0
    with pytest.raises(
        InputError, match=r"checkpoint\.every='0steps': an amount above 0 is expected"
    ):
        lengths(make_config("checkpoint.every=0steps", "optim.warmup=0steps"), None)
