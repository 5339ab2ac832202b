"""Durations and the story of a run, as a person reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_llm.runs.ledger import Event
from hpc_llm.status import tables, timeline


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (59.4, "59s"),
        (60, "1m"),
        (11100, "3h05m"),
        (187200, "2d04h"),
        (-120, "-2m"),
    ],
)
def test_durations_have_two_units_at_most(value: float | None, text: str) -> None:
    assert tables.seconds(value) == text


@given(
    st.lists(st.lists(st.text("ab ", max_size=5), min_size=3, max_size=3), min_size=1, max_size=5)
)
def test_columns_begin_at_the_same_place(lines: list[list[str]]) -> None:
    shown = tables.aligned([["A", "B", "C"], *lines]).split("\n")
    place = shown[0].index("C")
    assert [line[place:].rstrip() for line in shown[1:]] == [cells[2].rstrip() for cells in lines]


def test_saves_in_a_row_are_one_line_and_everything_else_has_its_own() -> None:
    told = [
        Event(10.0, "submitted", "submit", {"job": "7", "words": ["a"] * 99}),
        Event(11.0, "started", "supervisor-0001", {"attempt": 1, "nodes": ["n1", "n2"]}),
        *(
            Event(20.0 + n, "checkpointed", "train-0001", {"attempt": 1, "step": n, "seconds": 0.5})
            for n in range(5)
        ),
        Event(
            30.0,
            "ended",
            "supervisor-0001",
            {"attempt": 1, "cause": "crash", "why": "a\nb", "error": None},
        ),
        Event(40.0, "checkpointed", "train-0002", {"attempt": 2, "step": 9, "seconds": 0.5}),
    ]
    lines = list(timeline.lines(told))
    assert [line[21:].split("  ", 1)[1].strip() for line in lines] == [
        "submitted  job=7",
        "started  nodes=n1,n2",
        "checkpointed × 5  step=4 seconds=0.5",
        "ended  cause=crash why=a b",
        "checkpointed  step=9 seconds=0.5",
    ]
