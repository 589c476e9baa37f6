"""Counts how often a step waits for the device: reading a number from it stops the host until all work is done."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from multitoken.decoding import Decoder, Exact, NextToken
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from tests.parity.families import EOS, MASK, SUPPORTED

BEYOND = 10_000
PROMPTS = [torch.randint(6, 90, (3 + 4 * i,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(4)]


class Waits(TorchDispatchMode):
    """Counts what would make a GPU's host wait: reading numbers (item, bool, int), shapes that depend on numbers, and lists."""

    READ = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.seen: list[str] = []
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda t: self.seen.append("tolist") or tolist(t))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        if name.startswith(self.READ) or any(i is not None and i.dtype == torch.bool for i in indices):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def decoder_of(kind: str) -> Decoder:
    model = SUPPORTED["llama"]().requires_grad_(False)
    if kind == "full":
        return Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS])
    adapter = GatedAdapter(model, mask_id=BEYOND, rank=16 if kind == "merged" else 4, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach_for_decoding(model)
    assert (kind == "merged") == any("weights_by_kind" in name for name, _ in model.named_buffers())
    return Decoder(model, mask_id=BEYOND, trained_k=6, eos_ids=[EOS])


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("policy", [NextToken(), Exact(0.0), Exact(0.4)])
@pytest.mark.parametrize("kind", ["full", "gated", "merged"])
def test_a_step_waits_once(kind: str, policy, rows: int, monkeypatch) -> None:
    """Guards against a bug: the gate asked the device four times per step where the masks are, although the host itself had put
    them there."""
    engine = decoder_of(kind).engine()
    for prompt in PROMPTS[:rows]:
        engine.add(Decoder.request(decoder_of(kind), prompt, policy=policy, max_new_tokens=30))
    engine.step()  # attention rules and the cache are made once, in the first step
    waits = Waits(monkeypatch)
    steps = 0
    with waits:
        while engine.busy and steps < 8:
            engine.step()
            steps += 1
    assert steps > 3 and waits.seen == ["tolist"] * steps


def test_masks_are_where_the_host_says_or_where_they_are_found() -> None:
    """Both ways must give the same result, for any number of masks at the end of a row."""
    model = decoder_of("gated").model
    ids = torch.randint(6, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    for row, masks in enumerate((3, 0, 5)):
        ids[row, 9 - masks :] = BEYOND
    found = model(input_ids=ids, use_cache=False).logits
    with model._mtp_gate.expecting([3, 0, 5]):
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, found)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, found), "and what was said is forgotten"
