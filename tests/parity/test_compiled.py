"""Compiled layers write the same text as uncompiled ones. After `compile`, nothing waits for a compiler."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo import register_backend
from torch._dynamo.utils import counters

from benchmarks.tiny_families import tiny_model
from multitoken.decoding import ConfAdapt, Decoder, DecodingError, Exact, NextToken, Sampling
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from tests.parity.families import EOS, MASK, SUPPORTED
from tests.parity.test_draft_head import head_for

PROMPTS = [[7, 8, 9, 10], [11, 12], [20, 21, 22, 23, 24, 25], [30], [5, 9, 9, 8, 7]]
POLICIES = [NextToken(), Exact(0.0), Exact(0.3, k=2), ConfAdapt(0.3)]


def answers(decoder: Decoder, policy, prompts=PROMPTS, **options) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=40, **options):
        out[chunk.row] += chunk.token_ids
    return out


def all_answers(decoder: Decoder) -> list[list[list[int]]]:
    """Answers alone and in a batch, greedy and sampled, with all masks and with as many as pay off."""
    found = []
    for policy in POLICIES:
        found.append(answers(decoder, policy))
        found.append(answers(decoder, policy, PROMPTS[:1]))
    found.append(answers(decoder, Exact(0.0), adaptive=True))
    found.append(answers(decoder, Exact(0.0), sampling=Sampling(0.8, seed=3, top_p=0.95)))
    return found


def small(family: str, rank: int) -> nn.Module:
    """A gated model. It has few layers, because each is traced four times. Updates of a high rank are merged."""
    model = SUPPORTED[family]().requires_grad_(False)
    layers = 2 if "sliding" in family else 1
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    adapter = GatedAdapter(model, mask_id=MASK, rank=rank, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.15)
    adapter.attach_for_decoding(model)
    return model


@pytest.mark.parametrize(
    ("family", "rank", "backend"),
    [("llama", 24, "inductor"), ("gemma3, sliding and full", 2, "eager")],
)
def test_compiled_steps_write_the_same_text_and_are_compiled_once(
    monkeypatch, family: str, rank: int, backend: str
) -> None:
    """Guards against sizes, indices or sides that the compiler treats as constants, against a server that stops for a minute
    because a batch has a new size, and against passes that silently run uncompiled."""
    torch._dynamo.reset()
    model = small(family, rank)
    assert any("weights_by_kind" in name for name, _ in model.named_buffers()) == (rank == 24)
    decoder = Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS], head=head_for(model) if rank == 24 else None)
    plain = all_answers(decoder)
    counters.clear()
    decoder.compile(backend)
    assert counters["stats"]["unique_graphs"] == 4, "one row and several, of one token and with masks"
    monkeypatch.setattr(type(decoder._compiled), "_stance", "fail_on_recompile")
    assert all_answers(decoder) == plain
    assert "forward" not in model.get_decoder().__dict__, "whoever else uses the model finds it as it was"


def test_what_cannot_be_compiled_is_refused() -> None:
    decoder = Decoder(tiny_model("mamba2"), mask_id=MASK, trained_k=4)
    with pytest.raises(DecodingError, match="has recurrent layers"):
        decoder.compile()
    spread = copy.copy(SUPPORTED["llama"]())
    spread.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(DecodingError, match="several devices"):
        Decoder(spread, mask_id=MASK, trained_k=4).compile()


def test_a_compiler_that_fails_is_named_and_may_be_asked_again() -> None:
    """Guards against a decoder that counts as compiled after a failure, and against a traceback of a hundred lines where g++
    is missing."""
    decoder = Decoder(small("llama", 2), mask_id=MASK, trained_k=4)
    plain = answers(decoder, Exact(0.0))
    register_backend(_fails, name="fails")
    for _ in range(2):
        with pytest.raises(DecodingError, match=r"cannot compile LlamaModel: .*no compiler here.*; leave compile out"):
            decoder.compile("fails")
    assert answers(decoder, Exact(0.0)) == plain


def _fails(graph, inputs):
    raise RuntimeError("no compiler here")
