"""Which token becomes the mask token, which id it gets, and what its embedding row holds."""

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from multitoken.errors import ModelError, UnsupportedModelError
from multitoken.models.mask_token import MASK, RESERVED, MaskToken, add_mask_token
from tests.tiny import tiny_gpt2, tiny_llama, tiny_qwen3, tiny_tokenizer

RESERVED_0, RESERVED_1 = "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"


def typed(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padded_row_is_taken_and_nothing_else_moves(tied, dtype):
    """Guards against a resize, or a change to any other row, where a padded row is free."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer, vocab_size=64, tie_word_embeddings=tied, dtype=dtype)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    mask = add_mask_token(model, tokenizer)
    assert mask == MaskToken(60, MASK, "unused row")
    assert "row 60" in mask.describe()
    for name, weight in model.named_parameters():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert not torch.equal(weight[60], before[name][60])
            weight, before[name] = (
                torch.cat([weight[:60], weight[61:]]),
                torch.cat([before[name][:60], before[name][61:]]),
            )
        assert weight.dtype == dtype and torch.equal(weight, before[name])


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3, tiny_gpt2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_matrix_grows_by_one_row(build, tied, dtype):
    """Guards against an output head or config left at the old size, weights untied by the resize, and another dtype."""
    tokenizer = tiny_tokenizer(60)
    model = build(tokenizer, tie_word_embeddings=tied, dtype=dtype)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    mask = add_mask_token(model, tokenizer)
    assert mask == MaskToken(60, MASK, "new row")
    source, target = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert source.shape[0] == target.shape[0] == model.config.vocab_size == 61
    assert (source is target) == tied and source.dtype == target.dtype == dtype
    after = model(torch.cat([ids, torch.tensor([[60]])], 1)).logits
    assert after.shape[-1] == 61
    # With another number of rows, sums may be taken in another order, and bf16 keeps only 8 bits.
    torch.testing.assert_close(after[:, :3, :60], before, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-2)


def test_its_text_becomes_its_id_also_after_a_reload(tmp_path):
    """Guards against a typed "<MTP>" that is split into pieces, so that the decoder could not refuse it."""
    tokenizer = tiny_tokenizer(60)
    mask = add_mask_token(tiny_llama(tokenizer, vocab_size=64), tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert typed(one, "w5 <MTP>w6") == [5, mask.id, 6]
        assert mask.id in one.all_special_ids
        assert one.decode([5, mask.id, 6], skip_special_tokens=True).split() == ["w5", "w6"]
        one.add_tokens(["next"])
        assert one.convert_tokens_to_ids("next") == mask.id + 1, "the user's next token must not take the mask's id"


@pytest.mark.parametrize("rows", [64, 56])
def test_holes_in_the_ids_do_not_collide(rows, tmp_path):
    """Guards against using the id len(tokenizer), which added tokens get: a word may have it if ids have holes."""
    tokenizer = tiny_tokenizer(50, at={"far": 51, "farther": 55})  # 52 tokens: the id 52 is a hole, 51 is a word
    colliding = tiny_tokenizer(50, at={"far": 51})  # 51 tokens: an added token would get the id of "far"
    for one, expected in ((tokenizer, 56), (colliding, 52)):
        model = tiny_llama(one, vocab_size=rows)
        mask = add_mask_token(model, one)
        assert mask.id == expected and mask.origin == ("unused row" if expected < rows else "new row")
        one.save_pretrained(tmp_path)
        for again in (one, AutoTokenizer.from_pretrained(tmp_path)):
            assert typed(again, "far <MTP> w5") == [51, expected, 5]


def test_a_row_that_the_config_names_is_not_free():
    """Guards against taking the row of a pad or EOS token that a config names but the tokenizer does not know."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer, vocab_size=64, pad_token_id=60)
    model.generation_config.eos_token_id = [2, 61]
    assert add_mask_token(model, tokenizer) == MaskToken(62, MASK, "unused row")
    assert typed(tokenizer, "<MTP>") == [62]


def test_the_highest_free_reserved_token_is_taken():
    """Guards against a needless resize. Fine-tunes that use reserved tokens start with the lowest, so the highest is
    taken."""
    tokenizer = tiny_tokenizer(60, extra=[RESERVED_0, RESERVED_1])
    model = tiny_llama(tokenizer)
    mask = add_mask_token(model, tokenizer)
    assert mask == MaskToken(59, RESERVED_1, "reserved token")
    assert model.config.vocab_size == 60 and typed(tokenizer, f"w5 {RESERVED_1}") == [5, 59]
    assert RESERVED_1 in mask.describe()


@pytest.mark.parametrize("use", ["template", "templates", "eos", "role", "text"])
def test_a_reserved_token_in_use_is_not_free(use):
    """Guards against turning a chat marker, a stop token or a token of the training text into the mask."""
    tokenizer = tiny_tokenizer(60, extra=[RESERVED_0, RESERVED_1])
    model = tiny_llama(tokenizer)
    texts = []
    match use:
        case "template":
            tokenizer.chat_template = "{{ '" + RESERVED_1 + "' + messages[0]['content'] }}"
        case "templates":
            tokenizer.chat_template = {"default": "", "tools": RESERVED_1}
        case "eos":
            model.generation_config.eos_token_id = [2, 59]
        case "role":
            tokenizer.add_special_tokens({"sep_token": RESERVED_1})
        case "text":
            texts = ["w5", f"w5 {RESERVED_1} w6"]
    assert add_mask_token(model, tokenizer, texts=iter(texts)).token == RESERVED_0


def test_reserved_names():
    """Guards against taking a trained token (T5 sentinels, byte tokens, chat markers) for a reserved one."""
    free = (
        "<|reserved_special_token_7|> <unused42> [unused7] <|extra_3|> <|placeholder_1|> <|placeholder6|> <|dummy_0|>"
    )
    free += " <SPECIAL_12> [control_8] [UNUSED_TOKEN_141] <|reserved_200017|> <｜place▁holder▁no▁5｜>"
    assert [name for name in free.split() if not RESERVED.fullmatch(name)] == []
    used = "<0x0A> <extra_id_0> <|im_start|> <|endoftext|> [MASK] <s> <|special|> unused7 <unused>"
    assert [name for name in used.split() if RESERVED.fullmatch(name)] == []


def test_a_foreign_mtp_token_keeps_its_meaning():
    """Guards against taking over a token called <MTP> that the base model was trained with."""
    tokenizer = tiny_tokenizer(60, extra=[MASK])
    mask = add_mask_token(tiny_llama(tokenizer, vocab_size=64), tokenizer)
    assert (mask.id, mask.token) == (60, "<MTP_2>") and "<MTP_2>" in mask.describe()
    assert typed(tokenizer, "<MTP> <MTP_2>") == [59, 60]


def test_the_row_has_mean_and_spread_of_the_used_rows():
    """Guards against a row of zeros or of another scale, and against counting padded rows (zeros)."""
    tokenizer = tiny_tokenizer(1000)
    model = tiny_llama(tokenizer, vocab_size=2000, hidden_size=512, tie_word_embeddings=False)
    with torch.no_grad():
        for matrix, offset in ((model.model.embed_tokens.weight, 3.0), (model.lm_head.weight, -1.0)):
            matrix[:1000] += offset
            matrix[1000:] = 0
    mask = add_mask_token(model, tokenizer)
    # 512 draws: the mean is within 4 standard errors (0.3 / 22), the spread within 20%.
    for matrix, offset in ((model.model.embed_tokens.weight, 3.0), (model.lm_head.weight, -1.0)):
        assert matrix[mask.id].mean().item() == pytest.approx(offset, abs=0.06)
        assert matrix[mask.id].std().item() == pytest.approx(0.3, rel=0.2)


def test_the_seed_draws_the_row():
    """Guards against a run that cannot be repeated because the row came from the global generator."""
    rows = []
    for seed in (0, 0, 1):
        tokenizer = tiny_tokenizer(60)
        model = tiny_llama(tokenizer)
        torch.rand(1)
        mask = add_mask_token(model, tokenizer, seed=seed)
        rows.append(model.get_input_embeddings().weight[mask.id].detach())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_a_second_mask_token_is_refused():
    """Guards against a checkpoint adapted twice, with two masks."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer)
    model.config.mtp = {"mask_token_id": 7}
    with pytest.raises(ModelError, match="already has a mask token"):
        add_mask_token(model, tokenizer)


def test_a_model_without_output_embeddings_is_refused():
    """Guards against an AttributeError deep in a resize."""
    model = BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(UnsupportedModelError, match="BertModel has no ordinary input and output embeddings"):
        add_mask_token(model, tiny_tokenizer(60))


def test_matrices_of_unlike_height_are_refused():
    """Guards against a mask id that one matrix has a row for and the other does not."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer, tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(32, 50, bias=False)
    with pytest.raises(UnsupportedModelError, match="60 input rows and 50 output rows"):
        add_mask_token(model, tokenizer)


def test_a_second_table_over_the_vocabulary_is_refused():
    """Guards against an index error at the first mask: only the main table grows."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer)
    model.model.per_layer = torch.nn.Embedding(60, 4)
    with pytest.raises(UnsupportedModelError, match=r"second table over the vocabulary \(model.per_layer\)"):
        add_mask_token(model, tokenizer)
