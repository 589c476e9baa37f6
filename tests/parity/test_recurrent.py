"""Recurrent and hybrid models: real tokens change the state, masks and refused drafts never do.

Decoding is compared with transformers' greedy `generate`, and training with one plain forward pass per block. In float32:
transformers' scans cast to it, so float64 would show no more.
"""

import copy

import pytest
import torch
from torch import nn

from benchmarks.tiny_families import EOS, MASK, tiny_model
from multitoken.decoding import ConfAdapt, Decoder, Exact, NextToken, Sampling
from multitoken.decoding import block_states as block_states_module
from multitoken.decoding import recurrent as recurrent_module
from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.block_states import BlockStates, block_inputs
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.mixers import Mixers
from multitoken.models.selftest import check_blocks
from multitoken.training.head import Head
from multitoken.training.passes import GatedPasses

# One family for each mixer, then families that combine the same mixers in another way.
KINDS = {"mamba2": "Mamba-2", "jamba": "Mamba-1", "qwen3_next": "gated delta net", "lfm2": "short convolution",
         "recurrent_gemma": "RG-LRU", "minimax": "lightning attention", "kimi_linear": "Kimi's delta attention"}  # fmt: skip
HAS_EXPERTS = {"jamba", "qwen3_next", "minimax"}
OTHERS = [
    "zamba",
    "falcon_h1",
    "bamba",
    "granitemoehybrid",
    "nemotron_h",
    "mamba",
    "qwen3_5_text",
    "olmo_hybrid",
]
PROMPTS = [torch.randint(6, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 11, 1, 30)]
NEW = 16


def under_a_gate(family: str):
    """(a model of the family, the same model with a random gated adapter that has a large effect)"""
    model = tiny_model(family).requires_grad_(False)
    bare = copy.deepcopy(model)
    adapter = GatedAdapter(model, mask_id=10_000, rank=4, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach_for_decoding(model)
    return bare, model


def decoded(decoder: Decoder, prompts: list[list[int]], policy, **options) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=NEW, **options):
        rows[chunk.row] += chunk.token_ids
    return rows


def greedy(model, prompt: list[int]) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=NEW, suppress_tokens=[MASK], eos_token_id=EOS,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def slow_greedy(model, prompt: list[int]) -> list[int]:
    """One whole forward pass per token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW and (len(ids) == len(prompt) or ids[-1] != EOS):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[MASK] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def decoder_of(model) -> Decoder:
    return Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS])


@pytest.mark.parametrize("family", [*KINDS, *OTHERS])
def test_exact_is_generate_alone_and_in_a_ragged_batch(family: str) -> None:
    """If a mask or a refused draft enters the state, or a confirmed draft is left out of it, every later token changes."""
    model = tiny_model(family)
    decoder = decoder_of(model)
    prompts = PROMPTS if family in KINDS else PROMPTS[:3]
    reference = [greedy(model, prompt) for prompt in prompts]
    for policy in (Exact(0.0), Exact(0.3, 4), NextToken()) if family in KINDS else (Exact(0.3),):
        assert decoded(decoder, prompts, policy) == reference, policy
    assert decoded(decoder, prompts[1:2], Exact(0.0)) == reference[1:2]


def test_zamba2_is_what_its_forward_pass_says() -> None:
    """Its one-token kernel omits a limit of the time step that its forward pass has, so `generate` and our decoding may differ.
    The reference is therefore its forward pass."""
    model = tiny_model("zamba2")
    reference = [slow_greedy(model, prompt) for prompt in PROMPTS[:3]]
    for policy in (Exact(0.0), NextToken()):
        assert decoded(decoder_of(model), PROMPTS[:3], policy) == reference


@pytest.mark.parametrize("family", KINDS)
def test_one_seed_is_one_text(family: str) -> None:
    decoder, hot = decoder_of(tiny_model(family)), Sampling(1.0, seed=3)
    plain = decoded(decoder, PROMPTS, NextToken(), sampling=hot)
    assert decoded(decoder, PROMPTS, Exact(0.0), sampling=hot) == plain
    assert decoded(decoder, PROMPTS, Exact(0.0)) != plain


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("family", KINDS)
def test_lines_are_used_again_and_prompts_come_in_pieces(family: str, stride: int, monkeypatch) -> None:
    """Rows leave, others take over and move their lines, and checkpoints move at other positions. What a line held before must
    be gone, and what it holds must move with it."""
    monkeypatch.setattr(recurrent_module, "STRIDE", stride)
    decoder = decoder_of(tiny_model(family))
    requests = [
        decoder.request(prompt, policy=policy, max_new_tokens=4 + 3 * i)
        for i, (prompt, policy) in enumerate(zip(PROMPTS, (Exact(0.0), NextToken(), ConfAdapt(0.2), Exact(0.1, 3), Exact(0.0)), strict=True))
    ]  # fmt: skip

    def texts(chosen, **options) -> list[list[int]]:
        engine = decoder.engine(**options)
        numbers = [engine.add(request) for request in chosen]
        found: dict[int, list[int]] = {number: [] for number in numbers}
        for chunk in engine.run():
            found[chunk.row] += chunk.token_ids
        return list(found.values())

    alone = [texts([request])[0] for request in requests]
    assert texts(requests, max_rows=2, prefill_tokens=7) == alone
    assert texts(requests, max_rows=4) == alone


@pytest.mark.parametrize("family", KINDS)
def test_what_stands_at_masks_leaves_the_state_untouched(family: str) -> None:
    """With the same tokens and masks that predict something else, the stored state must be equal bit for bit. Experts are the
    exception: on some CPUs, their rounding depends on how many tokens each of them gets, masks included."""
    model = tiny_model(family).requires_grad_(False)
    adapter = GatedAdapter(model, mask_id=MASK, rank=4, layers=adaptable_layers(model))
    adapter.attach(model)
    decoder = decoder_of(model)

    def remembered(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.3)
        engine = decoder.engine()
        for prompt in PROMPTS:
            engine.add(decoder.request(prompt, policy=Exact(1.0), max_new_tokens=24))
        for _ in range(20):  # threshold 1: all drafts are dropped, but checkpoints still move
            engine.step()
        recurrent = engine._batch.cache.recurrent
        return [part for parts in recurrent._states for part in parts.values()]

    tolerance = 1e-4 if family in HAS_EXPERTS else 0.0
    for ours, other in zip(remembered(1), remembered(2), strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance)


LENGTHS, KS = (20, 14), (4, 2, 3)
ANCHORS = torch.tensor([[3, 19, 11], [0, 6, 13]])


def tokens() -> torch.Tensor:
    ids = torch.randint(6, 90, (2, 20), generator=torch.Generator().manual_seed(1))
    ids[1, LENGTHS[1] :] = 0
    return ids


def packed(model, ids: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
    batch = pack_blocks(ids, LENGTHS, ANCHORS, KS, MASK, segments=segments)
    masks = AttentionRule(model).between(batch.positions, batch.positions, batch.rule())
    return model(
        input_ids=batch.ids, attention_mask=masks, position_ids=batch.positions, logits_to_keep=batch.slots,
        **block_inputs(model, batch),
    ).logits[:, -batch.slots :]  # fmt: skip


def separate(model, ids: torch.Tensor, mask_id: int = MASK) -> torch.Tensor:
    """The slow reference: each block alone, as [tokens up to the anchor | masks]."""
    rows = []
    for row, anchors in zip(ids, ANCHORS, strict=True):
        parts = [
            torch.cat([row[: a + 1], torch.full((k - 1,), mask_id)])[None] for a, k in zip(anchors, KS, strict=True)
        ]
        rows.append(
            torch.cat([model(input_ids=p, use_cache=False).logits[0, -k:] for p, k in zip(parts, KS, strict=True)])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("piece", [5, 19])
@pytest.mark.parametrize("family", [*KINDS, "zamba2", *OTHERS])
def test_packed_blocks_and_their_gradients_are_those_of_blocks_alone(family: str, piece: int, monkeypatch) -> None:
    """Other anchors in each row, padding, and a border between pieces every 5 tokens, so that blocks start on, before and after
    a border. Or a border every 19 tokens, which leaves one token for the last piece: kernels for one token write in place."""
    monkeypatch.setattr(block_states_module, "PIECE_ON_CPU", piece)
    model = tiny_model(family)
    ours, reference = packed(model, tokens()), separate(model, tokens())
    assert torch.allclose(ours, reference, atol=1e-3)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((ours * weights).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad((reference * weights).sum(), parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, atol=1e-3 * max(1e-3, b.abs().max().item()))


@pytest.mark.parametrize("family", ["mamba2", "qwen3_next", "lfm2"])
def test_kinds_that_leave_any_state_are_replayed_as_well(family: str, monkeypatch) -> None:
    """As on accelerators, whose kernels leave only the last state."""
    assert Mixers.of(tiny_model(family)).leave_any
    monkeypatch.setattr(Mixers, "leave_any", False)
    test_exact_is_generate_alone_and_in_a_ragged_batch(family)
    test_lines_are_used_again_and_prompts_come_in_pieces(family, 3, monkeypatch)
    for piece in (5, 19):
        test_packed_blocks_and_their_gradients_are_those_of_blocks_alone(family, piece, monkeypatch)


def test_padding_is_no_sample_of_its_own() -> None:
    """Guards against a bug: a row's padding, which may be a segment of its own, ran through the mixers as one more sample."""
    model = tiny_model("mamba2")
    segments = torch.zeros_like(tokens())
    segments[1, LENGTHS[1] :] = 1
    batch = pack_blocks(tokens(), LENGTHS, ANCHORS, KS, MASK, segments=segments)
    mixed = BlockStates(batch, Mixers.of(model))
    assert mixed._tokens.shape == (2, 20)
    assert torch.allclose(packed(model, tokens(), segments), packed(model, tokens()), atol=1e-5)


@pytest.mark.parametrize("family", [*KINDS, "granitemoehybrid", "mamba"])
def test_a_gate_trains_behind_the_original_models_prefix(family: str, monkeypatch) -> None:
    """Real tokens, state included, must be those of the bare model. Masks must be those of a plain pass of the gated model, and
    the gradient of the adapter must be that of such passes."""
    monkeypatch.setattr(block_states_module, "PIECE_ON_CPU", 5)
    model = tiny_model(family).requires_grad_(False)
    bare = copy.deepcopy(model)
    adapter = GatedAdapter(model, mask_id=MASK, rank=4, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach(model)
    ids = tokens()
    passes = GatedPasses(Head(model, MASK), AttentionRule(model))
    batch = pack_blocks(ids, LENGTHS, ANCHORS, KS, MASK)
    hidden = passes.propose(batch)
    real = passes.student.logits(hidden.real)[0]
    plain = bare(input_ids=ids[:1], use_cache=False).logits[0]
    other = torch.arange(plain.shape[-1]) != MASK
    assert torch.allclose(real[:, other], plain[:, other], atol=1e-3)
    ours, reference = passes.student.logits(hidden.blocks)[..., other], separate(model, ids)[..., other]
    assert torch.allclose(ours, reference, atol=2e-3)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    weights = weights * (batch.place > 0)[:, None]  # an anchor's logits are the original's: no gradient there
    found = torch.autograd.grad((ours * weights).sum(), list(adapter.parameters()), allow_unused=True)
    expected = torch.autograd.grad((reference * weights).sum(), list(adapter.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-3 * max(1e-2, b.abs().max().item()))
    inside = {id(layer) for mixer in Mixers.of(model).all for layer in mixer.module.modules()}
    assert any(id(model.get_submodule(name)) in inside for name in adapter.names)


@pytest.mark.parametrize("family", KINDS)
def test_exact_under_a_gate_is_the_bare_models_text(family: str) -> None:
    """The promise of the gate, with updates that have a large effect inside the mixers."""
    bare, model = under_a_gate(family)
    plain = decoded(Decoder(bare, eos_ids=[EOS]), PROMPTS, NextToken())
    ours = Decoder(model, mask_id=10_000, trained_k=6, eos_ids=[EOS])
    assert decoded(ours, PROMPTS, Exact(0.0)) == plain
    assert decoded(ours, PROMPTS, ConfAdapt(0.0)) != plain
    check_blocks(model, 10_000)


@pytest.mark.parametrize("family", KINDS)
def test_mixers_are_found_and_named(family: str) -> None:
    mixers = Mixers.of(tiny_model(family))
    assert mixers is not None and {mixer.kind.name for mixer in mixers.all} == {KINDS[family]}


def test_a_model_of_attention_alone_is_left_as_it_is() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model)
    engine = decoder.engine()
    engine.add(decoder.request([7, 8], max_new_tokens=2))
    engine.step()
    assert Mixers.of(model) is None and engine._batch.cache.recurrent is None
    assert not any("forward" in module.__dict__ for module in model.modules())
