"""The README's drawings are the repository and the run directory as they are; what is tracked is
fit to publish.

A drawing is a fenced block whose first line is `hpc_llm/` or `<root>/…`. In it every line begins
with the names of entries, one or two spaces between them, and says what they are after three spaces
or more. Two spaces of indentation are one folder deeper; `<…>` stands for any name.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_llm.checkpoint import manifest
from hpc_llm.runs import attempts
from hpc_llm.runs.freeze import freeze
from hpc_llm.runs.layout import RunLayout
from hpc_llm.runs.ledger import Ledger
from tests.configs import make_config, planned
from tests.runs.machine import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
OF_GIT = {".gitignore", ".gitattributes", ".gitmodules"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A name in a drawing: its path from the top of the drawing, and what the line says of it."""

    path: str
    says: str

    @property
    def pattern(self) -> str:
        return re.sub(r"<[^>]*>", "*", self.path)


def drawing(text: str, first: str) -> str:
    """The fenced block of `text` whose first line begins with `first`; empty if there is none."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return next((block for block in blocks if block.startswith(first)), "")


def entries(block: str) -> Iterator[Entry]:
    """Every name of a drawing."""
    above: list[tuple[int, str]] = []  # indentation and path of the folders that the line lies in
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        names, says, *_ = *re.split(r" {3,}|\s+(?:#|→|->)\s*", line.strip(), maxsplit=1), ""
        while above and above[-1][0] >= depth:
            above.pop()
        folder = above[-1][1] if above else ""
        for name in names.split():
            yield Entry(folder + name, says)
        last = names.split()[-1]
        if last.endswith("/"):
            above.append((depth, folder + last))


def tracked() -> list[str]:
    """Paths of the files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name]


def mentioned(says: str) -> list[str]:
    """File names in a description."""
    return re.findall(r"[\w./-]*\w\.(?:py|sh|yaml|md|toml|cfg|txt)\b", says)


EXAMPLE = """\
hpc_llm/
  submit.py plan.py    one verb each
  config/         schema.py, Hydra composition
    compose.py    # words → configuration
  conf            → ../conf
docs/             a page per task; decisions.md

README.md setup.cfg
"""


def test_a_drawing_is_read_as_it_is_meant() -> None:
    text = f"# Title\n```console\n$ ls\n```\n\n```\n{EXAMPLE}```\n\n```\n<root>/<name>/\n```\n"
    assert drawing(text, "hpc_llm/") == EXAMPLE
    assert drawing(text, "<root>/") == "<root>/<name>/\n"
    assert drawing(text, "nothing/") == ""
    found = list(entries(EXAMPLE))
    assert [entry.path for entry in found] == [
        *(
            "hpc_llm/",
            "hpc_llm/submit.py",
            "hpc_llm/plan.py",
            "hpc_llm/config/",
            "hpc_llm/config/compose.py",
        ),
        *("hpc_llm/conf", "docs/", "README.md", "setup.cfg"),
    ]
    assert mentioned(found[3].says) == ["schema.py"]
    assert mentioned(found[6].says) == ["decisions.md"]
    assert Entry("ledger/<writer>.jsonl", "").pattern == "ledger/*.jsonl"


def test_the_readme_draws_both() -> None:
    assert drawing(README, "hpc_llm/")
    assert drawing(README, "<root>/")


def test_every_path_in_the_readmes_tree_exists() -> None:
    wrong = []
    for entry in entries(drawing(README, "hpc_llm/")):
        here = REPOSITORY / entry.path
        if not here.exists() or (
            here.is_dir() != entry.path.endswith("/") and not here.is_symlink()
        ):
            wrong.append(entry.path)
        for name in mentioned(entry.says):
            if not any((folder / name).exists() for folder in (here, here.parent, REPOSITORY)):
                wrong.append(f"{entry.path}: {name}")
    assert wrong == []


def test_every_entry_of_the_repository_is_in_the_readmes_tree() -> None:
    """Top-level entries, and the rooms and verbs of the package."""
    drawn = {entry.path.rstrip("/") for entry in entries(drawing(README, "hpc_llm/"))}
    top = {name.split("/")[0] for name in tracked()} - OF_GIT
    package = {"/".join(name.split("/")[:2]) for name in tracked() if name.startswith("hpc_llm/")}
    package.discard("hpc_llm/__init__.py")
    assert sorted((top | package) - drawn) == []


@pytest.fixture
def lived(tmp_path: Path) -> RunLayout:
    """A run directory with everything that a run leaves in it."""
    config = make_config(f"run.root={tmp_path}", "run.name=first")
    layout = freeze(planned(config))
    Ledger(layout.ledger, "submit").write("submitted")
    number = attempts.claim(layout)
    layout.supervisor_log(number).touch()
    layout.rank_log(number, 0).touch()
    folder = manifest.folder_of(layout.checkpoints, 500)
    folder.mkdir()
    manifest.publish(folder, manifest.Manifest(500, 0, 1, 1, 1, "bf16", "torch_adam", {}, []))
    for name, value in vars(RunLayout).items():
        path = getattr(layout, name)
        if isinstance(value, property) and isinstance(path, Path) and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return layout


def test_the_readmes_run_directory_is_the_real_one(lived: RunLayout) -> None:
    first, *inside = entries(drawing(README, "<root>/"))
    drawn = [entry.pattern.removeprefix(first.pattern).rstrip("/") for entry in inside]
    assert drawn
    assert [pattern for pattern in drawn if not list(lived.path.glob(pattern))] == []
    real = {path.name for path in lived.path.iterdir() if not path.name.startswith(".")}
    assert sorted(real - {pattern.split("/")[0] for pattern in drawn}) == []


def test_git_ignores_no_source() -> None:
    """A pattern such as `runs/` swallows hpc_llm/runs with ./runs."""
    source = [
        str(path.relative_to(REPOSITORY))
        for folder in ("hpc_llm", "tests", "conf", "tools", "docs", "sbatch")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        input="\n".join(source),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == []


HOMES = re.compile(r"(?<![\w.$~}])/(?:home|Users)/(?!me\b|you\b|user\b)[a-z]\w*|/root/\w")


def test_no_tracked_file_knows_somebodys_home() -> None:
    assert HOMES.search("see /home" + "/jane/x")
    found = []
    for name in tracked():
        path = REPOSITORY / name
        if path.is_file():
            text = path.read_text(errors="replace")
            found += [f"{name}: {match[0]}" for match in HOMES.finditer(text)]
    assert found == []
