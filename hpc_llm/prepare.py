"""`python -m hpc_llm.prepare data=… [+cluster=NAME] [key=value…]`: train a tokenizer, tokenise a
corpus into shards.

`python -m hpc_llm.prepare inspect=DIR [step=K rows=N]`: what step K of a run, or of prepared data,
trains on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hpc_llm.config import checks, verbs
from hpc_llm.config.compose import compose
from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig, SourceConfig
from hpc_llm.data.manifest import MANIFEST, Manifest, read_manifest
from hpc_llm.planning.lengths import Lengths, lengths
from hpc_llm.planning.plan import RunPlan
from hpc_llm.runs import freeze
from hpc_llm.runs.layout import RunLayout


def main(words: list[str] | None = None) -> int:
    """Prepare what `words` say; 0 when the data is there, 2 with a line per mistake where the input
    is wrong.
    """
    words = sys.argv[1:] if words is None else words
    if words and words[0].startswith("join="):  # a task of the array that this very verb submitted
        return verbs.run("prepare", _join, words, hydra=False)
    return verbs.run("prepare", _prepare, words)


def _prepare(words: list[str]) -> int:
    if any(word.startswith("inspect=") for word in words):
        return _inspect(words)
    from hpc_llm.config import checks
    from hpc_llm.config.compose import compose
    from hpc_llm.data.recipe import directory_for
    from hpc_llm.runs import preflight
    from hpc_llm.storage.files import restrict_access

    config = compose(words)
    if problems := [*checks.problems(config), *preflight.unknown_homes(config)]:
        raise InputError(problems)
    restrict_access(config.run.group)
    directory = Path(os.path.abspath(directory_for(config)))  # noqa: PTH100 – resolve() would follow links
    if config.cluster.launcher == "slurm":
        return _on_cluster(config, directory, words)
    if config.dry_run:
        _listed(config, directory)
        return 0
    return _here(config, directory, words)


def _here(config: RunConfig, directory: Path, words: list[str]) -> int:
    from hpc_llm.data.manifest import MANIFEST, read_manifest
    from hpc_llm.preparation.progress import prepare_shown, summary

    known = (directory / MANIFEST).exists()
    started = time.monotonic()
    prepare_shown(config, directory)
    seconds = time.monotonic() - started
    made = read_manifest(directory)
    if config.json:
        print(made.to_json(), end="")
        return 0
    print(
        f"already prepared: {directory}" if known else f"prepared in {seconds:.1f} s: {directory}"
    )
    print(summary(made))
    if config.data.packing == "best_fit":
        from hpc_llm.data.packs import wasted

        padding = wasted(directory, made, "train", config.train.seq_len)
        print(
            f"  packed           rows of {config.train.seq_len:,} tokens, {padding:.2%} of their "
            "positions padding"
        )
    print(f"next: {shlex.join(['python', '-m', 'hpc_llm.submit', *words])}")
    return 0


def _inspect(words: list[str]) -> int:
    from hpc_llm.data import inspect

    asked = ask(words)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in inspect.lines(
        asked.config, asked.plan, asked.directory, asked.step, asked.rows, width
    ):
        print(line)
    return 0


def _listed(config: RunConfig, directory: Path) -> None:
    """What would be read, and where the shards would lie."""
    from hpc_llm.text import sources

    for source in sources.sources(config.data):
        files = sources.files(source)
        print(
            f"# {source.name}: {len(files):,} files, "
            f"{sum(file.num_bytes for file in files) / 1e6:,.1f} MB on disk"
        )
    print(f"# into {directory}")


def _on_cluster(config: RunConfig, directory: Path, words: list[str]) -> int:
    from hpc_llm.slurm import client
    from hpc_llm.submission import cluster, prepare_array

    config = cluster.with_site_defaults(config, os.environ)
    try:
        if config.dry_run:
            _listed(config, directory)
            print(prepare_array.script_text(config, directory), end="")
        elif config.test_only:
            print(prepare_array.estimate(config, directory))
        elif (submitted := prepare_array.submit(config, directory)) is None:
            return _here(config, directory, words)
        elif config.json:
            print(json.dumps({"job_id": submitted.job_id, "directory": str(directory)}))
        else:
            _say(
                submitted.job_id,
                directory,
                "under way already" if submitted.earlier else "submitted",
                words,
            )
    except client.SlurmUnavailable as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


def _say(job_id: int, directory: Path, what: str, words: list[str]) -> None:
    print(f"{what}: array {job_id}, into {directory}")
    print("next:")
    print(f"  squeue --jobs={job_id}")
    print(f"  tail -f {shlex.quote(f'{directory}.logs')}/{job_id}_*.log")
    again = shlex.join(["python", "-m", "hpc_llm.prepare", *words])
    print(f"  {again}      # sums up once it is done; goes on where it was if that was killed")


def _join(words: list[str]) -> int:
    from hpc_llm.submission import prepare_array

    prepare_array.join(Path(words[0].partition("=")[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())


# -- The words of `prepare inspect=DIR`: a run directory with its frozen configuration, or a folder
# of prepared data.


_OWN = {"inspect": "", "step": "1", "rows": "8"}
_EXAMPLES = {"inspect": "runs/NAME", "step": "100", "rows": "16"}


@dataclass(frozen=True)
class Asked:
    config: RunConfig
    plan: RunPlan | Lengths
    directory: Path  # of the shards
    step: int  # from 1
    rows: int


def ask(words: list[str]) -> Asked:
    """What is to be shown; InputError with all that is wrong with the words."""
    if bare := [word for word in words if word in _OWN]:
        raise InputError(
            f"{word}: a value is expected, for example {word}={_EXAMPLES[word]}" for word in bare
        )
    given = dict(word.split("=", 1) for word in words if word.partition("=")[0] in _OWN)
    rest = [word for word in words if word.partition("=")[0] not in _OWN]
    values = {**_OWN, **given}
    wrong = [key for key in ("step", "rows") if not values[key].isdecimal() or int(values[key]) < 1]
    if wrong:
        raise InputError(
            f"{key}={values[key]}: a whole number from 1 on is expected" for key in wrong
        )
    step = int(values["step"])
    rows = int(values["rows"])
    folder = Path(values["inspect"]).expanduser()
    if (folder / MANIFEST).exists():
        config = _of_data(read_manifest(folder), compose(rest))
        if problems := checks.problems(config):
            raise InputError(problems)
        return Asked(config, lengths(config, None), folder, step, rows)
    layout = RunLayout(folder)
    if not layout.config.exists():
        raise InputError(
            f"inspect={folder}: neither a run directory (config.json) nor prepared data "
            f"({MANIFEST}); give the folder that submit or prepare named"
        )
    if rest:
        raise InputError(
            f"{word}: a run is shown as it was frozen; give step=… and rows=… alone"
            for word in rest
        )
    config = freeze.read_config(layout)
    plan = freeze.read_plan(layout)
    return Asked(config, plan, Path(plan.data_directory), step, rows)


def _of_data(manifest: Manifest, config: RunConfig) -> RunConfig:
    """`config` for the data of a manifest: its sources, with the weights that are given for
    them.
    """
    names = sorted(manifest.sources)
    if names == config.data.source_names:
        return config
    sources = {name: config.data.sources.get(name, SourceConfig(path="")) for name in names}
    several = len(names) > 1
    source = None if names == ["stdlib"] else "."  # nothing of it is read
    data = dataclasses.replace(
        config.data, name=names[0], source=source, sources=sources if several else {}
    )
    return dataclasses.replace(config, data=data)
