"""The same shuffled tokens from our loader, a bare memory map and other libraries; one arm in this
process, in turns.

`python tools/bench/data_arms.py CASE_JSON`, from tools/bench/data.py. Every arm gives batches of
`batch` sequences of seq_len + 1 tokens as torch tensors; ours gives tokens and targets, two views
of the same. An arm writes its own format once, untimed, then says `@ready`; a line `@turn SECONDS`
follows each `go`, and `@result JSON` the `stop`.

- map: rows of numpy's memory map in the order of a stored permutation, stacked and cast. map-take:
  the same by one
  take from overlapping views, the fastest way known to us.
- ours: data.loader.Batches with its thread. ours-mixed: the same tokens as two sources, 30 % and 70
  %.
- litdata: TokensLoader. datasets: Arrow rows, format torch. megatron: IndexedDataset and
  GPTDataset.
  streaming: MDS rows. With `workers` above 0 through their own or torch's DataLoader.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch


@dataclass(frozen=True)
class Case:
    arm: str
    folder: str  # with tokens.bin, uint16
    batch: int  # sequences
    seq_len: int
    workers: int
    turn_tokens: int

    @property
    def tokens(self) -> np.ndarray:
        return np.memmap(f"{self.folder}/tokens.bin", "<u2", mode="r")

    @property
    def num_samples(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def own(self, name: str) -> Path:
        return Path(self.folder) / f"{name}-{self.seq_len}"


Batches = Iterator[Any]


def memory_map(case: Case) -> Batches:
    tokens = np.asarray(case.tokens)
    length = case.seq_len
    for ids in _orders(case):
        rows = [tokens[sample * length : sample * length + length + 1] for sample in ids.tolist()]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def memory_map_take(case: Case) -> Batches:
    tokens = np.asarray(case.tokens)
    length = case.seq_len
    views = np.lib.stride_tricks.as_strided(
        tokens, (case.num_samples, length + 1), (2 * length, 2), writeable=False
    )
    for ids in _orders(case):
        yield torch.from_numpy(views[ids].astype(np.int64))


def _orders(case: Case) -> Iterator[np.ndarray]:
    order = np.random.default_rng(0).permutation(case.num_samples)
    batches = len(order) // case.batch
    yield from itertools.cycle(order[: batches * case.batch].reshape(batches, case.batch))


def ours(case: Case, parts: tuple[float, ...] = (1.0,)) -> Batches:
    import ours_data

    from hpc_llm.data.loader import Batches as Loader
    from hpc_llm.data.loader import Share

    folder = case.own(f"ours-{len(parts)}")
    if not folder.exists():
        ours_data.write(folder, case.tokens, parts)
    with Loader(
        ours_data.stream(folder, case.seq_len, case.batch), Share(0, 1, case.batch, case.batch)
    ) as loader:
        for step in itertools.count():
            ((tokens, targets),) = loader.step(step)
            yield tokens, targets


def litdata(case: Case) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    folder = case.own("litdata")
    length = case.seq_len + 1
    if not folder.exists():
        whole = [(f"{case.folder}/tokens.bin", case.num_samples * case.seq_len // length * length)]
        settings = {"chunk_size": length * 8192, "num_workers": 1, "start_method": "fork"}
        optimize(_litdata_tokens, whole, str(folder), item_loader=TokensLoader(), **settings)
    data = StreamingDataset(
        str(folder), item_loader=TokensLoader(block_size=length), shuffle=True, seed=1
    )
    while True:
        yield from StreamingDataLoader(
            data, batch_size=case.batch, num_workers=case.workers, drop_last=True
        )


def _litdata_tokens(whole: tuple[str, int]) -> Iterator[torch.Tensor]:
    path, count = whole
    yield torch.from_numpy(np.memmap(path, "<u2", mode="r")[:count].astype(np.int32))


def datasets(case: Case) -> Batches:
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    folder = case.own("datasets")
    length = case.seq_len + 1
    if not folder.exists():
        rows = len(case.tokens) // length
        column = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(case.tokens[: rows * length]), length
        )
        datasets.Dataset(pyarrow.table({"tokens": column})).save_to_disk(folder)
    data = datasets.load_from_disk(folder).with_format("torch").shuffle(seed=1)
    while True:
        for rows in (
            _torch_loader(data, case)
            if case.workers
            else data.iter(case.batch, drop_last_batch=True)
        ):
            yield rows["tokens"]


def megatron(case: Case) -> Batches:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    folder = case.own("megatron")
    if not folder.exists():
        folder.mkdir()
        builder = IndexedDatasetBuilder(f"{folder}/tokens.bin", dtype=np.uint16)
        for start in range(0, len(case.tokens), 1000):
            document = torch.from_numpy(case.tokens[start : start + 1000].astype(np.int32))
            builder.add_document(document, [len(document)])
        builder.finalize(f"{folder}/tokens.idx")
    flags = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "create_attention_mask")
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=case.seq_len, split="1,0,0", tokenizer=_MegatronTokenizer(),
        path_to_cache=str(folder), **dict.fromkeys(flags, False),
    )  # fmt: skip
    indexed = IndexedDataset(f"{folder}/tokens", mmap=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    data = GPTDataset(indexed, f"{folder}/tokens", documents, case.num_samples, Split.train, config)
    while True:
        for rows in _torch_loader(data, case):
            yield rows["tokens"], rows["labels"]


class _MegatronTokenizer:
    """What GPTDataset asks of a tokenizer."""

    eod = 0
    pad = -1
    vocab_size = 2**16
    unique_identifiers: ClassVar = {"class": "none"}


def streaming(case: Case) -> Batches:
    from streaming import MDSWriter, StreamingDataset

    folder = case.own("streaming")
    length = case.seq_len + 1
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
            for sample in range(case.num_samples):
                writer.write({"tokens": case.tokens[sample * case.seq_len :][:length]})
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=case.batch, shuffle_seed=1)
    while True:
        for rows in _torch_loader(data, case):
            yield rows["tokens"]


def _torch_loader(data: Any, case: Case) -> Any:
    return torch.utils.data.DataLoader(
        data, batch_size=case.batch, num_workers=case.workers, drop_last=True
    )


ARMS: dict[str, Callable[[Case], Batches]] = {
    "map": memory_map,
    "map-take": memory_map_take,
    "ours": ours,
    "ours-mixed": lambda case: ours(case, (0.3, 0.7)),
    "litdata": litdata,
    "datasets": datasets,
    "megatron": megatron,
    "streaming": streaming,
}


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process: what is not the page cache's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    at_start = anonymous_bytes()
    batches = ARMS[case.arm](case)
    next(batches)  # whatever is written, written; whatever is opened, open
    print("\n@ready", 0, flush=True)
    count = max(1, case.turn_tokens // (case.batch * case.seq_len))
    while sys.stdin.readline().strip() == "go":
        started = time.perf_counter()
        for _ in itertools.islice(batches, count):
            pass
        print("\n@turn", time.perf_counter() - started, flush=True)
    peak = 0
    for _ in itertools.islice(batches, count):
        peak = max(peak, anonymous_bytes())
    result = {
        "peak_anonymous": peak,
        "at_start": at_start,
        "tokens": count * case.batch * case.seq_len,
    }
    print("\n@result", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads and worker processes of other libraries may hang on
