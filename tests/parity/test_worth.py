"""Drafts stay as good as in training: what a model predicts at masks is the same while it trains, after saving and loading, and
after an export that is used without multitoken.

Exact confirms every token with the original model, so its output is right whatever the masks predict. A mask vector with a wrong
scale costs all speed, and no test of the output notices it.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from multitoken.checkpoints.export import export
from multitoken.config import make_config
from multitoken.decoding.exported import decoder_of
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gate import GatedAdapter
from multitoken.models.loading import load_causal_lm
from multitoken.models.mtp_config import MtpConfig
from multitoken.training.methods import prepare
from tests.parity.families import EMBEDDING_SCALED, SUPPORTED
from tests.tiny import tiny_tokenizer

FAMILIES = SUPPORTED | EMBEDDING_SCALED


def at_masks(model, mask_id: int) -> torch.Tensor:
    ids = torch.tensor([[7, 8, 9, mask_id, mask_id, mask_id]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -3:, :90].float()


def trained(method: str, family: str, folder: Path) -> tuple[torch.Tensor, int]:
    """Save a model of the family as if it had been trained. Returns its logits at masks before that, and the mask's id."""
    tokenizer = tiny_tokenizer(90)
    FAMILIES[family]().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    loaded = load_causal_lm(folder / "base")
    options = {"model": folder / "base", "data": "x", "output": folder / "adapted", "method": method, "head_rank": 0}
    way = prepare(loaded, make_config(**options, rank=4), [])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in way.trained.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    before = at_masks(way.passes.student.model, way.mask.id)
    mtp = MtpConfig(
        k=4, mask_token_id=way.mask.id, mask_token=way.mask.token, method=method, base_name="base",
        base_hash=loaded.weight_hash,
    )  # fmt: skip
    way.save(mtp, {}, {})
    return before, way.mask.id


@pytest.mark.parametrize("method", ["gated", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_say_the_same_after_saving_loading_and_export(method: str, family: str, tmp_path) -> None:
    """Gemma scales the rows of its embedding by the square root of the hidden size. A vector that was inserted after the
    scaling is scaled once more when it is read as a row."""
    before, mask_id = trained(method, family, tmp_path)
    loaded = load_causal_lm(tmp_path / "adapted").model
    assert torch.allclose(at_masks(loaded, mask_id), before, atol=2e-3)
    export(tmp_path / "adapted", tmp_path / "exported")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    decoder_of(alone)  # what the exported custom_generate does first
    assert torch.allclose(at_masks(alone, mask_id), before, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_vector_is_a_row_of_the_embedding(family: str) -> None:
    """If its vector is the row of a real token, and the updates are zero, the mask must act as that token."""
    model = FAMILIES[family]()
    plain = model(input_ids=torch.tensor([[7, 8, 11]]), use_cache=False).logits
    adapter = GatedAdapter(model, mask_id=90, rank=1, layers=[])
    adapter.mask_vector.data.copy_(model.get_input_embeddings().weight[11])
    adapter.attach(model)
    assert torch.allclose(model(input_ids=torch.tensor([[7, 8, 90]]), use_cache=False).logits, plain, atol=1e-5)


def test_an_embedding_that_does_more_is_refused() -> None:
    """In a family that changes its rows in another way, the vector would mean something else."""
    model = SUPPORTED["llama"]()
    embedding = model.get_input_embeddings()
    embedding.forward = lambda ids: torch.nn.functional.embedding(ids, embedding.weight).tanh()
    with pytest.raises(DecodingError, match="does more to its rows than scale them"):
        GatedAdapter(model, mask_id=90, rank=1, layers=[])
