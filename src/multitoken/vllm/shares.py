"""A rank's share of what belongs to vLLM's layers, where tensor parallelism splits them.

Layers split by outputs have their share of an update's `up`, layers split by inputs their share of its `down`: what a rank adds at
masks is summed with the layer's own output, by the layer. With one rank a share is the whole.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, QKVParallelLinear, RowParallelLinear

from multitoken.errors import UnsupportedModelError


def local_outputs(layer: LinearBase) -> int:
    """Outputs of this rank."""
    return layer.output_size_per_partition if isinstance(layer, ColumnParallelLinear) else layer.output_size


def fits(layer: LinearBase, index: int, down: Tensor, up: Tensor) -> bool:
    """Whether an update, down [R, D] and up [E, R], is one of the layer's part of that index."""
    outputs = _outputs(layer)[index]
    if isinstance(layer, QKVParallelLinear) and index:
        outputs //= layer.num_kv_head_replicas  # which the checkpoint has once
    return down.shape[1] == layer.input_size and len(up) <= outputs


def share(layer: LinearBase, index: int, down: Tensor, up: Tensor) -> tuple[int, Tensor, Tensor]:
    """(first output, down, up) of this rank: of the whole update of the layer's part of that index."""
    ranks, rank = layer.tp_size, layer.tp_rank
    if isinstance(layer, ColumnParallelLinear):
        sizes = [size // ranks for size in _outputs(layer)]
        if isinstance(layer, QKVParallelLinear) and index:
            rank //= layer.num_kv_head_replicas  # ranks that outnumber the heads of keys share them
        return sum(sizes[:index]), down, up[rank * sizes[index] : (rank + 1) * sizes[index]] if ranks > 1 else up
    if isinstance(layer, RowParallelLinear):
        inputs = layer.input_size_per_partition
        down = down[:, rank * inputs : (rank + 1) * inputs].contiguous()
    return 0, down, up


def _outputs(layer: Any) -> list[int]:
    """Outputs of the parts of a layer, all ranks together."""
    return getattr(layer, "output_sizes", None) or [layer.output_size]


def local_id(embedding: Any, token: int) -> int:
    """What the embedding's method is given for this token on the rank that has it; -1 on the others.

    Raises `UnsupportedModelError` for a token beyond the matrix, which no rank has.
    """
    if embedding.tp_size == 1:
        return token
    if token >= embedding.org_vocab_size:
        raise UnsupportedModelError(
            f"the mask's id is {token}, beyond the vocabulary of {embedding.org_vocab_size}, which tensor_parallel_size "
            f"{embedding.tp_size} splits; use 1"
        )
    if hasattr(embedding, "use_fused_embedding"):
        embedding.use_fused_embedding = False  # a kernel that goes past the method
    shard = embedding.shard_indices
    inside = shard.org_vocab_start_index <= token < shard.org_vocab_end_index
    return token - shard.org_vocab_start_index if inside else -1


def of_all_ranks(embedding: Any, table: Tensor, dim: int) -> Tensor:
    """What every rank computed for its tokens of `embedding`, along `dim`, for the whole vocabulary."""
    whole = tensor_model_parallel_all_gather(table, dim) if embedding.tp_size > 1 else table
    return whole.narrow(dim, 0, int(embedding.org_vocab_size))


def local_tokens(embedding: Any, device: torch.device) -> Tensor:
    """This rank's rows of `embedding`, padding included."""
    return torch.arange(int(embedding.num_embeddings_per_partition), device=device)
