"""Exact nearest neighbours among tensors on a GPU, by FAISS: vectors are read where they lie, and indices stay there.

FAISS is given addresses. What ``faiss.contrib.torch_utils`` does for tensors would, once imported, take the place of
FAISS's own functions for arrays in the whole process.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from substyle.engine.analysis import device
from substyle.kernels.errors import ConfigError

BLOCK = 1 << 18  # rows of the bank that are searched at once; of float16 they are cast, 0.8 GB at width 768
MOST = 2048  # neighbours; FAISS's own limit there
_FLOATS = (torch.float32, torch.float16)


def search(query_QD: torch.Tensor, bank_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k bank rows of largest inner product with each query, best first, in float32 arithmetic.

    Args:
        query_QD, bank_BD: on one GPU, float32 or float16, row after row; float16 rows are cast block by block.
        k: at most 2,048.

    Returns:
        (Q, min(k, B)) int64 on that GPU, queued on its current stream.

    Raises:
        ConfigError: more neighbours than FAISS gives on a GPU, or tensors of other types.
    """
    if k > MOST:
        raise ConfigError("k", k, f"at most {MOST} neighbours on a GPU")
    for name, x in (("query", query_QD), ("bank", bank_BD)):
        if x.dtype not in _FLOATS or x.ndim != 2 or x.device != bank_BD.device:
            raise ConfigError(
                name, f"{tuple(x.shape)} {x.dtype} on {x.device}", f"float32 or float16 rows on {bank_BD.device}"
            )
    query_QD = query_QD.float().contiguous()
    near = torch.empty(len(query_QD), 0, device=bank_BD.device)
    found = torch.empty(len(query_QD), 0, dtype=torch.int64, device=bank_BD.device)
    if not len(query_QD):
        return found.new_empty(0, min(k, len(bank_BD)))
    for start in range(0, len(bank_BD), BLOCK):
        block_BD = bank_BD[start : start + BLOCK].float().contiguous()
        of_block, index = _block(query_QD, block_BD, min(k, len(block_BD)))
        near, found = torch.cat([near, of_block], 1), torch.cat([found, index + start], 1)
        if near.shape[1] > k:
            near, best = near.topk(k, dim=1)
            found = found.gather(1, best)
    return found


def _block(query_QD: torch.Tensor, bank_BD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products (Q, k) and indices (Q, k) of the best rows; all tensors are contiguous."""
    faiss: Any = importlib.import_module("faiss")  # what its builds for GPUs have beside the others
    near = torch.empty(len(query_QD), k, device=bank_BD.device)
    found = torch.empty(len(query_QD), k, dtype=torch.int64, device=bank_BD.device)
    resources: Any = device.resources()
    wanted = faiss.GpuDistanceParams()
    wanted.metric, wanted.k, wanted.dims = faiss.METRIC_INNER_PRODUCT, k, bank_BD.shape[1]
    wanted.vectors, wanted.numVectors = faiss.cast_integer_to_float_ptr(bank_BD.data_ptr()), len(bank_BD)
    wanted.queries, wanted.numQueries = faiss.cast_integer_to_float_ptr(query_QD.data_ptr()), len(query_QD)
    wanted.vectorType = wanted.queryType = faiss.DistanceDataType_F32
    wanted.vectorsRowMajor = wanted.queriesRowMajor = True
    wanted.outDistances = faiss.cast_integer_to_float_ptr(near.data_ptr())
    wanted.outIndices = faiss.cast_integer_to_idx_t_ptr(found.data_ptr())
    wanted.outIndicesType = faiss.IndicesDataType_I64
    wanted.device = bank_BD.device.index
    with torch.cuda.device(bank_BD.device):
        # FAISS queues behind what made the vectors, and torch behind FAISS: nobody waits
        stream = torch.cuda.current_stream(bank_BD.device)
        resources.setDefaultStream(bank_BD.device.index, faiss.cast_integer_to_cudastream_t(stream.cuda_stream))
        faiss.bfKnn(resources, wanted)
    return near, found
