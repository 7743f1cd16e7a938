"""Whether FAISS searches on a GPU: it does where its GPU build is installed and a GPU is there."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from substyle.engine.analysis.sampling import F32

MEMORY_LIMIT = 8 << 30  # bytes of vectors, and as many of queries, that lie on the GPU at once; the rest follows


@cache
def resources() -> Any:  # noqa: ANN401 - FAISS ships no types
    """FAISS's working memory on the GPU, made once; None where it searches on the CPU."""
    import faiss

    counted = getattr(faiss, "get_num_gpus", None)
    if counted is None or counted() == 0 or not hasattr(faiss, "StandardGpuResources"):
        return None
    return faiss.StandardGpuResources()


def place(x_RD: F32) -> F32 | torch.Tensor:
    """Rows where they are searched: on the GPU where FAISS and torch both use one and rows fit, else as they are."""
    if x_RD.nbytes > MEMORY_LIMIT or resources() is None or not torch.cuda.is_available():
        return x_RD
    return torch.from_numpy(x_RD).to(torch.device("cuda", torch.cuda.current_device()))
