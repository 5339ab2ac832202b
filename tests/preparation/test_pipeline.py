from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpc_llm.config.building import to_dict
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import check_digests, facts, read_manifest
from hpc_llm.data.recipe import check_recipe, directory_for
from hpc_llm.preparation.pipeline import prepare
from hpc_llm.text.tokenizer import open_tokenizer
from tests.small_data import run_config

Content = Callable[[Path], dict[str, bytes]]


def config_for(corpus: Path, **data: object) -> RunConfig:
    return run_config(source=str(corpus), **{"heldout_fraction": 0.1, "workers": 1, **data})


def decoded(directory: Path, split: str) -> list[str]:
    """Documents of a split, as text."""
    tokenizer = open_tokenizer((directory / "tokenizer.model").read_bytes())
    texts = []
    for shard in read_manifest(directory).shards[split]:
        tokens = np.fromfile(directory / shard.file, "<u2")
        offsets = np.fromfile(directory / shard.file.replace(".bin", ".idx"), "<u8").astype(int)
        for start, end in itertools.pairwise(offsets):
            assert tokens[end - 1] == tokenizer.eos_id
            texts.append(tokenizer.decode(tokens[start : end - 1].tolist()))
    return texts


def test_every_document_is_in_exactly_one_split_in_order_of_names(
    prepared: Path, corpus: Path
) -> None:
    train = decoded(prepared, "train")
    heldout = decoded(prepared, "heldout")
    paths = sorted(corpus.rglob("*.py"), key=lambda path: path.relative_to(corpus).as_posix())
    texts = [path.read_text(encoding="utf-8") for path in paths]
    assert train == [text for text in texts if text in set(train)]
    assert heldout == [text for text in texts if text in set(heldout)]
    assert len(train) + len(heldout) == len(texts)
    assert not set(train) & set(heldout)
    assert heldout


def test_manifest_says_what_lies_there(prepared: Path, corpus: Path) -> None:
    manifest = read_manifest(prepared)
    assert manifest.documents["in"] == 40
    for shards in manifest.shards.values():
        for shard in shards:
            content = (prepared / shard.file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard.sha256
            assert len(content) == 2 * shard.tokens
    text_bytes = sum(path.stat().st_size for path in corpus.rglob("*.py"))
    assert manifest.bytes_per_token == pytest.approx(text_bytes / sum(manifest.tokens.values()))
    known = facts(prepared)
    assert (known.tokens, known.heldout_tokens) == (
        manifest.tokens["train"],
        manifest.tokens["heldout"],
    )
    assert known.vocab_size == 512


def test_unigram_entropy_is_the_loss_of_a_model_without_context(prepared: Path) -> None:
    train, heldout = (
        np.fromfile(prepared / f"{split}-files-00000.bin", "<u2").tolist()
        for split in ("train", "heldout")
    )
    counts = collections.Counter(train)
    loss = -sum(math.log((counts[token] + 1) / (len(train) + 512)) for token in heldout)
    assert facts(prepared).unigram_entropy == pytest.approx(loss / len(heldout))


def test_two_workers_write_the_same_bytes_as_one(
    prepared: Path, corpus: Path, tmp_path: Path, content: Content
) -> None:
    prepare(config_for(corpus, workers=2), tmp_path / "data")
    assert content(tmp_path / "data") == content(prepared)


def test_split_and_tokenizer_do_not_depend_on_file_names(
    prepared: Path, corpus: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(corpus.rglob("*.py"), reverse=True)):
        shutil.copy(path, renamed / f"{number:03d}.txt")
    prepare(config_for(renamed), tmp_path / "data")
    assert sorted(decoded(tmp_path / "data", "heldout")) == sorted(decoded(prepared, "heldout"))
    assert (tmp_path / "data" / "tokenizer.model").read_bytes() == (
        prepared / "tokenizer.model"
    ).read_bytes()


def test_rejects_are_counted_and_listed(corpus: Path, tmp_path: Path) -> None:
    source = shutil.copytree(corpus, tmp_path / "source")
    (source / "empty.txt").touch()
    (source / "more" / "latin.txt").write_bytes(b"caf\xe9")
    (source / "gone.txt").symlink_to("nowhere")
    prepare(config_for(source), tmp_path / "data")
    documents = read_manifest(tmp_path / "data").documents
    assert documents["in"] == 43
    assert documents["rejects"] == 3
    lines = [
        json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"source": "files", "file": "empty.txt", "offset": 0, "reason": "empty"},
        {"source": "files", "file": "gone.txt", "offset": 0, "reason": "vanished"},
        {
            "source": "files",
            "file": "more/latin.txt",
            "offset": 0,
            "reason": "invalid UTF-8 at byte 3",
        },
    ]


def test_too_many_rejects_stop_and_a_higher_limit_goes_on(corpus: Path, tmp_path: Path) -> None:
    source = shutil.copytree(corpus, tmp_path / "source")
    for number in range(20):
        (source / f"{number}.txt").touch()
    with pytest.raises(
        InputError,
        match=r"data\.max_reject_fraction=0\.2: 20 of 60 documents are unusable \(0\.txt: em",
    ):
        prepare(config_for(source), tmp_path / "out" / "data")
    assert not (tmp_path / "out" / "data").exists()
    prepare(config_for(source, max_reject_fraction=0.5), tmp_path / "out" / "data")


def test_file_that_changes_meanwhile_is_a_reject(corpus: Path, tmp_path: Path) -> None:
    source = shutil.copytree(corpus, tmp_path / "source")
    changed = sorted(source.glob("*.py"))[3]

    def change(stage: str, done: int, total: int, tokens: int) -> None:
        if stage.startswith("training"):
            changed.write_text("something else")

    prepare(config_for(source), tmp_path / "data", change)
    assert read_manifest(tmp_path / "data").documents["rejects"] == 1
    assert "changed while" in (tmp_path / "data" / "rejects.jsonl").read_text()


@pytest.mark.parametrize(
    ("stage", "workers"),
    [("reading", 1), ("training the tokenizer", 1), ("tokenising", 1), ("tokenising", 2)],
)
def test_killed_anywhere_the_same_call_makes_the_same_bytes(
    stage: str, workers: int, prepared: Path, corpus: Path, tmp_path: Path, content: Content
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from pathlib import Path\n"
        "from hpc_llm.config.building import build\n"
        "from hpc_llm.config.schema import RunConfig\n"
        "from hpc_llm.preparation.pipeline import prepare\n"
        "def die(stage, done, total, tokens):\n"
        "    if stage == sys.argv[3]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    prepare(build(RunConfig, json.loads(sys.argv[1])), Path(sys.argv[2]), die)\n"
    )
    config = config_for(corpus, workers=workers)
    directory = tmp_path / "data"
    argv = [json.dumps(to_dict(config)), str(directory), stage]
    # the output ends when the last worker has: none outlives the process that was killed
    done = subprocess.run(
        [sys.executable, str(script), *argv], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert not directory.exists()
    assert list(tmp_path.glob("data.partial-*"))
    prepare(config, directory)
    assert content(directory) == content(prepared)
    assert not list(tmp_path.glob("*.partial-*"))


def test_two_at_once_prepare_once(
    corpus: Path, tmp_path: Path, content: Content, prepared: Path
) -> None:
    stages: list[str] = []
    entered = threading.Event()
    other_waits = threading.Event()

    def first(stage: str, done: int, total: int, tokens: int) -> None:
        entered.set()
        assert other_waits.wait(30)

    def second(stage: str, done: int, total: int, tokens: int) -> None:
        stages.append(stage)
        other_waits.set()

    thread = threading.Thread(target=prepare, args=(config_for(corpus), tmp_path / "data", first))
    thread.start()
    assert entered.wait(30)
    prepare(config_for(corpus), tmp_path / "data", second)
    thread.join()
    assert stages == ["waiting for another preparation of this data"]
    assert content(tmp_path / "data") == content(prepared)


def test_prepared_data_is_returned_at_once(prepared: Path, corpus: Path) -> None:
    stages: list[str] = []
    known = prepare(
        config_for(corpus), prepared, lambda stage, done, total, tokens: stages.append(stage)
    )
    assert known == facts(prepared)
    assert not stages


def test_data_prepared_otherwise_is_never_taken_for_what_is_asked(
    prepared: Path, corpus: Path
) -> None:
    with pytest.raises(InputError, match=r"data\.vocab_size=600: .* was prepared with 512"):
        prepare(config_for(corpus, vocab_size=600), prepared)


def test_folder_of_other_things_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists and is no prepared data"):
        prepare(config_for(corpus), tmp_path)


def test_brought_tokenizer_is_used_as_it_is(prepared: Path, corpus: Path, tmp_path: Path) -> None:
    model = prepared / "tokenizer.model"
    prepare(config_for(corpus, tokenizer=str(model), vocab_size=None), tmp_path / "data")
    for name in ("tokenizer.model", "train-files-00000.bin", "heldout-files-00000.bin"):
        assert (tmp_path / "data" / name).read_bytes() == (prepared / name).read_bytes()


def test_cache_folder_depends_on_what_changes_the_bytes_alone(corpus: Path) -> None:
    config = config_for(corpus)
    folder = directory_for(config)
    assert folder.parent == Path("runs/.data")
    assert folder.name.startswith("files-")
    for same in ({"workers": 7}, {"max_reject_fraction": 0.9}):
        assert directory_for(config_for(corpus, **same)) == folder
    for other in (
        {"vocab_size": 600},
        {"suffixes": [".py"]},
        {"heldout_fraction": 0.2},
        {"tokenizer": "/x"},
    ):
        assert directory_for(config_for(corpus, **other)) != folder
    assert directory_for(config_for(corpus, out="/data/mine")) == Path("/data/mine")
    moved = dataclasses.replace(config, run=dataclasses.replace(config.run, root="/scratch"))
    assert directory_for(moved) == Path("/scratch/.data") / folder.name


def test_a_setting_that_a_later_version_adds_leaves_prepared_data_as_they_are(
    prepared: Path, corpus: Path
) -> None:
    manifest = read_manifest(prepared)
    older = dataclasses.replace(
        manifest, recipe={k: v for k, v in manifest.recipe.items() if k != "max_chars"}
    )
    check_recipe(older, config_for(corpus).data, prepared)
    with pytest.raises(InputError, match=r"data\.max_chars=9"):
        check_recipe(older, config_for(corpus, max_chars=9).data, prepared)


def test_data_that_was_prepared_anew_is_told_by_its_tokens(
    prepared: Path, corpus: Path, tmp_path: Path
) -> None:
    planned = facts(prepared).digests
    prepare(config_for(corpus, workers=2), tmp_path / "again")
    check_digests(tmp_path / "again", planned)
    prepare(config_for(corpus, vocab_size=600), tmp_path / "other")
    with pytest.raises(InputError, match=r"prepared anew since .* other tokens of files"):
        check_digests(tmp_path / "other", planned)


def test_facts_need_no_numpy(prepared: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hpc_llm.data.manifest import facts; "
        "facts(Path(sys.argv[1]));sys.exit(bool({'numpy', 'sentencepiece', 'torch'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(prepared)], check=False).returncode == 0
