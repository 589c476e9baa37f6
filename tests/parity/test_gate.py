"""The gate changes nothing except at masks. Every attention family is compared with plain forward passes of the bare model."""

import copy

import pytest
import torch
from torch import nn

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.halves import Halves
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import ConfAdapt, Exact, NextToken
from multitoken.models.selftest import check_blocks
from tests.parity.families import MASK, SUPPORTED

BEYOND = 10_000  # an id that no embedding matrix here has


def gated(family: str, mask_id: int = BEYOND, *, merged: bool = False):
    """A model, its bare copy, and an adapter that has a large effect at masks."""
    model = SUPPORTED[family]().requires_grad_(False)
    bare = copy.deepcopy(model)
    adapter = GatedAdapter(model, mask_id=mask_id, rank=16 if merged else 4, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.15 if merged else 0.3)
    if merged:
        adapter.attach_for_decoding(model)
    else:
        adapter.attach(model)
    return model, bare, adapter


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_real_positions_are_the_original_models(family: str, merged: bool) -> None:
    """Masks are at the end of both rows, at the end of one, or in the middle of one. The adapter must never affect a real
    token."""
    model, bare, _adapter = gated(family, merged=merged)
    tokens = torch.randint(6, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    plain = bare(input_ids=tokens, use_cache=False).logits
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, plain), "no masks: not even rounding"
    for rows, start, end in [((0, 1), 9, 12), ((0,), 9, 12), ((1,), 10, 11)]:
        ids = tokens.clone()
        for row in rows:
            ids[row, start:end] = BEYOND
        ours = model(input_ids=ids, use_cache=False).logits
        for row in range(2):
            real = slice(0, start) if row in rows else slice(0, 12)
            assert torch.allclose(ours[row, real], plain[row, real], atol=1e-5)
        assert not torch.allclose(ours[rows[0], start], plain[rows[0], start], atol=0.1), "masks must feel it"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_packed_blocks_and_cached_steps_are_plain_passes(family: str, merged: bool) -> None:
    """The gate must find masks by their ids, wherever a layout puts them."""
    model, _, _ = gated(family, merged=merged)
    check_blocks(model, BEYOND)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3, sliding and full"])
def test_exact_decoding_is_the_bare_models_next_token_decoding(family: str, merged: bool) -> None:
    """The promise of the gate: nothing is lost, whatever the adapter predicts. Rows are in a batch, so masks can be anywhere."""
    model, bare, _ = gated(family, merged=merged)
    prompts = [[7, 8, 9, 10], [11, 12], [20, 21, 22, 23, 24, 25]]

    def answers(decoder, policy):
        out = [[] for _ in prompts]
        for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=20):
            out[chunk.row] += chunk.token_ids
        return out

    plain = answers(Decoder(bare), NextToken())
    ours = Decoder(model, mask_id=BEYOND, trained_k=4)
    assert answers(ours, NextToken()) == plain
    assert answers(ours, Exact(0.0)) == plain
    assert answers(ours, ConfAdapt(0.0)) != plain, "an adapter that says nothing would pass every test here"


def test_gradients_reach_the_adapter_and_nothing_else() -> None:
    """If the base were trained, it would no longer be the original."""
    model, _, adapter = gated("llama")
    batch = pack_blocks(torch.arange(8, 16)[None], [8], torch.tensor([[2, 5]]), (3, 4), BEYOND)
    masks = AttentionRule(model).between(batch.positions, batch.positions, batch.rule())
    model(
        input_ids=batch.ids, attention_mask=masks, position_ids=batch.positions, use_cache=False
    ).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_closed_gate_is_the_original_model() -> None:
    """With a closed gate, masks are computed by the original too, except that they have the mask's own vector."""
    model, bare, adapter = gated("llama", mask_id=MASK)
    bare.get_input_embeddings().weight[MASK] = adapter.mask_vector.detach()
    ids = torch.tensor([[7, 8, 9, MASK, MASK]])
    with adapter.closed():
        closed = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(closed, bare(input_ids=ids, use_cache=False).logits)
    assert not torch.allclose(model(input_ids=ids, use_cache=False).logits[0, -1], closed[0, -1], atol=0.1)


def test_layers_are_chosen_by_name() -> None:
    """A pattern that matches no layer must be refused: only a mask vector would be trained."""
    model = SUPPORTED["llama"]()
    every = adaptable_layers(model)
    assert not any("lm_head" in name for name in every)
    chosen = adaptable_layers(model, r"self_attn\.(q|v)_proj")
    assert 0 < len(chosen) < len(every) and all(name.endswith(("q_proj", "v_proj")) for name in chosen)
    with pytest.raises(DecodingError, match=r"matches 'nothing'; layers that can be adapted: .*q_proj"):
        adaptable_layers(model, "nothing")


@pytest.mark.parametrize("merged", [False, True])
def test_a_deep_copy_has_a_gate_of_its_own(merged: bool) -> None:
    """The float64 judge of identity is a deep copy: masks that the first model saw last must not act in it. A matrix that is
    merged while its parts require gradients cannot be copied if it keeps their graph."""
    model, bare, _ = gated("llama", merged=merged)
    twin = copy.deepcopy(model)
    model(input_ids=torch.tensor([[7, 8, BEYOND]]), use_cache=False)
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(twin(input_ids=ids, use_cache=False).logits, bare(input_ids=ids, use_cache=False).logits)


def test_fused_experts_are_adapted_too() -> None:
    """Fused experts are parameters and not linear layers. A search for `nn.Linear` would miss most of such a model."""
    names = adaptable_layers(SUPPORTED["qwen3 mixture of experts"]())
    assert sum(name.endswith("experts") for name in names) == 3


@pytest.mark.parametrize("family", ["llama", "qwen3 mixture of experts", "gpt2"])
def test_merged_updates_say_the_same(family: str) -> None:
    """An update may be added to the matrix in advance or to the layer's output. Except for rounding, both must give the same
    result, wherever the masks are. What cannot be merged (experts, GPT-2's transposed layers) is added to the output."""
    model, _, adapter = gated(family)
    ids = torch.randint(6, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[0, 9:], ids[1, 4:6] = BEYOND, BEYOND
    before = model(input_ids=ids, use_cache=False).logits
    for update in adapter.updates:  # of so high a rank that every one is worth merging
        wide = nn.Parameter(torch.zeros(64, update.down.shape[1]))
        up = nn.Parameter(torch.zeros(update.up.shape[0], 64))
        wide.data[:4], up.data[:, :4] = update.down.data, update.up.data
        update.down, update.up = wide, up
    model = SUPPORTED[family]().requires_grad_(False)  # without the hooks of training
    adapter.attach_for_decoding(model)
    after = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(before, after, atol=1e-4)
    buffers = [name for name, _ in model.named_buffers() if name.endswith("weights_by_kind")]
    assert len(buffers) == {"llama": 21, "qwen3 mixture of experts": 12, "gpt2": 0}[family]
    assert not any("weights_by_kind" in name for name in model.state_dict())


@pytest.mark.parametrize("family", ["llama", "qwen3 mixture of experts", "gpt2"])
def test_a_pass_without_masks_finds_the_adapted_layers_as_they_were(family: str) -> None:
    """Plain decoding must not pay for the adapter: none of our hooks or forwards stays on a layer, and what another library had
    put there comes back. With masks the adapter acts again, in a deep copy of the model too."""
    model, _, adapter = gated(family, merged=True)
    layers = [model.get_submodule(name) for name in adapter.names]
    ids = torch.randint(6, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    masked = ids.masked_fill(torch.arange(12) > 8, BEYOND)
    first = model(input_ids=masked, use_cache=False).logits
    assert all("forward" in layer.__dict__ for layer in layers)
    model(input_ids=ids, use_cache=False)
    assert not any("forward" in layer.__dict__ or layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    assert torch.equal(model(input_ids=masked, use_cache=False).logits, first)
    assert torch.equal(copy.deepcopy(model)(input_ids=masked, use_cache=False).logits, first)


def test_another_librarys_forward_comes_back() -> None:
    """Accelerate puts a forward of its own on layers that it moves between devices."""
    model = SUPPORTED["gpt2"]().requires_grad_(False)
    adapter = GatedAdapter(model, mask_id=BEYOND, rank=4, layers=adaptable_layers(model))
    layer = model.get_submodule(adapter.names[0])
    own = layer.__dict__["forward"] = layer.forward
    adapter.attach_for_decoding(model)
    for ids in ([[7, BEYOND]], [[7, 8]]):
        model(input_ids=torch.tensor(ids), use_cache=False)
    assert layer.__dict__["forward"] is own


@pytest.mark.parametrize(("real", "masks"), [(1, 15), (8, 15), (20, 3), (7, 7), (0, 9), (90, 5), (3, 90), (60, 200)])
@pytest.mark.parametrize("scattered", [False, True])
def test_two_groups_of_tokens_go_through_a_matrix_each(real: int, masks: int, scattered: bool) -> None:
    """Groups of similar and of very different sizes, in one product or in two, wherever the masks are."""
    generator = torch.Generator().manual_seed(0)
    is_mask = torch.arange(real + masks) >= real
    if scattered:
        is_mask = is_mask[torch.randperm(real + masks, generator=generator)]
    x = torch.randn(real + masks, 24, generator=generator)
    both = torch.randn(2, 24, 10, generator=generator)
    expected = torch.where(is_mask[:, None], x @ both[1], x @ both[0])
    # Every second row of a larger tensor: the output of attention is not always contiguous.
    wide = torch.stack([x, x], 1)[:, 0]
    for rows in (x, wide):
        found = Halves(is_mask, masks, in_order=not scattered).product(rows, both)
        assert torch.allclose(found, expected, atol=1e-5)
