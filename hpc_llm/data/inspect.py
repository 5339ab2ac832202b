"""What a step trains on, as text: the rows of its global batch, their sources and documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpc_llm.config.errors import InputError
from hpc_llm.config.schema import RunConfig
from hpc_llm.data.manifest import read_manifest
from hpc_llm.data.samples import IGNORED, Arrays, Samples
from hpc_llm.data.stream import Stream, training
from hpc_llm.planning.lengths import Lengths
from hpc_llm.planning.plan import RunPlan
from hpc_llm.text.tokenizer import Tokenizer, open_tokenizer

_COUNT_WIDTH = 16  # characters before a document's text


def lines(
    config: RunConfig,
    plan: RunPlan | Lengths,
    directory: Path,
    step: int,
    num_rows: int,
    width: int,
) -> Iterator[str]:
    """The first `num_rows` rows of optimizer step `step`, in lines cut to `width`.

    step: counted from 1, as in metrics.jsonl. InputError if the run has no such step, or its data
    cannot be read.
    """
    if not 1 <= step <= plan.steps:
        raise InputError(f"step={step}: from 1 to {plan.steps}, the steps of this run")
    stream = training(config, plan, directory)
    manifest = read_manifest(directory)
    tokenizer = open_tokenizer((directory / manifest.tokenizer).read_bytes(), config.data.eos_token)
    yield _head(stream, step - 1, plan)
    rows = stream.mixture.step(step - 1)
    seen = list(stream.mixture.stage(step - 1).before(step - 1))  # samples of each source
    for number, (source, sample) in enumerate(
        zip(rows.sources.tolist(), rows.samples.tolist(), strict=True)
    ):
        if number == num_rows:
            yield f"… and {len(rows.samples) - num_rows} more rows: rows=N shows N"
            return
        name = stream.mixture.sources[source].name
        samples = stream.samples[source]
        epoch = seen[source] // samples.num_samples + 1
        seen[source] += 1
        yield (
            f"row {number + 1}: {name}, sample {sample:,} of {samples.num_samples:,}, epoch {epoch}"
        )
        yield from _row(samples, sample, manifest.eos_id, tokenizer, width)


def _row(
    samples: Samples, sample: int, eos_id: int, tokenizer: Tokenizer, width: int
) -> Iterator[str]:
    arrays = samples.blank(1)
    samples.read(np.array([sample]), arrays, np.array([0]))
    arrays = samples.finish(arrays, np.array([False]))
    for ids in _documents(arrays, eos_id):
        yield _document(ids, tokenizer, width)
    masked = int((arrays.targets == IGNORED).sum())
    if masked:
        yield f"{masked:>9,} masked"


def _head(stream: Stream, step: int, plan: RunPlan | Lengths) -> str:
    line = f"step {step + 1:,} of {plan.steps:,}"
    if len(plan.phases) > 1:
        phase = stream.mixture.stage(step).phase
        line += f", phase {phase + 1} of {len(plan.phases)}"
    counts = Counter(stream.mixture.step(step).sources.tolist())
    shares = []
    for number, source in enumerate(stream.mixture.sources):
        shares.append(f"{counts[number]} {source.name}")
    return f"{line}: {', '.join(shares)}; sequences of {stream.seq_len(step):,} tokens"


def _documents(arrays: Arrays, eos_id: int) -> Iterator[list[int]]:
    """Token ids of each document in a row, or of a part of one; the last target closes it."""
    tokens = arrays.tokens[0]
    targets = arrays.targets[0]
    if arrays.documents is not None:
        for number in range(1, arrays.documents[0].max() + 1):
            own = arrays.documents[0] == number
            yield [*tokens[own].tolist(), int(targets[own][-1])]
        return
    whole = tokens.tolist()
    ends = [place + 1 for place, token in enumerate(whole) if token == eos_id]
    for start, end in zip([0, *ends], [*ends, len(whole)], strict=True):
        if end > start:
            yield whole[start:end]


def _document(ids: list[int], tokenizer: Tokenizer, width: int) -> str:
    room = max(10, width - _COUNT_WIDTH - 1)
    text = tokenizer.decode(ids[: 4 * room])  # a token has a character or more
    text = text.replace("\n", "⏎").replace("\t", "→")
    text = _printable(text)
    if len(text) > room:
        text = text[: room - 1] + "…"
    return f"{len(ids):>9,} tokens {text}"


def _printable(text: str) -> str:
    letters = list(text)
    for place, letter in enumerate(letters):
        if not letter.isprintable():
            letters[place] = "·"
    return "".join(letters)
