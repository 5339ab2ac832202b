"""Words of the command line → RunConfig, as a user types them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from hpc_llm.config import hydra_seam
from hpc_llm.config.compose import compose, compose_all, compose_sweep, searches
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from tests.configs import CONF, make_config, presets

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
SHIPPED = [(group, name) for group in GROUPS for name in presets(group)]


def problems(*words: str) -> list[str]:
    with pytest.raises(InputError) as raised:
        compose_all(list(words))
    return raised.value.problems


def own_model(conf: Path, name: str) -> Path:
    """A user's conf folder with a model of their own in it."""
    (conf / "model").mkdir(parents=True)
    text = (CONF / "model" / "mpt-tiny.yaml").read_text().replace("name: mpt-tiny", f"name: {name}")
    (conf / "model" / f"{name}.yaml").write_text(text)
    return conf


@pytest.mark.parametrize(("group", "name"), SHIPPED)
def test_every_shipped_preset_composes(group: str, name: str) -> None:
    words = [f"{group}={name}", *(["data.source=/text"] if name == "files" else [])]
    config, *_ = compose_all([*words, "-m"])
    assert isinstance(config, RunConfig)
    if group in ("model", "data", "optim", "cluster"):
        assert getattr(config, group).name == name


@pytest.mark.parametrize(
    ("group", "name"), [("cluster", name) for name in presets("cluster")] + [("model", "mpt-7b")]
)
def test_a_plus_before_a_group_means_the_same(group: str, name: str) -> None:
    assert compose([f"+{group}={name}"]) == make_config(f"{group}={name}")


def test_what_the_user_types_wins_over_an_experiment() -> None:
    config = make_config("experiment=mpt-7b", "model=mpt-1b", "train.global_batch=880")
    assert (config.model.name, config.optim.name, config.cluster.name) == (
        "mpt-1b",
        "fused_lion",
        "a100x440",
    )
    assert (config.train.global_batch, config.train.duration) == (880, "1e12tok")


def test_batch_length_and_rate_follow_the_model() -> None:
    config = make_config("model=mpt-125m")
    recipe = config.model.recipe
    assert (config.train.seq_len, config.train.global_batch) == (
        recipe.seq_len,
        recipe.global_batch,
    )
    assert (config.train.duration, config.optim.lr) == (recipe.duration, recipe.lr)
    assert config.data.vocab_size == config.model.vocab_size
    assert make_config("model=mpt-125m", "optim=fused_lion").optim.lr == pytest.approx(
        0.3 * recipe.lr
    )


def test_a_key_that_no_preset_spells_out_can_be_given() -> None:
    words = (
        "cluster=a100x64",
        "cluster.partition=gpu",
        "+cluster.qos=long",
        "++cluster.exports.NCCL_DEBUG=WARN",
    )
    cluster = make_config(*words).cluster
    assert (cluster.partition, cluster.qos, cluster.exports) == (
        "gpu",
        "long",
        {"NCCL_DEBUG": "WARN"},
    )


def test_no_trackers() -> None:
    assert make_config("trackers=[]").trackers.tensorboard is None
    assert make_config("trackers=[tensorboard]") == make_config()


def test_composing_leaves_hydra_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(["model=mpt-125m"])
    assert not GlobalHydra.instance().is_initialized()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=0.001,0.002", "run.seed=1,2", "run.name=a"],
        ["run.seed=range(5,1,-2)", "optim=torch_adam,cpu_adam"],
        ["optim=choice(torch_adam,cpu_adam)", "run.seed=sort(3,1)", "train.precision=fp32"],
        ["model=glob(mpt-1*)", "run.seed=1,2"],
    ],
)
def test_a_sweep_has_hydras_order(words: list[str]) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(words), max_batch_size=None)
    assert len(batch) > 1
    assert compose_all([*words, "-m"]) == [make_config(*choice) for choice in batch]


@pytest.mark.parametrize(
    "words",
    [
        # what other keys follow by interpolation, under every preset that spells them differently
        ["model=mpt-tiny,mpt-125m", "optim=fused_adam,fused_lion", "model.recipe.lr=1e-4,0.5"],
        [
            "model.recipe.duration=7steps,1e6tok",
            "model.recipe.seq_len=64,128",
            "model.vocab_size=512,1024",
        ],
        ["optim.lr='${model.recipe.lr}','${scale:${model.recipe.lr},2}'", "model.recipe.lr=1,2"],
        ["experiment=mpt-7b,mpt-30b", "train.global_batch=880,1760", "run.seed=1,2"],
        # keys that no preset spells out, also below one that is not there
        [
            "cluster=a100x8",
            "+cluster.qos=a,b",
            "cluster.exports.X=1,two",
            "trackers=[],[tensorboard]",
        ],
        ["trackers=[]", "trackers.tensorboard.every=5,7"],
        # values of every kind
        [
            "train.zero_stage=auto,1",
            "run.group=null,me",
            "local=true,false",
            "run.name='a b','c,d'",
            "optim.eps=1,1e-9",
        ],
        # words that touch the same key: the last one holds, and mappings merge
        ["optim.lr=1,2", "optim.lr=3"],
        ["optim.lr=3", "optim.lr=1,2"],
        ["cluster=a100x8", "cluster.exports={A: 1},{B: 2}", "cluster.exports.C=3,4"],
        ["cluster=a100x8", "cluster.exports={A: 1},{B: 2}", "run.seed=1,2"],
        ["data.suffixes=[.a],[.b,.c]", "optim.betas=[0.9,0.95],[0.9,0.99]", "run.seed=1,2"],
        ["+cluster=a100x8", "~cluster.mem", "cluster.cpus_per_gpu=2,3"],
    ],
    ids=lambda words: words[-1],
)
def test_a_sweep_is_what_hydra_composes_one_by_one(words: list[str]) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(words), max_batch_size=None)
    assert compose_all([*words, "-m"]) == [compose(choice) for choice in batch]


def test_a_sweep_says_what_it_chose() -> None:
    found = compose_sweep(
        ["optim.lr=1e-3,2e-3", "+model=mpt-tiny,mpt-125m", "run.seed=range(1,2)", "json=true", "-m"]
    )
    assert [choice.swept for choice in found][1:3] == [
        {"optim.lr": "0.001", "model": "mpt-125m"},
        {"optim.lr": "0.002", "model": "mpt-tiny"},
    ]


def test_a_large_sweep_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compositions: list[object] = []
    hydra_compose = hydra_seam.compose

    def counted(overrides: Sequence[str], folders: Sequence[Path] = ()) -> hydra_seam.Composed:
        compositions.append(overrides)
        return hydra_compose(overrides, folders)

    monkeypatch.setattr(hydra_seam, "compose", counted)
    found = compose_all(
        ["run.seed=range(0,50)", "model=mpt-tiny,mpt-125m", "model.recipe.lr=1e-3,2e-3", "-m"]
    )
    assert (len(found), len(compositions)) == (200, 2)
    assert {config.optim.lr for config in found} == {1e-3, 2e-3}


def test_multirun_of_one_choice_is_one_run() -> None:
    assert compose_all(["run.seed=3", "--multirun"]) == [compose(["run.seed=3"])]


def test_several_values_without_m_are_no_sweep() -> None:
    assert problems("model=mpt-tiny,mpt-125m") == [
        "model=mpt-tiny,mpt-125m: several values are a sweep; add -m"
    ]


def test_a_list_of_slurms_is_to_be_quoted() -> None:
    (line,) = problems("cluster=a100x8", "cluster.partition=gpu,long")
    assert line.endswith(
        "quote a list of Slurm's, \"cluster.partition='gpu,long'\"; for a sweep add -m"
    )
    quoted = compose(["cluster=a100x8", "cluster.partition='gpu,long'"])
    assert quoted.cluster.partition == "gpu,long"


def test_a_folder_conf_where_the_user_stands_adds_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_model(tmp_path / "conf", "mine")
    monkeypatch.chdir(tmp_path)
    assert compose(["model=mine"]) == replace(
        make_config(), model=replace(make_config().model, name="mine")
    )
    assert compose(["model=mpt-7b"]) == make_config("model=mpt-7b")
    assert problems("model=mines")[0].startswith("model=mines: no such preset; allowed: mine, ")


@pytest.mark.parametrize("name", ["with a space", "it's", "a,b=c", "[1]", "ключ"])
def test_config_dir_adds_presets_wherever_it_lies(tmp_path: Path, name: str) -> None:
    conf = own_model(tmp_path / name, "mine")
    assert compose(["--config-dir", str(conf), "model=mine"]).model.name == "mine"


@pytest.mark.parametrize("form", ["--config-dir={}", "--config-dir {}", "-cd {}"])
def test_config_dir_may_stand_anywhere(tmp_path: Path, form: str) -> None:
    flag = form.format(own_model(tmp_path / "conf", "mine")).split(" ")
    assert compose(["+model=mine", *flag]).model.name == "mine"


def test_conf_and_config_dir_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_model(tmp_path / "conf", "mine")
    other = own_model(tmp_path / "other", "yours")
    monkeypatch.chdir(tmp_path)
    found = compose_all(["model=mine,yours", "-m", "--config-dir", str(other)])
    assert [config.model.name for config in found] == ["mine", "yours"]


def test_an_experiment_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /model: mpt-125m\n\noptim:\n  lr: 0.5\n"
    (tmp_path / "experiment" / "hot.yaml").write_text(text)
    config = compose(["experiment=hot", "--config-dir", str(tmp_path)])
    assert (config.model.name, config.optim.lr) == ("mpt-125m", 0.5)


def test_a_search_is_one_wherever_its_trials_are_given(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    body = {
        "plain": "search: {trials: 8}",
        "named": "hydra: {sweeper: {params: {search.trials: 8, run.seed: '1,2'}}}",
    }
    for name, text in body.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    own = ["-m", "--config-dir", str(tmp_path), "optim.lr=interval(1e-3,1e-2)"]
    for word in ("experiment=plain", "experiment=named", "search.trials=8", "++search.trials=8"):
        assert searches([*own, word])
    for word in (
        "run.seed=1,2",
        "search.trials=null",
        "experiment=nope",
        "model=mpt-tiny,mpt-125m",
    ):
        assert not searches([*own, word])
    assert not searches([*own, "experiment=plain", "search.trials=null"]), "the user's word wins"


def test_a_mistake_in_ones_own_preset_is_named(tmp_path: Path) -> None:
    conf = own_model(tmp_path / "conf", "mine")
    with (conf / "model" / "mine.yaml").open("a") as file:
        file.write("d_modle: 3\n")
    (line,) = problems("model=mine", "--config-dir", str(conf))
    assert line.startswith("model.d_modle: unknown key; allowed here: d_model, ")


def test_the_package_finds_its_presets_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose([]) == make_config()
    copy = tmp_path / "elsewhere"
    shutil.copytree(CONF, copy / "conf")  # a checkout's own conf/ is no second set of presets
    monkeypatch.chdir(copy)
    assert compose([]) == make_config()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.seqlen=3", "train.seqlen: unknown key train.seqlen; allowed: seq_len, "),
        ("modle=mpt-7b", "modle: unknown key modle; allowed: model, "),
        (
            "seq_len=3",
            "seq_len: unknown key seq_len; did you mean model.recipe.seq_len or train.seq_len?",
        ),
        ("train.lr=3", "train.lr: unknown key train.lr; did you mean model.recipe.lr or optim.lr?"),
        ("train.seq_len.x=3", "train.seq_len.x: train.seq_len is a whole number and has no keys"),
        ("train=3", "train=3: no such preset; allowed: default"),
        ("run=3", "run: a group of keys; set one of them: "),
        ("model.recipe=3", "model.recipe: a group of keys; set one of them: "),
        ("model=mpt-6b", "model=mpt-6b: no such preset; allowed: mpt-"),
        ("+cluster=a100x46", "cluster=a100x46: no such preset; allowed: a100x64, "),
        ("experiment=mpt-8b", "experiment=mpt-8b: no such preset; allowed: mpt-"),
        ("trackers=[tensorbord]", "trackers=tensorbord: no such preset; allowed: tensorboard"),
        ("model=null", "model=null: a preset is expected; allowed: llama-125m, "),
        ("trackers=null", "trackers=null: a preset is expected; allowed: "),
        ("experiment=null", "experiment=null: a preset is expected; allowed: ablation-optimizer, "),
        ("run.seed", "'run.seed': key=value is expected, "),
        ("optim.lr=${model.d_model", "'optim.lr=${model.d_model': key=value is expected, "),
        ("optim.lr=${nope}", "optim.lr: Interpolation key 'nope' not found"),
        ("--sweep", "--sweep: unknown flag; allowed: "),
        ("--config-dir=/no/such", "--config-dir /no/such: no such folder"),
        ("--config-dir", "--config-dir : no such folder"),
        ("train.seq_len=abc", "train.seq_len='abc': a whole number is expected"),
    ],
)
def test_a_word_that_means_nothing_is_answered_with_what_is_allowed(word: str, line: str) -> None:
    (found,) = problems(word)
    assert found.startswith(line)
    assert "\n" not in found


def test_all_mistakes_in_words_are_reported_at_once() -> None:
    found = problems(
        "modle=x", "train.seqlen=3", "model=mpt-6b", "optim=adam", "run.seed", "train.seq_len=abc"
    )
    assert [line.partition(":")[0] for line in found] == [
        "modle",
        "train.seqlen",
        "model=mpt-6b",
        "optim=adam",
        "'run.seed'",
        "train.seq_len='abc'",
    ]


def test_all_mistakes_of_a_sweep_are_reported_at_once() -> None:
    found = problems("model=mpt-6b,mpt-tiny", "optim.lr=a,0.1,b", "-m")
    assert found[0].startswith("model=mpt-6b: no such preset; allowed: mpt-")
    assert found[1:] == ["optim.lr='a': a number is expected", "optim.lr='b': a number is expected"]


def test_a_named_group_grows_from_words() -> None:
    words = [
        "data=files",
        "data.sources.c4.path=/c4",
        "data.sources.c4.weight=2",
        "data.sources.my-books.path=/b",
    ]
    sources = compose(words).data.sources
    assert {name: (source.path, source.weight) for name, source in sources.items()} == {
        "c4": ("/c4", 2.0),
        "my-books": ("/b", 1.0),
    }
    with pytest.raises(
        InputError, match=r"data\.sources\.c4\.pth: unknown key data\.sources\.c4\.pth"
    ):
        compose([*words, "data.sources.c4.pth=/c4"])


def test_a_tilde_is_the_home_folder_wherever_a_value_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/you")
    assert compose(["data=files", "data.source=~/text"]).data.source == "/home/you/text"
    roots = [choice.config.run.root for choice in compose_sweep(["run.root=~/a,~/b", "-m"])]
    assert roots == ["/home/you/a", "/home/you/b"]
    setup = "cluster.setup=[~/env/activate,'echo a~/b']"
    assert compose(["cluster=a100x8", setup]).cluster.setup == [
        "/home/you/env/activate",
        "echo a~/b",
    ]


@pytest.mark.parametrize("recipe", ["", "recipe: {lr: 0.5}"])
def test_a_model_of_ones_own_needs_no_recipe(tmp_path: Path, recipe: str) -> None:
    model = ["name: mine", "d_model: 64", "n_heads: 2", "n_layers: 2", "vocab_size: 4096"]
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "mine.yaml"
    path.write_text("\n".join([*model, "max_seq_len: 128", recipe]) + "\n")
    config = compose([f"--config-dir={tmp_path}", "model=mine"])
    assert config.optim.lr == (0.5 if recipe else 3e-4)
    assert config.train.seq_len == 128
    assert (config.train.global_batch, config.train.duration) == (256, "4800steps")
