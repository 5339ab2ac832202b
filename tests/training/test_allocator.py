"""Processes that train on a CPU have tcmalloc where it is installed, and keep what the user
chose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_llm.training.allocator import LIBRARIES, SETTINGS, environment, library

LIBRARY = LIBRARIES[0]
installed = pytest.mark.skipif(
    library() is None, reason="tools/install_tcmalloc.sh has not been run"
)
RESTARTED = """
import os, sys
from hpc_llm.training import allocator
begun = os.environ.setdefault("BEGUN", str(os.getpid()))
before = os.environ.get("LD_PRELOAD")
allocator.restart_with_tcmalloc()
print(before, allocator.another_in_use(), begun == str(os.getpid()), sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("given", "found", "wanted"),
    [
        ({}, None, {}),
        ({}, LIBRARY, {"LD_PRELOAD": LIBRARY, **SETTINGS}),
        ({"LD_PRELOAD": ""}, LIBRARY, {"LD_PRELOAD": LIBRARY, **SETTINGS}),
        (
            {"LD_PRELOAD": "libsite.so"},
            LIBRARY,
            {"LD_PRELOAD": f"libsite.so:{LIBRARY}", **SETTINGS},
        ),
        ({"LD_PRELOAD": f"/opt/lib/{LIBRARY}"}, LIBRARY, {}),
    ],
    ids=["none installed", "plain", "empty", "beside another", "there, or tried in vain"],
)
def test_what_a_process_is_started_with(
    given: dict[str, str], found: str | None, wanted: dict[str, str]
) -> None:
    assert environment(given, found) == wanted


def test_settings_of_the_user_stay() -> None:
    given = dict.fromkeys(SETTINGS, "the user's")
    assert environment(given, LIBRARY) == {"LD_PRELOAD": LIBRARY}


@installed
def test_the_environment_of_the_interpreter_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "lib" / LIBRARIES[1]
    own.parent.mkdir()
    own.write_text("no library")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert library() in LIBRARIES, "what the loader refuses is passed over"
    own.write_bytes(found().read_bytes())
    assert library() == str(own)


def found() -> Path:
    """Where the loader has tcmalloc, by the map of a process that it was loaded into."""
    script = "print(open('/proc/self/maps').read())"
    environment = {**os.environ, "LD_PRELOAD": str(library())}
    maps = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    ).stdout
    return next(Path(line.split()[-1]) for line in maps.splitlines() if "libtcmalloc" in line)


@installed
def test_a_process_that_looks_for_it_goes_on_with_its_own_malloc() -> None:
    """dlopen would leave it with two: importing numpy aborted such a rank where LD_PRELOAD named a
    missing file.
    """
    script = (
        "from hpc_llm.training import allocator; allocator.restart_with_tcmalloc(); import "
        "numpy; print('alive')"
    )
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    for preload in ({}, {"LD_PRELOAD": f"/nowhere/{LIBRARIES[0]}"}):
        done = subprocess.run(
            [sys.executable, "-c", script], env={**clean, **preload}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def restarted(**environment: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "BEGUN")}
    done = subprocess.run(
        [sys.executable, "-c", RESTARTED, "a word"],
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@installed
def test_a_process_begins_anew_with_the_same_words_under_the_same_pid() -> None:
    assert restarted() == [f"{library()} True True ['a word']"]


@installed
def test_another_malloc_of_the_user_is_left_alone() -> None:
    assert restarted(LD_PRELOAD=str(library())) == [f"{library()} True True ['a word']"]


def test_a_library_that_cannot_be_loaded_is_tried_once(tmp_path: Path) -> None:
    broken = tmp_path / LIBRARY
    broken.write_text("no library")
    said = restarted(LD_PRELOAD=str(broken))
    assert said == [f"{broken} False True ['a word']"]
