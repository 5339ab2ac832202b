"""The batch script: golden per cluster; quoting as the real bash and sbatch's rules read it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.planning.plan import make_plan
from hpc_llm.slurm.directives import Option, directive
from hpc_llm.slurm.script import array_spec, render_script, time_limit
from tests.configs import make_config, slurm_clusters

# A `#!` ends at the first space of a path: hence a shell, which finds its own words in the file's
# second line.
FAKE_PYTHON = """#!/bin/sh
''''exec {python} "$0" "$@" # '''
import json, os, sys
seen = {{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}}
print(json.dumps(seen))
"""
ONE_LINE = st.text(
    st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"]),
    max_size=30,
)


def with_cluster(**changes: object) -> RunConfig:
    config = make_config("cluster=local-slurm")
    return replace(config, cluster=replace(config.cluster, **changes))  # type: ignore[arg-type]


def planned(*words: str) -> RunConfig:
    """With the notice that its plan chose, as submission.arrays gives it."""
    config = make_config(*words)
    lead_s = make_plan(config, None).signal_lead_s or 0
    return replace(config, cluster=replace(config.cluster, signal_lead_s=lead_s))


def script(config: RunConfig, run_dir: str = "/scratch/runs/one", **more: object) -> str:
    given: dict[str, object] = {"python": "/opt/python/bin/python", "name": "one", **more}
    return render_script(config, run_dir=run_dir, **given)  # type: ignore[arg-type]


def options(text: str) -> dict[str, str]:
    """What sbatch would understand of the header."""
    values = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            (option,) = sbatch_words(line.removeprefix("#SBATCH"))
            name, _, value = option.partition("=")
            values[name.removeprefix("--")] = value
    return values


def sbatch_words(line: str) -> list[str]:
    """A line split by sbatch's rules.

    Quotes group, a backslash escapes everywhere, # ends, white space separates.
    """
    words: list[str] = []
    current = ""
    quote = ""
    escaped = False
    started = False
    for character in line:
        if escaped:
            current = current + character
            escaped = False
            started = True
        elif character == "\\":
            escaped = True
        elif quote:
            quote, current = ("", current) if character == quote else (quote, current + character)
        elif character in "\"'":
            quote = character
            started = True
        elif character == "#":
            break
        elif character.isspace() and character.isascii():
            words = [*words, current] if started else words
            current = ""
            started = False
        else:
            current = current + character
            started = True
    return [*words, current] if started else words


def run_in_bash(text: str, folder: Path, **environment: str) -> dict[str, object]:
    """What the fake interpreter, which the script becomes, was given."""
    import json

    file = folder / "job.sbatch"
    file.write_text(text)
    clean = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, object] = json.loads(done.stdout)
    return loaded


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    path = tmp_path / "the python" / "py'thon"
    path.parent.mkdir()
    path.write_text(FAKE_PYTHON.format(python=shlex.quote(sys.executable)))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("cluster", slurm_clusters())
def test_the_script_of_every_shipped_cluster_is_as_agreed(
    cluster: str, golden: Callable[[str, str], None]
) -> None:
    golden(
        f"{cluster}.sbatch",
        script(
            planned(f"cluster={cluster}", "train.global_batch=2048"),
            run_dir="/scratch/you/runs/mpt-tiny-stdlib",
            name="mpt-tiny-stdlib",
        ),
    )


def test_a_sweep_and_every_site_setting_are_as_agreed(golden: Callable[[str, str], None]) -> None:
    config = with_cluster(
        account="proj01",
        qos="long",
        constraint="a100&ib",
        exclude="n[7-8]",
        reservation="maint",
        gpu_request="gres:a100",
        mem="0",
        array_throttle=2,
        setup=["module load cuda/13.0", "source /opt/venv/bin/activate"],
        exports={"NCCL_DEBUG": "WARN", "NOTE": "it's $HOME"},
        wrapper=["apptainer", "exec", "--nv", "/images/my image.sif"],
        sbatch={
            "comment": "week 7 # third try",
            "contiguous": "true",
            "wait-all-nodes": "false",
            "hint": "nomultithread",
        },
    )
    runs = {
        0: "/scratch/you/runs/s/lr=1",
        1: "/scratch/you/runs/s/lr=2",
        2: "/scratch/you/runs/s/it's",
        7: "/r/last",
    }
    golden("sweep.sbatch", script(config, run_dir="/scratch/you/runs/s", name="s", array=runs))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "golden").glob("*.sbatch")), ids=lambda path: path.stem
)
def test_golden_scripts_are_valid_bash(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_job_becomes_the_supervisor_in_the_runs_snapshot(
    tmp_path: Path, fake_python: str
) -> None:
    run = tmp_path / "runs" / "a b"
    (run / "code").mkdir(parents=True)
    seen = run_in_bash(
        script(
            planned("cluster=a100x64", "train.global_batch=64"),
            run_dir=str(run),
            python=fake_python,
        ),
        tmp_path,
    )
    assert seen["argv"] == ["-m", "hpc_llm.supervise", str(run)]
    assert seen["cwd"] == str(run / "code")


def test_the_job_replaces_its_shell_so_that_it_gets_the_signal(
    tmp_path: Path, fake_python: str
) -> None:
    (tmp_path / "code").mkdir()
    config = with_cluster(setup=["export SHELL_PID=$$"])
    seen = run_in_bash(script(config, run_dir=str(tmp_path), python=fake_python), tmp_path)
    environment = seen["env"]
    assert isinstance(environment, dict)
    assert environment["SHELL_PID"] == str(seen["pid"])


def test_an_array_task_takes_its_own_run(tmp_path: Path, fake_python: str) -> None:
    runs = {index: str(tmp_path / f"run {index}'s") for index in (0, 3)}
    for run in runs.values():
        (Path(run) / "code").mkdir(parents=True)
        (Path(run) / "slurm").mkdir()
    text = script(
        make_config("cluster=local-slurm"), run_dir=str(tmp_path), python=fake_python, array=runs
    )
    file = tmp_path / "job.sbatch"
    file.write_text(text)
    environment = {
        "PATH": os.environ["PATH"],
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    assert subprocess.run(["bash", str(file)], env=environment, check=False).returncode == 0
    assert "run 3's" in (Path(runs[3]) / "slurm" / "7_3.log").read_text()
    environment["SLURM_ARRAY_TASK_ID"] = "1"
    failed = subprocess.run(
        ["bash", str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert failed.returncode != 0
    assert "no run has this array index" in failed.stderr


def test_a_missing_snapshot_stops_the_job_instead_of_running_elsewhere(
    tmp_path: Path, fake_python: str
) -> None:
    file = tmp_path / "job.sbatch"
    file.write_text(
        script(
            make_config("cluster=local-slurm"), run_dir=str(tmp_path / "gone"), python=fake_python
        )
    )
    failed = subprocess.run(["bash", str(file)], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "argv" not in failed.stdout


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(value=ONE_LINE)
def test_exported_values_arrive_as_they_were_written(
    value: str, tmp_path: Path, fake_python: str
) -> None:
    (tmp_path / "code").mkdir(exist_ok=True)
    config = with_cluster(exports={"GIVEN": value, "SECOND": "$GIVEN `id` \"'\\"})
    seen = run_in_bash(
        script(config, run_dir=str(tmp_path), python=fake_python), tmp_path, LC_ALL="C.UTF-8"
    )
    environment = seen["env"]
    assert isinstance(environment, dict)
    assert environment["GIVEN"] == value
    assert environment["SECOND"] == "$GIVEN `id` \"'\\"


@given(value=ONE_LINE)
def test_sbatch_reads_every_value_back_or_it_is_refused(value: str) -> None:
    try:
        line = directive(Option("comment", value))
    except InputError as error:
        assert not value.strip() or set(value) & set("\"'\\") or "job" in value.lower()
        assert len(error.problems) == 1
    else:
        assert "\n" not in line
        assert sbatch_words(line.removeprefix("#SBATCH")) == [f"--comment={value}"]


@pytest.mark.parametrize(
    "value", ["two\nlines", 'a "quote"', "it's", "back\\slash", "tab\there", "my-hetjob-1", ""]
)
def test_a_value_that_sbatch_cannot_hold_is_refused_by_its_key(value: str) -> None:
    with pytest.raises(InputError, match=r"^cluster\.account="):
        script(with_cluster(account=value))


def test_everything_that_cannot_be_written_is_told_at_once() -> None:
    config = with_cluster(
        account="it's",
        gpu_request="gpus",
        exports={"A B": "x", "LINES": "1\n2"},
        sbatch={"--comment": "x", "partition": "y", "no-kill": "true"},
        wrapper=["a\nb"],
    )
    with pytest.raises(InputError) as raised:
        script(config)
    assert [problem.partition(":")[0].partition("=")[0] for problem in raised.value.problems] == [
        "cluster.sbatch.--comment",
        "cluster.sbatch.partition",
        "cluster.sbatch.no-kill",
        "cluster.gpu_request",
        "cluster.exports.A B",
        "cluster.exports.LINES",
        "cluster.wrapper",
        "cluster.account",
    ]


@pytest.mark.parametrize("spelling", ["clusters", "--clusters", "M", "-M", "cluster"])
def test_a_cluster_that_sbatch_alone_would_know_is_refused(spelling: str) -> None:
    with pytest.raises(InputError, match="export SLURM_CLUSTERS=NAME instead"):
        script(with_cluster(sbatch={spelling: "gpu"}))


@pytest.mark.parametrize("option", ["uid", "gid", "quiet"])
def test_options_after_which_the_job_is_not_found_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"cluster.sbatch.{option}: "):
        script(with_cluster(sbatch={option: "1000"}))


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("gpus-per-node", {"gpus-per-node": "2"}),
        ("gres", {"gres": "gpu:2"}),
        ("gres:a100", {"gres": "gpu:a100:2"}),
        ("gpus-per-node:h100", {"gpus-per-node": "h100:2"}),
        ("none", {}),
    ],
)
def test_gpus_are_asked_for_in_the_sites_dialect(dialect: str, expected: dict[str, str]) -> None:
    header = options(script(with_cluster(gpu_request=dialect)))
    assert {
        key: value for key, value in header.items() if key in ("gres", "gpus-per-node")
    } == expected


def test_a_site_may_ask_for_gpus_in_its_own_words() -> None:
    config = with_cluster(gpu_request="none", sbatch={"gres": "gpu:a100_3g.20gb:2"})
    assert options(script(config))["gres"] == "gpu:a100_3g.20gb:2"


def test_all_of_a_nodes_memory_means_the_node_alone_unless_the_user_says_otherwise() -> None:
    assert "exclusive" in options(script(with_cluster(mem="0")))
    assert "exclusive" not in options(script(with_cluster(mem="64G")))
    assert "exclusive" not in options(script(with_cluster(mem="0", sbatch={"exclusive": "false"})))
    assert (
        options(script(with_cluster(mem="0", sbatch={"exclusive": "user"})))["exclusive"] == "user"
    )


def test_spare_nodes_are_asked_for_and_the_job_outlives_a_node() -> None:
    config = planned("+cluster=a100x64", "cluster.spare_nodes=2", "train.global_batch=64")
    asked = script(config, run_dir="/r/x").splitlines()
    assert "#SBATCH --nodes=10" in asked and "#SBATCH --no-kill" in asked
    assert "#SBATCH --no-kill" not in script(
        planned("+cluster=a100x64", "train.global_batch=64"), run_dir="/r/x"
    )


@pytest.mark.parametrize("name", ["NONE", "NIL"])
def test_a_job_may_leave_the_shell_that_submits_it_behind(name: str) -> None:
    assert options(script(with_cluster(sbatch={"export": name})))["export"] == name


def test_where_the_site_has_it_a_requeue_may_keep_the_nodes() -> None:
    header = [
        line
        for line in script(with_cluster(sbatch={"requeue": "expedite"})).splitlines()
        if "requeue" in line
    ]
    assert header == ["#SBATCH --requeue=expedite"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("coment", "x", "did you mean comment"),
        ("wait-all-node", "1", "did you mean wait-all-nodes"),
        ("container-image", "/a.sqsh", "cluster.srun"),
        ("export", "ALL,A=1", "NONE or NIL"),
        ("requeue", "true", "expedite"),
    ],
)
def test_what_sbatch_would_not_take_is_told_with_what_to_type(
    name: str, value: str, said: str
) -> None:
    with pytest.raises(InputError, match=f"^cluster.sbatch.{name}.*{said}"):
        script(with_cluster(sbatch={name: value}))


def test_a_name_that_resembles_none_may_be_of_a_sites_plug_in() -> None:
    assert options(script(with_cluster(sbatch={"auks": "yes"})))["auks"] == "yes"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cpu-bnd", "cores", "did you mean cpu-bind"),
        ("ntasks", "4", "cluster.gpus_per_node"),
        ("time", "10", "sets this option itself"),
        ("licenses", "a", "cluster.sbatch"),
        ("mem", "4G", "false"),
        ("mpi", "a\nb", "one line"),
        ("--mpi", "pmix", "long name"),
    ],
)
def test_what_a_step_may_not_be_given_is_told(name: str, value: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^cluster.srun.{name}.*{said}"):
        script(with_cluster(srun={name: value}))


def test_a_variable_that_srun_reads_as_an_option_is_not_exported() -> None:
    with pytest.raises(InputError, match=r"cluster\.srun"):
        script(with_cluster(exports={"SLURM_TIMELIMIT": "60"}))
    assert "pmi2" in script(with_cluster(exports={"SLURM_MPI_TYPE": "pmi2"}))


def test_a_percent_sign_in_a_path_is_not_a_pattern() -> None:
    header = options(script(make_config("cluster=local-slurm"), run_dir="/r/50%j"))
    assert header["output"] == "/r/50%%j/slurm/%j.log"
    assert header["chdir"] == "/r/50%j/code"


def test_paths_on_this_machine_alone_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="absolute"):
        script(make_config("cluster=local-slurm"), run_dir="runs/one")


@pytest.mark.parametrize(
    ("minutes", "text"), [(10, "0-00:10:00"), (1440, "1-00:00:00"), (2 * 1440 + 61, "2-01:01:00")]
)
def test_minutes_become_slurms_time(minutes: int, text: str) -> None:
    assert time_limit(minutes) == text


@given(st.sets(st.integers(0, 60), min_size=1), st.none() | st.integers(1, 9))
def test_array_specifications_name_every_index_once(
    indices: set[int], throttle: int | None
) -> None:
    text, _, limit = array_spec(tuple(indices), throttle).partition("%")
    ranges = [part.partition("-") for part in text.split(",")]
    named = [
        index for first, _, last in ranges for index in range(int(first), int(last or first) + 1)
    ]
    assert named == sorted(indices)
    assert limit == (str(throttle) if throttle else "")


@pytest.mark.parametrize(
    ("status", "trains"),
    [(0, True), (1, True), (2, True), (75, False)],
    ids=["goes on", "fails", "crashes", "leaves"],
)
def test_a_job_with_a_successor_trains_unless_that_says_leave(
    tmp_path: Path, status: int, trains: bool
) -> None:
    """Whatever else goes wrong with the successor keeps nobody from training."""
    run_dir = tmp_path / "one"
    (run_dir / "code").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/bash\n[[ $2 != hpc_llm.supervise.successor ]] || exit {status}\necho "
        '"$2"\nexit '
        "7\n"
    )
    python.chmod(0o755)
    config = make_config("cluster=local-slurm", "recovery.successor=true")
    text = script(config, run_dir=str(run_dir), python=str(python))
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ((7, "hpc_llm.supervise\n") if trains else (0, ""))


def test_without_a_successor_the_script_knows_nothing_of_one() -> None:
    assert "successor" not in script(make_config("cluster=local-slurm"))
