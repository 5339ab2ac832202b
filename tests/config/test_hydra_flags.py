"""Hydra's own flags keep working on our verbs: real processes, as a user types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from hpc_llm.config.schema import RunConfig
from hpc_llm.config.words import all_keys
from tests.configs import CONF, make_config, presets

REPOSITORY = CONF.parent


def verb(
    folder: Path, *words: str, name: str = "submit", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m hpc_llm.<name> words…`, typed in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", f"hpc_llm.{name}", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def answer(
    folder: Path, *words: str, name: str = "submit", environment: dict[str, str] | None = None
) -> str:
    """What it prints; it succeeds, complains of nothing, and leaves no file behind."""
    before = sorted(folder.rglob("*"))
    done = verb(folder, *words, name=name, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(folder.rglob("*")) == before
    return done.stdout


def test_cfg_job_prints_the_configuration(tmp_path: Path) -> None:
    shown = yaml.safe_load(answer(tmp_path, "--cfg", "job", "model=mpt-125m"))
    assert (shown["model"]["d_model"], shown["optim"]["lr"]) == (768, "${model.recipe.lr}")


def test_cfg_job_takes_every_word_that_submit_takes(tmp_path: Path) -> None:
    words = ("+cluster=a100x64", "cluster.partition=gpu", "+run.group=staff", "train.seq_len=128")
    shown = yaml.safe_load(answer(tmp_path, *words, "--cfg", "job", "--resolve"))
    config = make_config(*words)
    assert shown["cluster"]["partition"] == config.cluster.partition == "gpu"
    assert shown["cluster"]["nodes"] == config.cluster.nodes == 8
    assert shown["run"]["group"] == config.run.group == "staff"
    assert (shown["train"]["seq_len"], shown["optim"]["lr"]) == (
        config.train.seq_len,
        config.optim.lr,
    )


def test_a_part_of_the_configuration(tmp_path: Path) -> None:
    assert answer(tmp_path, "--cfg", "job", "--package", "run.seed") == "17\n"


def test_cfg_job_knows_a_users_own_conf(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    mine = (CONF / "model" / "mpt-tiny.yaml").read_text().replace("d_model: 256", "d_model: 64")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(mine)
    assert yaml.safe_load(answer(tmp_path, "--cfg", "job", "model=mine"))["model"]["d_model"] == 64


def test_help_names_the_command_and_every_preset(tmp_path: Path) -> None:
    shown = answer(tmp_path, "--help")
    assert shown.startswith("submit is powered by Hydra.")
    for group in (path.name for path in CONF.iterdir() if path.is_dir()):
        assert f"{group}: {', '.join(presets(group))}\n" in shown


def test_help_names_every_key_of_the_schema(tmp_path: Path) -> None:
    shown, _, further = answer(tmp_path, "--help").partition(
        "== Further keys, as they are unless given ==\n"
    )
    assert "cluster.signal_lead_s=auto  # a whole number or auto\n" in further
    for key in all_keys(RunConfig):
        assert f"\n{key}=" in f"\n{further}" or re.search(
            rf"\n *{key.rpartition('.')[2]}:", shown
        ), key


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--hydra-help"], "== Flags =="),
        (["--info", "searchpath"], str(CONF)),
        (["--version"], "Hydra 1.3"),
        (["--info", "defaults", "experiment=mpt-7b"], "model/mpt-7b"),
    ],
)
def test_hydras_other_answers(tmp_path: Path, words: list[str], shown: str) -> None:
    assert shown in answer(tmp_path, *words)


def test_other_verbs_answer_too(tmp_path: Path) -> None:
    assert answer(tmp_path, "--help", name="prepare").startswith("prepare is powered by Hydra.")


def test_a_wrong_flag_is_no_success(tmp_path: Path) -> None:
    done = verb(tmp_path, "--cfg", "nonsense")
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr


def test_completion_installs_what_bash_can_read(tmp_path: Path) -> None:
    script = answer(tmp_path, "-sc", "install=bash")
    assert "complete -o nospace" in script
    read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (read.returncode, read.stderr) == (0, "")


def test_completion_proposes_presets(tmp_path: Path) -> None:
    shown = answer(tmp_path, "-sc", "query=bash", environment={"COMP_LINE": "hpc-llm model=mpt-1"})
    assert shown.split() == ["model=mpt-125m", "model=mpt-13b", "model=mpt-1b"]


@pytest.mark.parametrize("program", ["hpc-llm submit", "python -m hpc_llm.submit"])
def test_completion_works_in_a_real_shell(tmp_path: Path, program: str) -> None:
    line = f"{program} model=mpt-1"
    typed = (
        'eval "$(python -m hpc_llm.submit -sc install=bash)"\n'
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_WORDS=({line}); "
        f"COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        "function=$(complete -p ${COMP_WORDS[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        '$function; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", typed], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.stdout.split() == ["model=mpt-125m", "model=mpt-13b", "model=mpt-1b"]
