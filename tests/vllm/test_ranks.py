"""Tensor parallelism: two ranks, each with its share of model, adapter and draft head, write the text that one writes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.vllm_local import counters
from multitoken.decoding import Sampling
from multitoken.errors import UnsupportedModelError

from .conftest import Case, Reference, engine
from .test_gated import write_whole

Generate = Callable[..., list[list[int]]]


def test_two_ranks_write_the_original_models_text(
    tmp_path: Path, generate: Generate, original: Reference, prompts
) -> None:
    """Guards against ranks that choose different tokens. The number of accepted tokens also guards against an update at the wrong
    outputs or inputs of a rank, and against a mask that no rank knows, for which the text would still be right."""
    checkpoint = write_whole(tmp_path)
    cases = [Case(p, 60, Sampling(0.9, i, top_k=40) if i % 3 == 0 else None) for i, p in enumerate(prompts[:12])]
    accepted = []
    for ranks in (1, 2):
        options = {"tensor_parallel_size": ranks, "additional_config": {"mtp": {"adaptive": False}}}
        with engine(model=str(checkpoint), **options) as llm:
            assert generate(llm, cases) == original.plain(cases)
            accepted.append(counters(llm)["num_accepted_tokens"])
    assert accepted[1] == pytest.approx(accepted[0], rel=0.02)


def _layer(kind: str, ranks: int, rank: int, **facts: Any) -> Any:
    """One of vLLM's layers, with only the attributes that its share depends on."""
    from vllm.model_executor.layers import linear

    layer = getattr(linear, kind).__new__(getattr(linear, kind))
    nn.Module.__init__(layer)
    vars(layer).update(tp_size=ranks, tp_rank=rank, input_size=6, **facts)
    return layer


def test_more_ranks_than_heads_of_keys_share_them() -> None:
    """Four ranks and two heads of keys: vLLM gives each head to two ranks."""
    from multitoken.vllm.shares import fits, share

    down, up = torch.randn(2, 6), torch.randn(8, 2)  # two heads of size four
    layers = [
        _layer("QKVParallelLinear", 4, rank, output_sizes=[16, 16, 16], output_size=48, num_kv_head_replicas=2)
        for rank in range(4)
    ]
    shares = [share(layer, 1, down, up) for layer in layers]
    assert [first for first, *_ in shares] == [4] * 4
    assert [torch.equal(mine, up[:4]) for *_, mine in shares] == [True, True, False, False]
    assert [torch.equal(mine, up[4:]) for *_, mine in shares] == [False, False, True, True]
    assert fits(layers[0], 1, down, up)
    assert not fits(layers[0], 1, down, torch.randn(16, 2))


def test_a_layer_split_by_inputs_adds_up() -> None:
    from multitoken.vllm.shares import share

    down, up, x = torch.randn(2, 6), torch.randn(5, 2), torch.randn(3, 6)
    total = torch.zeros(3, 5)
    for rank in range(2):
        layer = _layer("RowParallelLinear", 2, rank, input_size_per_partition=3, output_size=5)
        _, mine, whole = share(layer, 0, down, up)
        total += x[:, 3 * rank : 3 * rank + 3] @ mine.T @ whole.T
    torch.testing.assert_close(total, x @ down.T @ up.T)


def test_a_mask_beyond_the_vocabulary_needs_one_rank() -> None:
    from multitoken.vllm.shares import local_id

    shard = SimpleNamespace(org_vocab_start_index=32, org_vocab_end_index=64)
    embedding = SimpleNamespace(tp_size=2, org_vocab_size=64, shard_indices=shard, use_fused_embedding=True)
    assert local_id(embedding, 40) == 8
    assert local_id(embedding, 31) == -1
    assert embedding.use_fused_embedding is False, "that kernel would never see the mask's vector"
    with pytest.raises(UnsupportedModelError, match="the mask's id is 64, beyond the vocabulary of 64"):
        local_id(embedding, 64)
    assert local_id(SimpleNamespace(tp_size=1, org_vocab_size=64), 64) == 64
