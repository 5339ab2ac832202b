"""What torch.compile needs of a node, before a rank runs into it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from hpc_llm.config.errors import InputError
from hpc_llm.train import need_compiler


@pytest.mark.parametrize(
    ("device", "variable", "named"), [("cuda", "CC", "gcc or clang"), ("cpu", "CXX", "g\\+\\+")]
)
def test_a_node_without_a_compiler_says_so(
    device: str, variable: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        InputError, match=rf"need a compiler \({named}\) .* set train\.compile=false"
    ):
        need_compiler(device)
    monkeypatch.setenv(variable, sys.executable)
    need_compiler(device)


def test_a_gpus_kernels_need_pythons_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    need_compiler("cpu")
    with pytest.raises(InputError, match=rf"need Python's headers \({tmp_path}/Python\.h\)"):
        need_compiler("cuda")
