from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from hpc_llm.config.schema import ReadingConfig
from hpc_llm.text import records
from hpc_llm.text.documents import Document, Filtered, Reject, Rejected
from hpc_llm.text.reading import Span, documents
from hpc_llm.text.sources import InputFile, Source, files

ROWS = [
    {"text": f"text {number}", "id": number, "meta": {"lang": "en" if number % 2 else "de"}}
    for number in range(9)
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}


def span(path: Path, start: int = 0, end: int | None = None) -> Span:
    size = path.stat().st_size if path.exists() else 0
    return Span(InputFile("a", path.name, str(path), size, 0), start, end)


def read(part: Span, **reading: Any) -> list[tuple[int, str]]:
    """Offset of every document with its text, or with why it is rejected after a `!`."""
    documents_read = []
    for item in documents(part, ReadingConfig(**reading)):
        if isinstance(item, Reject):
            documents_read.append((item.offset, f"!{item.reason}"))
        elif isinstance(item, Document):
            try:
                documents_read.append((item.offset, "".join(item.pieces)))
            except Rejected as rejected:
                documents_read.append((item.offset, f"!{rejected}"))
        else:
            assert isinstance(item, Filtered)
    return documents_read


def texts(part: Span, **reading: Any) -> list[str]:
    return [text for _, text in read(part, **reading)]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` in the format that the name's suffixes say."""
    kind = next(suffix for suffix in path.suffixes if suffix not in PACKERS)
    if kind == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    elif kind == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=4)
    else:
        content = jsonl(rows) if kind == ".jsonl" else json.dumps(rows).encode()
        path.write_bytes(PACKERS[path.suffix if path.suffix in PACKERS else ""](content))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *(f"a{kind}{packed}" for kind in (".jsonl", ".json") for packed in PACKERS),
        "a.parquet",
        "a.arrow",
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    part = span(written(tmp_path / name, ROWS))
    assert texts(part) == [row["text"] for row in ROWS]
    assert texts(part, text_field="meta.lang", where={"id": "3"}) == ["en"]
    assert texts(part, where={"meta.lang": "de"}) == [row["text"] for row in ROWS[::2]]
    named = list(documents(part, ReadingConfig(id_field="id")))
    assert [item.id for item in named if isinstance(item, Document)] == [
        str(row["id"]) for row in ROWS
    ]
    assert texts(part, text_field="body") == ["!no text in field 'body'"] * len(ROWS)


@pytest.mark.parametrize("packed", PACKERS)
def test_a_text_file_is_a_document_or_its_paragraphs_or_its_lines(
    tmp_path: Path, packed: str
) -> None:
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(PACKERS[packed](b"one\ntwo\n\n \nthree\n\n\nfour"))
    assert read(span(path)) == [(0, "one\ntwo\n\n \nthree\n\n\nfour")]
    assert read(span(path), split="paragraph") == [(0, "one\ntwo\n"), (11, "three\n"), (19, "four")]
    assert read(span(path), split="line") == [
        (0, "one"),
        (4, "two"),
        (11, "three"),
        (19, "four"),
    ]


GOOD = b'{"text": "a"}'
BROKEN = b'{"text": "b'
LATIN = b'{"text": "caf\xe9"}'


@pytest.mark.parametrize("bad", [BROKEN, LATIN, b"[1]", b"x"])
@pytest.mark.parametrize("place", [0, 1, 5, 9])
def test_a_bad_record_of_lines_that_are_called_json_costs_that_record(
    tmp_path: Path, bad: bytes, place: int
) -> None:
    lines = [GOOD] * 10
    lines[place] = bad
    path = tmp_path / "c4.json"
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = texts(span(path))
    assert len(found) == 10
    assert [text for text in found if not text.startswith("!")] == ["a"] * 9


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.NdJson.GZ", "a.jsonl.BZ2"])
def test_json_lines_by_other_names_are_json_lines(tmp_path: Path, name: str) -> None:
    packed = PACKERS.get(Path(name).suffix.lower(), bytes)(GOOD + b"\n" + GOOD + b"\n")
    (tmp_path / name).write_bytes(packed)
    assert texts(span(tmp_path / name)) == ["a", "a"]
    source = Source("files", tmp_path, ReadingConfig(), "data.source")
    assert [file.name for file in files(source)] == [name]


def test_the_same_line_is_the_same_whatever_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\none\r\n\r\none")
    assert texts(span(path), split="line") == ["one"] * 3


def test_json_is_one_object_or_several_or_an_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b'{"text": "a"}', b' [ {"text": "a"} ] ', b'\xef\xbb\xbf[{"text":"a"}]'):
        path.write_bytes(content)
        assert read(span(path)) == [(0, "a")]
    path.write_bytes(b'{"text": "a"}\n{"text": "b"} {"text": "c"}')
    assert texts(span(path)) == ["a", "b", "c"]
    for content in (
        b'{"text": "a"}\n{\n "text": "b"\n}\n',
        b'{"text": "a"}\n{"text":\n "b"}',
        b'[\n{"text": "a"},\n{"text": "b"}\n]',
    ):
        path.write_bytes(content)
        assert texts(span(path)) == ["a", "b"]
    path.write_bytes(b'[\n{"text": "a"}\n]')
    assert texts(span(path)) == ["a"]
    for content in (b"[]", b""):
        path.write_bytes(content)
        assert texts(span(path)) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"text": "a"}, {"text": "b"', ["a", "!the rest of the file after this: no JSON"]),
        (b'[{"text": "a"}', ["a", "!the rest of the file after this: truncated"]),
        (
            b'[{"text": "a"} {"text": "b"}]',
            ["a", "!the rest of the file after this: no JSON: ',' or ']'"],
        ),
        (b'[{"text": "a"}, 3, {"text": "b"}]', ["a", "!a JSON object is expected, not int", "b"]),
        (b'[{"text": "caf\xe9"}]', ["!invalid UTF-8"]),
        (b"hello", ["!no JSON"]),
    ],
)
def test_json_that_breaks_off_gives_what_came_before(
    tmp_path: Path, content: bytes, expected: list[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    documents_read = texts(span(path))
    assert len(documents_read) == len(expected)
    assert all(
        text.startswith(beginning) for text, beginning in zip(documents_read, expected, strict=True)
    )


def test_a_line_that_is_no_record_is_a_reject_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [
        b"{",
        b"[1]",
        b'{"text": "caf\xe9"}',
        b'{"text": 3}',
        b'{"text": "a\\u0000b"}',
        b"[" * 100_000,
    ]
    path.write_bytes(b"\n".join([b'{"text": "first"}', *bad, b"", b'{"text": "last"}']))
    documents_read = read(span(path))
    assert documents_read[0] == (0, "first")
    assert documents_read[-1] == (path.stat().st_size - 16, "last")
    reasons = [
        "no JSON",
        "a JSON object is expected, not list",
        "invalid UTF-8 at byte 13 of the line",
    ]
    reasons += ["no text in field 'text'", "holds NUL", "no JSON"]
    for (_, text), reason in zip(documents_read[1:-1], reasons, strict=True):
        assert text.startswith(f"!{reason}")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    mark = b"\xef\xbb\xbf"
    path.write_bytes(mark + b'{"text": "a"}\n{"text": "b"}\n')
    assert read(span(path)) == [(0, "a"), (17, "b")]
    path.write_bytes(b'{"text": "a"}\n' + mark + b'{"text": "b"}\n')  # files joined by cat
    assert texts(span(path)) == ["a", "b"]
    text = tmp_path / "a.txt"
    text.write_bytes(mark + b"a")
    assert texts(span(text)) == ["a"]


def test_a_record_too_long_to_parse_is_a_reject_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    long = jsonl([{"text": "x" * 200}])
    for path in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        path.write_bytes(
            PACKERS[path.suffix if path.suffix in PACKERS else ""](long + jsonl(ROWS[:1]))
        )
        assert read(span(path)) == [
            (0, f"!record of {len(long)} bytes; at most 100 are read"),
            (len(long), ROWS[0]["text"]),
        ]


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_a_truncated_file_gives_what_can_be_read_and_one_reject(
    tmp_path: Path, packed: str
) -> None:
    rows = [{"text": os.urandom(3000).hex()} for _ in range(200)]
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACKERS[packed](jsonl(rows))[:-200_000])
    found = texts(span(path))
    assert 1 < len(found) < 200
    assert found[:-1] == [row["text"] for row in rows[: len(found) - 1]]
    assert found[-1].startswith("!the rest of the file after this: truncated")
    text = tmp_path / f"a.txt{packed}"
    text.write_bytes(path.read_bytes())
    assert texts(span(text)) == ["!truncated"]
    *whole, last = texts(span(text), split="line")
    assert whole == [json.dumps(row) for row in rows[: len(whole)]]
    assert last == "!truncated" or last.endswith("after this: truncated")


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_what_is_not_packed_at_all_is_one_reject(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(b"this is no such thing, whatever its name says")
    (reject,) = texts(span(path))
    assert reject.startswith("!")


def test_zstandard_packed_with_the_longest_window_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    longest = zstandard.ZstdCompressionParameters(window_log=31)
    packer = zstandard.ZstdCompressor(
        compression_params=longest
    ).compressobj()  # as from a pipe: of unknown size
    path.write_bytes(packer.compress(jsonl(ROWS)) + packer.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 2**31
    assert texts(span(path)) == [row["text"] for row in ROWS]


def test_several_packed_files_in_a_row_are_one(tmp_path: Path) -> None:
    for packed in (".gz", ".xz", ".zst"):
        path = tmp_path / f"a.jsonl{packed}"
        path.write_bytes(PACKERS[packed](jsonl(ROWS[:4])) + PACKERS[packed](jsonl(ROWS[4:])))
        assert texts(span(path)) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
def test_a_broken_columnar_file_is_one_reject(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"a{kind}", ROWS * 50)
    content = path.read_bytes()
    for broken in (b"", b"nothing of the kind", content[: len(content) // 2]):
        path.write_bytes(broken)
        *before, last = texts(span(path))
        assert last.startswith("!")
        assert all(not text.startswith("!") for text in before)


@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
def test_a_row_of_a_columnar_file_that_python_cannot_hold_is_a_reject_and_the_others_are_read(
    tmp_path: Path, kind: str
) -> None:
    broken = pyarrow.array([b"good", b"caf\xe9", b"last"]).view(pyarrow.string())
    table = pyarrow.table(
        {"text": broken, "day": pyarrow.array([0, 0, 2**31 - 1], pyarrow.date32())}
    )
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    assert read(span(path)) == [
        (0, "good"),
        (1, "!invalid UTF-8 at byte 3 of a field"),
        (2, "last"),
    ]
    (_, good), _, (offset, last) = read(span(path), id_field="day")
    assert good == "good"
    assert offset == 2 and last.startswith("!a field cannot be read: ")


def test_what_is_no_file_is_rejected_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert texts(span(tmp_path / "pipe.txt")) == ["!not a regular file"]
    for name in ("gone.txt", "gone.jsonl", "gone.parquet", "gone.json.gz"):
        assert texts(span(tmp_path / name)) == ["!vanished"]


LINES = st.lists(st.text("ab\u00e9 ", max_size=12), max_size=30)


@given(
    lines=LINES,
    cuts=st.lists(st.integers(0, 400), max_size=6),
    kind=st.sampled_from([".jsonl", ".txt"]),
)
@settings(max_examples=100, deadline=None)
def test_a_file_read_in_parts_gives_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], cuts: list[int], kind: str
) -> None:
    path = tmp_path_factory.mktemp("parts") / f"a{kind}"
    rows = [json.dumps({"text": line}) for line in lines] if kind == ".jsonl" else lines
    path.write_bytes("\n".join(rows).encode())
    size = path.stat().st_size
    bounds = [0, *sorted(min(place, size) for place in cuts), size]
    parts = [
        item
        for start, end in itertools.pairwise(bounds)
        for item in read(span(path, start, end), split="line")
    ]
    assert parts == read(span(path), split="line")


def test_plain_text_has_no_fields_to_choose_by(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert texts(span(tmp_path / "a.txt"), where={"lang": "en"}) == []
