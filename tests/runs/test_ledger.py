"""What happened to a run: many writers, one story."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from time import time as now

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_llm.runs import ledger
from hpc_llm.runs.ledger import Ledger
from tests.runs.machine import all_at_once, in_child


def lines(folder: Path, writer: str, *entries: tuple[float, str]) -> None:
    """A writer's file with events at the given times."""
    text = "".join(json.dumps({"time": time, "event": event}) + "\n" for time, event in entries)
    (folder / f"{writer}.jsonl").write_text(text)


def names(folder: Path) -> list[str]:
    return [event.event for event in ledger.read(folder)]


def test_an_event_comes_back_with_its_facts_and_its_writer(tmp_path: Path) -> None:
    Ledger(tmp_path, "supervisor-0003").write(
        "ended", cause="crash", exit_codes=[1, -9], first_failed=None
    )
    (event,) = ledger.read(tmp_path)
    assert (event.event, event.writer) == ("ended", "supervisor-0003")
    assert event.facts == {"cause": "crash", "exit_codes": [1, -9], "first_failed": None}
    assert event.time == pytest.approx((tmp_path / "supervisor-0003.jsonl").stat().st_mtime, abs=2)


def test_writers_are_merged_by_time(tmp_path: Path) -> None:
    lines(tmp_path, "supervisor-0001", (2.0, "started"), (5.0, "ended"))
    lines(tmp_path, "submit", (1.0, "submitted"))
    lines(tmp_path, "train-0001", (3.0, "resumed"), (4.0, "checkpointed"))
    assert names(tmp_path) == ["submitted", "started", "resumed", "checkpointed", "ended"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30))
def test_no_event_is_lost_and_each_writers_order_stays(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    by_writer: dict[str, list[tuple[float, str]]] = {}
    for number, (writer, time) in enumerate(story):
        by_writer.setdefault(writer, []).append((time, str(number)))
    for writer, entries in by_writer.items():
        lines(folder, writer, *sorted(entries, key=lambda entry: entry[0]))
    merged = ledger.read(folder)
    assert sorted(event.event for event in merged) == sorted(
        str(number) for number in range(len(story))
    )
    assert [event.time for event in merged] == sorted(event.time for event in merged)
    for writer, entries in by_writer.items():
        mine = [event.event for event in merged if event.writer == writer]
        assert mine == [event for _, event in sorted(entries, key=lambda entry: entry[0])]


def test_an_empty_or_missing_ledger_has_no_events(tmp_path: Path) -> None:
    assert ledger.read(tmp_path) == []
    assert ledger.read(tmp_path / "no-such") == []


@settings(deadline=None)
@given(st.data())
def test_a_last_line_cut_anywhere_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    lines(folder, "submit", (1.0, "submitted"))
    lines(folder, "train-0001", (2.0, "resumed"), (3.0, "checkpointed"))
    path = folder / "train-0001.jsonl"
    whole = path.read_bytes()
    last = whole[: whole.rindex(b"\n", 0, -1) + 1]
    path.write_bytes(whole[: data.draw(st.integers(len(last), len(whole) - 2))])
    assert names(folder) == ["submitted", "resumed"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00",
        b"[]",
        b"17",
        b'"text"',
        b'{"time": 1}',
        b'{"event": "x"}',
        b'{"time": "t", "event": "x"}',
    ],
)
def test_a_damaged_line_costs_that_line_alone(tmp_path: Path, damage: bytes) -> None:
    lines(tmp_path, "train-0001", (1.0, "resumed"))
    with (tmp_path / "train-0001.jsonl").open("ab") as file:
        file.write(damage + b'\n{"time": 2.0, "event": "checkpointed"}\n')
    assert names(tmp_path) == ["resumed", "checkpointed"]


def test_text_of_any_kind_stays_on_its_line(tmp_path: Path) -> None:
    why = "a\nb\u2028c\x85d \udcff ключ"
    Ledger(tmp_path, "train-0001").write("save-failed", why=why)
    Ledger(tmp_path, "train-0001").write("ended")
    assert [event.facts for event in ledger.read(tmp_path)] == [{"why": why}, {}]


def test_writers_in_many_processes_lose_nothing(tmp_path: Path) -> None:
    def write(index: int) -> None:
        for number in range(50):
            Ledger(tmp_path, f"writer-{index}").write("tick", number=number)

    all_at_once(6, write)
    events = ledger.read(tmp_path)
    assert len(events) == 300
    for index in range(6):
        mine = [event.facts["number"] for event in events if event.writer == f"writer-{index}"]
        assert mine == list(range(50))


def test_readers_never_see_half_a_line(tmp_path: Path) -> None:
    """One writes, five read all the while: whatever they find are whole events in order."""

    def story(index: int) -> bool:
        if index == 0:
            for number in range(300):
                Ledger(tmp_path, "writer").write("tick", number=number, ballast="x" * 500)
            return True
        while True:
            found = [event.facts["number"] for event in ledger.read(tmp_path)]
            if found != list(range(len(found))):
                return False
            if len(found) == 300:
                return True

    assert all(all_at_once(4, story))


def test_a_writer_that_comes_back_after_a_torn_line_is_heard(tmp_path: Path) -> None:
    """`submit` writes under one name again and again; the disk was full when it wrote last."""

    def cut_short() -> None:
        Ledger(tmp_path, "submit").write("submitted", words=[])
        path = tmp_path / "submit.jsonl"
        path.write_bytes(path.read_bytes()[:-5])

    in_child(cut_short)
    Ledger(tmp_path, "submit").write("submitted", words=["model=mpt-7b"])
    assert [event.facts["words"] for event in ledger.read(tmp_path)] == [["model=mpt-7b"]]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EDQUOT])
def test_events_wait_while_the_file_system_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    book = ledger.PatientLedger(tmp_path, "train-0001")

    def refuse(path: Path, line: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as away:
        away.setattr(ledger, "append_line", refuse)
        book.write("checkpointed", step=1)
    book.write("checkpointed", step=2)
    assert [event.facts["step"] for event in ledger.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize("more", [0, 1, 30])
def test_events_that_find_no_room_are_written_with_the_time_they_had(
    tmp_path: Path, more: int
) -> None:
    book = ledger.PatientLedger(tmp_path, "train-0001")
    book.write("resumed", step=1)
    size = (tmp_path / "train-0001.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, before[1]))
    try:
        book.write("save-failed", step=2)
        known = now()
        with pytest.raises(OSError):
            ledger.Ledger(tmp_path, "train-0001").write("save-failed", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "train-0001.jsonl").stat().st_size == size, "no part of a line is left"
    book.write("checkpointed", step=3)
    found = ledger.read(tmp_path)
    assert [(event.event, event.facts["step"]) for event in found] == [
        ("resumed", 1),
        ("save-failed", 2),
        ("checkpointed", 3),
    ]
    assert found[1].time <= known + 0.001
