"""What torch's allocator has given out on a CPU at most, as torch.cuda.max_memory_allocated tells
it of a GPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch


class Alive:
    """`peak`: most bytes of tensors alive at once, of those that were made within. It takes time
    and memory itself.
    """

    peak = 0

    def __enter__(self) -> Alive:
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profiler.__exit__(*error)
        assert self._profiler.profiler is not None
        events: Any = self._profiler.profiler.kineto_results
        changes = [
            (event.start_ns(), event.nbytes())
            for event in events.events()
            if event.name() == "[memory]"
        ]
        self.peak = max(
            itertools.accumulate(change for _, change in sorted(changes, key=lambda one: one[0]))
        )
