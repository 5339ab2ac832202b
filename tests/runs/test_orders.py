"""What processes tell each other, and the page that says it all."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

from hpc_llm import train
from hpc_llm.checkpoint.errors import SaveFailed
from hpc_llm.recovery.causes import classify
from hpc_llm.runs import orders
from hpc_llm.runs.orders import ExitCode, RankOrders
from hpc_llm.training.stop import Diverged
from tests.runs.machine import REPOSITORY

PACKAGE = REPOSITORY / "hpc_llm"
PAGE = orders.__doc__ or ""
GIVEN = RankOrders(attempt=3, micro_batch=4, rendezvous="/runs/first/3", supervisor=77, hold=True)


@pytest.mark.parametrize("given", [GIVEN, RankOrders(), RankOrders(attempt=1, micro_batch=2)])
def test_a_rank_reads_what_its_supervisor_has_written(given: RankOrders) -> None:
    assert orders.read({"PATH": "/bin", **given.export()}) == given


def test_scripts_may_rely_on_the_names() -> None:
    assert GIVEN.export() == {
        "HPC_LLM_ATTEMPT": "3",
        "HPC_LLM_MICRO_BATCH": "4",
        "HPC_LLM_RENDEZVOUS": "/runs/first/3",
        "HPC_LLM_SUPERVISOR": "77",
        "HPC_LLM_HOLD": "1",
    }
    assert (orders.PARENT, orders.AFTER) == ("HPC_LLM_PARENT", "HPC_LLM_AFTER")


def test_the_page_names_every_variable_and_no_other_file_spells_one() -> None:
    named = set(re.findall(r"^    (HPC_LLM_\w+)", PAGE, re.MULTILINE))
    assert named == {*GIVEN.export(), orders.PARENT, orders.AFTER}
    guilty = [
        str(path)
        for path in PACKAGE.rglob("*.py")
        if path.name != "orders.py" and any(f'"{name}"' in path.read_text() for name in named)
    ]
    assert guilty == []


def drawn() -> Iterator[tuple[str, str, str]]:
    """Each error of the page's drawing: the one that it is a kind of, its name, what follows."""
    above = ["Exception"]
    for line in PAGE.splitlines():
        found = re.match(r"    ([│ ]*)[├└]── (.*)", line)
        if found:
            depth = 1 + len(found[1]) // 4
            name = found[2].split("  ")[0].strip()
            above[depth:] = [name]
            yield above[depth - 1], name, found[2].removeprefix(name).strip()


def error_classes() -> dict[str, type[Exception]]:
    """Every error that the package defines, by name."""
    classes: dict[str, type[Exception]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(base_of_errors(base) for base in node.bases):
                module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
                classes[node.name] = getattr(importlib.import_module(module), node.name)
    return classes


def base_of_errors(node: ast.expr) -> bool:
    names = {name for _, name, _ in drawn()} | {"Exception"}
    return ast.unparse(node).rpartition(".")[2] in names


def test_every_error_of_ours_is_drawn_below_the_one_that_it_is_a_kind_of() -> None:
    classes = error_classes()
    parents = {name: parent for parent, name, _ in drawn()}
    assert set(classes) <= set(parents)
    for name, error in classes.items():
        assert error.__base__ is not None and error.__base__.__name__ == parents[name]


def raised(name: str) -> Exception:
    """An error as the drawing names it."""
    kinds: dict[str, Exception] = {
        "SaveFailed, with no room": SaveFailed("full", full=True),
        "SaveFailed": SaveFailed("broken", full=False),
        "Diverged": Diverged(3, float("nan"), 1.0, "not finite"),
        "MemoryError": MemoryError(),
        "torch.OutOfMemoryError": type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
        "any other": ValueError("a bug"),
    }
    if name not in kinds:
        kinds[name] = error_classes()[name]("a message")
    return kinds[name]


def test_the_drawings_exit_codes_and_words_are_those_of_the_code() -> None:
    codes = set()
    for _, name, text in drawn():
        row = re.match(r"(\d+) ([A-Z_]+) +([a-z-]+)", text)
        if row:
            code = ExitCode[row[2]]
            codes.add(code)
            assert int(row[1]) == code == train.exit_code(raised(name))
            assert classify({0: int(code)}, 0) == row[3]
    assert codes == set(ExitCode) - {ExitCode.COMPLETED, ExitCode.STOPPED}
