"""Ways to compute the same attention, one file each, behind one protocol.

All of them are softmax(q·kᵀ/√head + ALiBi) · v over the past, within the document and the window,
and are tested against that formula.
"""

from __future__ import annotations

from hpc_llm.config.schema import ModelConfig
from hpc_llm.model.backends.protocol import Backend


def make_backend(name: str, config: ModelConfig, seq_len: int) -> Backend:
    """The backend `name` (config.computing) for sequences of at most `seq_len` tokens.

    InputError if it is not installed here.
    """
    if name == "folded":
        from hpc_llm.model.backends.folded import Folded

        return Folded(config)
    if name == "flex":
        # This imports torch's compiler: 1 s for those who ask for it.
        from hpc_llm.model.backends.flex import Flex

        return Flex(config)
    if name == "flash":
        from hpc_llm.model.backends.flash import Flash

        return Flash(config)
    if name == "blocked":
        from hpc_llm.model.backends.blocked import Blocked

        return Blocked(config, seq_len)
    from hpc_llm.model.backends.sdpa import Sdpa

    return Sdpa(config, seq_len)
