"""Bad input, as a user meets it: every error at once, a line each, exit status 2, no traceback.

Item by item the list that submission must refuse before anything is written or queued.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from hpc_llm import plan, submit
from hpc_llm.config import hints
from hpc_llm.runs.freeze import freeze
from hpc_llm.submission.examine import examine
from tests.configs import make_config
from tests.runs.machine import REPOSITORY, can_mount, limit_file_size, mounted, python


@pytest.fixture(autouse=True)
def nowhere_special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's empty folder, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # sbatch on PATH does not matter inside a job
    monkeypatch.delenv("HPC_LLM_DEBUG", raising=False)


@dataclass
class Refusals:
    """submit's answer to bad words, in this process: its lines."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> list[str]:
        assert submit.main(list(words)) == 2
        shown = self.capsys.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert all(line.startswith("submit: ") for line in lines)
        return [line.removeprefix("submit: ") for line in lines]


@pytest.fixture
def refusals(capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(capsys)


def refused(done: subprocess.CompletedProcess[str], verb: str = "submit") -> list[str]:
    """The lines of a process that refused."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return [
        line.removeprefix(f"{verb}: ")
        for line in done.stderr.splitlines()
        if line.startswith(f"{verb}: ")
    ]


def nothing_written(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_unknown_keys_groups_and_presets_all_at_once(tmp_path: Path) -> None:
    words = [
        "train.seqlen=3",
        "modle=mpt-7b",
        "model=mpt-tinny",
        "+cluster=a100x46",
        "train.global_batch=many",
    ]
    lines = refused(python("-m", "hpc_llm.submit", *words, cwd=tmp_path))
    beginnings = [
        "train.seqlen: unknown key train.seqlen; allowed: seq_len, ",
        "modle: unknown key modle; allowed: model, ",
        "model=mpt-tinny: no such preset; allowed: mpt-tiny, ",
        "cluster=a100x46: no such preset; allowed: a100x64, ",
        "train.global_batch='many': a whole number is expected",
    ]
    assert len(lines) == len(beginnings)
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)
    assert nothing_written(tmp_path)


def test_sizes_lengths_vocabulary_name_data_and_root_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [
        "train.micro_batch=-3",
        "train.seq_len=1024",
        "model.vocab_size=4000",
        "run.name='a b;rm'",
    ]
    words += [
        "data=files",
        "data.source=/no/such",
        "run.root=file",
        "train.duration=300",
        "data.vocab_size=4096",
    ]
    lines = refused(python("-m", "hpc_llm.submit", *words, cwd=tmp_path))
    assert {line.partition(": ")[0] for line in lines} == {
        "train.micro_batch=-3",
        "train.seq_len=1024",
        "model.vocab_size=4000",
        "run.name='a b;rm'",
        "data.source=/no/such",
        f"run.root={tmp_path / 'file'}",
        "train.duration='300'",
    }
    assert len(lines) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_types_and_broken_rules_at_once(refusals: Refusals, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines = refusals("train.global_batch=many", "optim.lr=-1", "modle=x", "run.root=file")
    assert {line.partition(":")[0] for line in lines} == {
        "train.global_batch='many'",
        "optim.lr=-1.0",
        "modle",
        f"run.root={tmp_path / 'file'}",
    }


@pytest.mark.parametrize("name", ["plan", "prepare", "build"])
def test_every_verb_refuses_alike(tmp_path: Path, name: str) -> None:
    lines = refused(python("-m", f"hpc_llm.{name}", "modle=x", "optim=adam", cwd=tmp_path), name)
    assert [line.partition(":")[0] for line in lines] == ["modle", "optim=adam"]
    assert nothing_written(tmp_path)


def test_a_traceback_for_those_who_ask(tmp_path: Path) -> None:
    done = python(
        "-m", "hpc_llm.submit", "modle=x", cwd=tmp_path, environment={"HPC_LLM_DEBUG": "1"}
    )
    assert done.returncode not in (0, 2)
    assert "Traceback" in done.stderr


def test_an_unknown_verb_gets_the_nearest(tmp_path: Path) -> None:
    done = python("-m", "hpc_llm", "submt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hpc-llm: submt: no such verb; allowed: submit, ")


def test_output_cut_short_is_no_error(tmp_path: Path) -> None:
    command = (
        f"{shlex.quote(sys.executable)} -m hpc_llm.submit cluster=a100x8 model=mpt-7b "
        "dry_run=true | read line"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_a_sequence_longer_than_the_models(refusals: Refusals) -> None:
    (line,) = refusals("model=mpt-125m", "train.seq_len=4096")
    assert line.startswith(
        "train.seq_len=4096: at most model.max_seq_len=2048 of mpt-125m; lower it or set "
    )


def test_ranks_without_a_sequence(refusals: Refusals) -> None:
    (line,) = refusals("cluster=a100x64", "dry_run=true")
    assert line.startswith(
        "train.global_batch=16: at least one sequence for each of the 64 ranks (8 × 8) is needed"
    )


@dataclass(frozen=True)
class SmallCorpus:
    """Three short texts, prepared with a vocabulary of 384 pieces."""

    source: Path
    shards: Path

    @property
    def words(self) -> list[str]:
        return [
            "data=files",
            f"data.source={self.source}",
            "data.heldout_fraction=0.3",
            "data.workers=1",
        ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    folder = tmp_path_factory.mktemp("small")
    (folder / "text").mkdir()
    for number in range(3):
        words = " ".join(
            f"{word} {number}" for word in Path(os.__file__).read_text().split()[number::300]
        )
        (folder / "text" / f"{number}.txt").write_text(words)
    corpus = SmallCorpus(folder / "text", folder / "shards")
    words = [*corpus.words, f"data.out={corpus.shards}", "model.vocab_size=384"]
    assert python("-m", "hpc_llm.prepare", *words, cwd=folder).returncode == 0
    return corpus


def test_a_vocabulary_that_the_corpus_cannot_fill(small: SmallCorpus, tmp_path: Path) -> None:
    prepare = partial(
        python, "-m", "hpc_llm.prepare", *small.words, f"data.out={tmp_path / 'out'}", cwd=tmp_path
    )
    done = prepare("model.vocab_size=50304")
    assert done.returncode == 0, done.stderr
    said = re.search(
        r"data\.vocab_size=50304: the text yields only (\d+) pieces, so the tokenizer has \1",
        done.stderr,
    )
    assert said
    assert f"{int(said[1]):,} pieces (of 50,304 wanted: the text yields no more)" in done.stdout
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["vocab_size"] == int(
        said[1]
    )


def test_a_vocabulary_that_differs_from_the_tokenizers(small: SmallCorpus, tmp_path: Path) -> None:
    tokenizer = small.shards / "tokenizer.model"
    words = [*small.words, f"data.tokenizer={tokenizer}", f"data.out={tmp_path / 'out'}"]
    words += ["model.vocab_size=256"]
    (line,) = refused(python("-m", "hpc_llm.prepare", *words, cwd=tmp_path), "prepare")
    assert line == (
        f"data.vocab_size=256: {tokenizer} has 384 pieces; use model.vocab_size=384 (padded to "
        "a multiple of 128), or more"
    )
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_differs_from_the_prepared_datas(
    small: SmallCorpus, refusals: Refusals
) -> None:
    (line,) = refusals(*small.words, f"data.out={small.shards}")
    assert line.startswith(
        f"data.vocab_size=4096: {small.shards} was prepared with 384; choose another data.out"
    )


def test_embeddings_smaller_than_the_vocabulary(small: SmallCorpus, refusals: Refusals) -> None:
    lines = refusals(
        *small.words, f"data.out={small.shards}", "data.vocab_size=384", "model.vocab_size=256"
    )
    assert (
        "model.vocab_size=256: 384 is expected, the tokenizer's data.vocab_size=384 padded"
        in lines[0]
    )
    assert all(line.startswith("model.vocab_size=256: ") for line in lines)


def test_a_corpus_that_is_not_there(refusals: Refusals) -> None:
    assert refusals("data=files", "data.source=/no/such") == [
        "data.source=/no/such: no such file or folder"
    ]


def test_a_corpus_that_is_not_prepared_comes_with_what_to_type(
    refusals: Refusals, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("text")
    (line,) = refusals("data=files", "data.source=text.txt")
    assert line.startswith(
        "data=files: text.txt is not prepared for this tokenizer; type: "
        f"{hints.command('prepare', 'data=files')} "
    )


def test_a_corpus_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["data=files", "data.source=empty", "data.out=out", "data.workers=1"]
    (line,) = refused(python("-m", "hpc_llm.prepare", *words, cwd=tmp_path), "prepare")
    assert line.startswith(
        f"data.source={tmp_path / 'empty'}: no file in it ends in .arrow, .json, .jsonl, "
    )


@pytest.mark.parametrize("name", ["a b", "a;rm", "$(id)", "../../etc"])
def test_a_run_name_that_a_shell_would_take_apart(
    refusals: Refusals, tmp_path: Path, name: str
) -> None:
    (line,) = refusals(f"run.name='{name}'")
    assert line.startswith(f"run.name={name!r}: up to 100 letters, digits, ")
    assert nothing_written(tmp_path)


def test_a_run_directory_with_another_configuration(refusals: Refusals, tmp_path: Path) -> None:
    config = make_config(f"run.root={tmp_path / 'runs'}", "run.name=first")
    freeze(examine(config))
    (line,) = refusals("run.name=first", "optim.lr=0.5", "model.n_layers=2")
    assert line == (
        f"run.name=first: {tmp_path / 'runs' / 'first'} holds a run with another configuration "
        "(model.n_layers=4, now 2; optim.lr=0.002, now 0.5); give what it had, or choose another "
        "run.name, or remove that folder"
    )


def test_a_run_directory_that_is_none_of_ours(refusals: Refusals, tmp_path: Path) -> None:
    (tmp_path / "runs" / "thesis").mkdir(parents=True)
    (line,) = refusals("run.name=thesis")
    assert line.startswith(
        f"run.name=thesis: {tmp_path / 'runs' / 'thesis'} exists and is not a run of hpc_llm"
    )


def test_a_root_that_is_a_file_or_below_one(refusals: Refusals, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusals("run.root=file") == [
        f"run.root={tmp_path / 'file'}: a folder is expected, but this is a file"
    ]
    (line,) = refusals("run.root=file/runs")
    assert line.startswith(
        f"run.root={tmp_path / 'file' / 'runs'}: you cannot write to {tmp_path / 'file'}"
    )


def test_a_world_writable_root(refusals: Refusals, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(0o777)
    (line,) = refusals()
    assert line.startswith(
        f"run.root={root}: is world-writable, so anybody could change your runs; chmod o-w {root}"
    )
    assert nothing_written(root)


@pytest.mark.skipif(
    not can_mount(),
    reason="this user may not mount; tests/runs/test_preflight.py covers file modes",
)
def test_a_read_only_root(tmp_path: Path) -> None:
    prefix = mounted(tmp_path, "size=1m,mode=700,ro")
    done = python("-m", "hpc_llm.submit", f"run.root={tmp_path}", cwd=REPOSITORY, prefix=prefix)
    (line,) = refused(done)
    assert line.startswith(f"run.root={tmp_path}: you cannot write to {tmp_path}")


def test_an_empty_quota(tmp_path: Path) -> None:
    command = ("-m", "hpc_llm.submit", f"run.root={tmp_path}")
    if can_mount():
        done = python(*command, cwd=REPOSITORY, prefix=mounted(tmp_path, "size=64k,mode=700"))
        reason = "no space or quota is left"
    else:
        done = python(*command, cwd=REPOSITORY, preexec_fn=partial(limit_file_size, 1 << 16))
        reason = "File too large"
    (line,) = refused(done)
    assert line == (
        f"run.root={tmp_path}: {reason} (writing 1 MiB failed); free some space, or choose "
        "another run.root"
    )
    assert nothing_written(tmp_path)


@pytest.mark.skipif(
    not can_mount(),
    reason="this user may not mount; tests/runs/test_preflight.py covers the numbers",
)
def test_a_disk_too_small_for_the_checkpoints(tmp_path: Path) -> None:
    prefix = mounted(tmp_path, "size=32m,mode=700")
    (line,) = refused(
        python("-m", "hpc_llm.submit", f"run.root={tmp_path}", cwd=REPOSITORY, prefix=prefix)
    )
    assert re.fullmatch(
        rf"run\.root={tmp_path}: 0\.0 GiB free, 0\.2 GiB needed for checkpoint\.keep=2 "
        r"checkpoints and the one being "
        r"written; choose another run\.root or free space",
        line,
    )


@pytest.mark.parametrize("key", ["run.root", "data.source", "data.out", "data.tokenizer"])
def test_the_home_of_a_user_that_does_not_exist(refusals: Refusals, key: str) -> None:
    lines = refusals("data=files", "data.source=/no/such", f"{key}='~no-such-user/x'")
    assert f"{key}=~no-such-user/x: there is no user no-such-user; give another path" in lines


def test_a_group_that_one_is_not_in(refusals: Refusals) -> None:
    (line,) = refusals("run.group=no-such-group")
    assert line.startswith("run.group=no-such-group: is not one of your groups; allowed: ")


@pytest.mark.parametrize(
    "words",
    [
        ["model=mpt-13b", "cluster=a100x8", "train.zero_stage=1", "train.micro_batch=64"],
        ["model=mpt-70b", "cluster=a100x8"],
        ["model=mpt-30b", "cluster=h100x8", "train.activation_checkpointing=false"],
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_settings_that_do(
    refusals: Refusals, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (line,) = refusals(*words, "dry_run=true")
    assert re.match(
        rf"{words[0]}: [\d.]+ GiB per GPU are needed even with .*, [\d.]+ GiB more than ", line
    )
    suggestions = re.findall("`([^`]+)`", line)
    assert suggestions
    for suggestion in suggestions:
        assert submit.main([*words, *suggestion.split(), "dry_run=true"]) == 0, suggestion
        capsys.readouterr()


def test_a_login_node_is_not_for_training(
    refusals: Refusals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID")
    (line,) = refusals("run.root=runs")
    assert line.startswith(
        "cluster=local: sbatch is on PATH and this is no job: a login node is not for training"
    )
    assert line.endswith("or local=true to run here all the same")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = python(
        "-m", "hpc_llm.submit", "+cluster=a100x64", "model=mpt-7b", "dry_run=true", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "#SBATCH --nodes=8" in done.stdout
    assert nothing_written(tmp_path)


def test_a_plan_is_of_runs_and_not_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["-m", "search.trials=4", "run.seed=1,2"]) == 2
    assert capsys.readouterr().err.startswith(
        "plan: search.trials: what a search chooses is planned by "
    )
    assert plan.main(["search.trials=null"]) == 0


def test_a_plan_blames_no_word_that_nobody_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["test_only=true", "+cluster=a100x8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plan: test_only=true: asks Slurm, and a plan asks nobody; give it to ")
    assert "dry_run" not in said
