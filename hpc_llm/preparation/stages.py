"""The stages of a preparation; each needs the complete result of the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hpc_llm.config.schema import DataConfig, ReadingConfig
from hpc_llm.data import manifest
from hpc_llm.preparation import finish
from hpc_llm.preparation.arrays import read_arrays
from hpc_llm.preparation.assemble import SPLITS, PlannedShard, assemble, plan_shards
from hpc_llm.preparation.chunks import Chunk, divide
from hpc_llm.preparation.jobs import Job, JobRunner
from hpc_llm.preparation.scan import scan
from hpc_llm.preparation.tokenise import Tokenised, TokenizerFile, tokenise
from hpc_llm.preparation.verdicts import check_rejects, decide_all, sample_shares, tokenizer_sample
from hpc_llm.preparation.workspace import Workspace
from hpc_llm.storage.files import fsync_directory, write_atomic
from hpc_llm.text import sources, tokenizer, tokenizer_training
from hpc_llm.text.tokenizer import Tokenizer


def run(config: DataConfig, workspace: Workspace, runner: JobRunner) -> None:
    """Turn the corpus that `Workspace.begin` listed into shards.

    InputError if the corpus cannot be used.
    """
    readings = {source.name: source.reading for source in sources.sources(config)}
    chunks = divide(workspace.files(), readings)
    stages = _Stages(config, workspace, readings, chunks, runner)
    stages.scan()
    verdicts = stages.decide()
    model = stages.tokenizer(verdicts)
    stages.tokenise(verdicts, model)
    shards = stages.assemble(model)
    stages.publish(verdicts, model, shards)


@dataclass(frozen=True)
class _Stages:
    config: DataConfig
    workspace: Workspace
    readings: Mapping[str, ReadingConfig]  # of each source
    chunks: list[Chunk]
    runner: JobRunner

    @property
    def _scans(self) -> list[Path]:
        return [self.workspace.scanned(number) for number in range(len(self.chunks))]

    @property
    def _parts(self) -> list[Path]:
        return [self.workspace.tokens(number) for number in range(len(self.chunks))]

    def scan(self) -> None:
        """The first pass over every chunk."""
        shares = sample_shares(self.config, self.chunks)
        jobs = []
        for chunk, out in zip(self.chunks, self._scans, strict=True):
            reading = self.readings[chunk.source]
            call = partial(scan, chunk, reading, shares[chunk.source], out)
            jobs.append(Job(out, chunk.num_bytes, call))
        self.runner.do("reading", jobs)

    def decide(self) -> list[np.ndarray]:
        """What happens to each document: for each chunk uint8 [documents]."""
        out = self.workspace.decided
        call = partial(decide_all, self.config, self._scans, out)
        self.runner.do("deciding", [Job.here(out, call)])
        decided = read_arrays(out)
        return np.split(decided["verdicts"], decided["starts"][1:-1])

    def tokenizer(self, verdicts: list[np.ndarray]) -> Path:
        """The file of the tokenizer, given or trained."""
        if self.config.tokenizer:
            content = tokenizer.load(self.config)
            out = self.workspace.out / manifest.tokenizer_file(content)
            copy = Job.here(out, partial(write_atomic, out, content))
            self.runner.do("copying the tokenizer", [copy])
            return out
        out = self.workspace.out / manifest.tokenizer_file(b"")
        train = Job.here(out, partial(self._train, verdicts, out))
        self.runner.do("training the tokenizer", [train])
        return out

    def _train(self, verdicts: list[np.ndarray], out: Path) -> None:
        texts = tokenizer_sample(self.config, self.chunks, self._scans, verdicts)
        content = tokenizer_training.train(texts, self.config.vocab_size or 0, self.runner.say)
        write_atomic(out, content)

    def tokenise(self, verdicts: list[np.ndarray], model: Path) -> None:
        """The second pass over every chunk.

        InputError if files have vanished or changed since the first.
        """
        tokenizer_file = TokenizerFile.of(model, self.config.eos_token)
        jobs = []
        for chunk, scanned, own, out in zip(
            self.chunks, self._scans, verdicts, self._parts, strict=True
        ):
            reading = self.readings[chunk.source]
            call = partial(tokenise, chunk, reading, tokenizer_file, scanned, own, out)
            jobs.append(Job(out, chunk.num_bytes, call))
        self.runner.do("tokenising", jobs)
        num_in, num_rejects = finish.num_documents(self._results(verdicts, {}))
        check_rejects(self.config, num_in, num_rejects, [*self._scans, *self._parts])

    def assemble(self, model: Path) -> dict[Path, PlannedShard]:
        """The shards, by the file that records that each is made."""
        vocab_size = self._open(model).vocab_size
        shards = {}
        jobs = []
        for shard in self._planned():
            out = self.workspace.shard(shard.name)
            shards[out] = shard
            call = partial(assemble, shard, vocab_size, self.workspace.out, out)
            jobs.append(Job(out, shard.num_bytes(vocab_size), call))
        self.runner.do("writing shards", jobs)
        return shards

    def _planned(self) -> Iterator[PlannedShard]:
        for split, verdict in SPLITS.items():
            for source in self.config.source_names:
                yield from plan_shards(split, source, self._lengths(source, verdict))

    def _lengths(self, source: str, verdict: int) -> Iterator[tuple[Path, np.ndarray]]:
        for chunk, path in zip(self.chunks, self._parts, strict=True):
            if chunk.source == source:
                part = Tokenised.read(path)
                yield path, part.lengths[part.verdicts == verdict]

    def publish(
        self, verdicts: list[np.ndarray], model: Path, shards: dict[Path, PlannedShard]
    ) -> None:
        """Rejects, manifest, and the folder renamed into place."""
        out = self.workspace.out
        directory = self.workspace.directory
        results = self._results(verdicts, shards)

        def make() -> None:
            for temporary in out.glob(".*"):
                temporary.unlink()  # left by a process that was killed
            opened = self._open(model)
            finish.write_rejects(results, out / manifest.REJECTS)
            finish.write_manifest(self.config, results, opened, model, out / manifest.MANIFEST)
            fsync_directory(out)
            out.rename(directory)
            fsync_directory(directory.parent)
            self.workspace.remove()

        self.runner.do("finishing", [Job.here(directory / manifest.MANIFEST, make)])

    def _open(self, model: Path) -> Tokenizer:
        return tokenizer.open_tokenizer(model.read_bytes(), self.config.eos_token)

    def _results(
        self, verdicts: list[np.ndarray], shards: dict[Path, PlannedShard]
    ) -> finish.StageResults:
        return finish.StageResults(self.chunks, verdicts, self._scans, self._parts, shards)
