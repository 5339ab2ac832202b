"""The stages of a preparation; each needs the complete result of the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hpc_llm.config.schema import DataConfig
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
from hpc_llm.text import sources, tokenizer
from hpc_llm.text.tokenizer_training import train


def run(config: DataConfig, workspace: Workspace, crew: JobRunner) -> None:
    """Turn the corpus that `Workspace.begin` listed into shards. InputError if the corpus cannot be
    used.
    """
    readings = {source.name: source.reading for source in sources.sources(config)}
    stages = _Stages(config, workspace, divide(workspace.files(), readings), crew)
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
    chunks: list[Chunk]
    crew: JobRunner

    @property
    def _scans(self) -> list[Path]:
        return [self.workspace.scanned(number) for number in range(len(self.chunks))]

    @property
    def _parts(self) -> list[Path]:
        return [self.workspace.tokens(number) for number in range(len(self.chunks))]

    def scan(self) -> None:
        """The first pass over every chunk."""
        shares = sample_shares(self.config, self.chunks)
        readings = {source.name: source.reading for source in sources.sources(self.config)}
        jobs = [
            Job(
                out,
                chunk.num_bytes,
                partial(scan, chunk, readings[chunk.source], shares[chunk.source], out),
            )
            for chunk, out in zip(self.chunks, self._scans, strict=True)
        ]
        self.crew.do("reading", jobs)

    def decide(self) -> list[np.ndarray]:
        """What happens to each document: for each chunk uint8 [documents]."""
        out = self.workspace.decided
        self.crew.do(
            "deciding", [Job.here(out, partial(decide_all, self.config, self._scans, out))]
        )
        decided = read_arrays(out)
        return np.split(decided["verdicts"], decided["starts"][1:-1])

    def tokenizer(self, verdicts: list[np.ndarray]) -> Path:
        """The file of the tokenizer, given or trained."""
        content = tokenizer.load(self.config) if self.config.tokenizer else None
        out = self.workspace.out / manifest.tokenizer_file(content or b"")

        def make() -> None:
            write_atomic(out, self._train(verdicts) if content is None else content)

        self.crew.do(
            "training the tokenizer" if content is None else "copying the tokenizer",
            [Job.here(out, make)],
        )
        return out

    def _train(self, verdicts: list[np.ndarray]) -> bytes:
        texts = tokenizer_sample(self.config, self.chunks, self._scans, verdicts)
        return train(texts, self.config.vocab_size or 0, self.crew.say)

    def tokenise(self, verdicts: list[np.ndarray], model: Path) -> None:
        """The second pass over every chunk. InputError if files have vanished or changed since the
        first.
        """
        which = TokenizerFile.of(model, self.config.eos_token)
        readings = {source.name: source.reading for source in sources.sources(self.config)}
        jobs = []
        for chunk, scanned, own, out in zip(
            self.chunks, self._scans, verdicts, self._parts, strict=True
        ):
            call = partial(tokenise, chunk, readings[chunk.source], which, scanned, own, out)
            jobs.append(Job(out, chunk.num_bytes, call))
        self.crew.do("tokenising", jobs)
        num_in, num_rejects = finish.num_documents(self._made(verdicts, {}))
        check_rejects(self.config, num_in, num_rejects, [*self._scans, *self._parts])

    def assemble(self, model: Path) -> dict[Path, PlannedShard]:
        """The shards, by the file that records that each is made."""
        shards = {self.workspace.shard(shard.name): shard for shard in self._planned()}
        vocab_size = tokenizer.open_tokenizer(model.read_bytes(), self.config.eos_token).vocab_size
        jobs = [
            Job(
                out,
                shard.num_bytes(vocab_size),
                partial(assemble, shard, vocab_size, self.workspace.out, out),
            )
            for out, shard in shards.items()
        ]
        self.crew.do("writing shards", jobs)
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
        made = self._made(verdicts, shards)

        def make() -> None:
            for left in out.glob(".*"):
                left.unlink()  # by a process that was killed
            pieces = tokenizer.open_tokenizer(model.read_bytes(), self.config.eos_token)
            finish.write_rejects(made, out / manifest.REJECTS)
            finish.write_manifest(self.config, made, pieces, model, out / manifest.MANIFEST)
            fsync_directory(out)
            out.rename(directory)
            fsync_directory(directory.parent)
            self.workspace.remove()

        self.crew.do("finishing", [Job.here(directory / manifest.MANIFEST, make)])

    def _made(
        self, verdicts: list[np.ndarray], shards: dict[Path, PlannedShard]
    ) -> finish.StageResults:
        return finish.StageResults(self.chunks, verdicts, self._scans, self._parts, shards)
