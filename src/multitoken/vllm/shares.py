"""One rank's share of vLLM's layers and of their updates, if tensor parallelism splits the layers.

A layer that is split by outputs has a share of an update's `up`. A layer that is split by inputs has a share of its
`down`; the layer itself then sums over the ranks what they add at masks, together with its own output. With one rank, a
share is the whole.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, QKVParallelLinear, RowParallelLinear

from multitoken.errors import UnsupportedModelError


def local_outputs(layer: LinearBase) -> int:
    """How many outputs of the layer this rank has."""
    return layer.output_size_per_partition if isinstance(layer, ColumnParallelLinear) else layer.output_size


def fits(layer: LinearBase, index: int, down: Tensor, up: Tensor) -> bool:
    """Whether an update, down [R, D] and up [E, R], fits the part `index` of the layer."""
    outputs = _outputs(layer)[index]
    if isinstance(layer, QKVParallelLinear) and index:
        outputs //= layer.num_kv_head_replicas  # replicas that the checkpoint has only once
    return down.shape[1] == layer.input_size and len(up) <= outputs


def share(layer: LinearBase, index: int, down: Tensor, up: Tensor) -> tuple[int, Tensor, Tensor]:
    """This rank's (first output, down, up), from the whole update of the part `index` of the layer."""
    ranks, rank = layer.tp_size, layer.tp_rank
    if isinstance(layer, ColumnParallelLinear):
        sizes = [size // ranks for size in _outputs(layer)]
        if isinstance(layer, QKVParallelLinear) and index:
            rank //= layer.num_kv_head_replicas  # if there are more ranks than key heads, ranks share them
        return sum(sizes[:index]), down, up[rank * sizes[index] : (rank + 1) * sizes[index]] if ranks > 1 else up
    if isinstance(layer, RowParallelLinear):
        inputs = layer.input_size_per_partition
        down = down[:, rank * inputs : (rank + 1) * inputs].contiguous()
    return 0, down, up


def _outputs(layer: Any) -> list[int]:
    """How many outputs each part of a layer has, over all ranks."""
    return getattr(layer, "output_sizes", None) or [layer.output_size]


def local_id(embedding: Any, token: int) -> int:
    """The id that the embedding's method gets for this token on the rank that has it; -1 on the others.

    Raises `UnsupportedModelError` for a token beyond the matrix, which no rank has.
    """
    if embedding.tp_size == 1:
        return token
    if token >= embedding.org_vocab_size:
        raise UnsupportedModelError(
            f"the mask's id is {token}, beyond the vocabulary of {embedding.org_vocab_size}, so no rank has it with "
            f"tensor_parallel_size {embedding.tp_size}; use tensor_parallel_size 1"
        )
    if hasattr(embedding, "use_fused_embedding"):
        embedding.use_fused_embedding = False  # its kernel would bypass the method
    shard = embedding.shard_indices
    inside = shard.org_vocab_start_index <= token < shard.org_vocab_end_index
    return token - shard.org_vocab_start_index if inside else -1


def of_all_ranks(embedding: Any, table: Tensor, dim: int) -> Tensor:
    """Joins what every rank computed for its tokens of `embedding` along `dim`, for the whole vocabulary."""
    whole = tensor_model_parallel_all_gather(table, dim) if embedding.tp_size > 1 else table
    return whole.narrow(dim, 0, int(embedding.org_vocab_size))


def local_tokens(embedding: Any, device: torch.device) -> Tensor:
    """The indices of this rank's rows of `embedding`, including padding."""
    return torch.arange(int(embedding.num_embeddings_per_partition), device=device)
