"""What is wrong with a user's YAML files: one sentence with the file and the place in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml


def not_utf8(folders: Sequence[Path]) -> Iterator[str]:
    """A sentence for every preset in `folders` that is not UTF-8, with the place."""
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                content = path.read_bytes()
                line = content.count(b"\n", 0, error.start) + 1
                column = error.start - content.rfind(b"\n", 0, error.start)
                yield f"{path}, line {line}, column {column}: not UTF-8; save the file as UTF-8"
            except OSError:
                continue  # opening it says so where it is chosen


def no_yaml(error: yaml.YAMLError) -> str:
    """What a parser of YAML found, and where."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context
        if mark is not None:
            return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {what}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.name}, character {error.position + 1}: {error.reason}"
    return " ".join(str(error).split())
