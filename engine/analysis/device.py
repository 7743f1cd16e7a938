"""Whether FAISS searches on a GPU: it does where its GPU build is installed and a GPU is there."""

from __future__ import annotations

from functools import cache
from typing import Any

MEMORY_LIMIT = 8 << 30  # bytes of vectors, and as many of queries, that lie on the GPU at once; the rest follows


@cache
def resources() -> Any:  # noqa: ANN401 - FAISS ships no types
    """FAISS's working memory on the GPU, made once; None where it searches on the CPU."""
    import faiss

    counted = getattr(faiss, "get_num_gpus", None)
    if counted is None or counted() == 0 or not hasattr(faiss, "StandardGpuResources"):
        return None
    return faiss.StandardGpuResources()
