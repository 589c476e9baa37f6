"""Decoding equals transformers' greedy `generate`, a row in a batch equals the row alone, and a seed fixes the text."""

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from multitoken.decoding import ConfAdapt, Decoder, DecodingError, Exact, NextToken, Sampling, StaticK
from tests.parity.families import EOS, MASK, SUPPORTED

PROMPTS = [torch.randint(6, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 11)]
NEW = 24
HOT = Sampling(8.0, seed=7)  # a high temperature, because the random models are very confident


def decoded(decoder, prompts, policy, **options):
    rows = {i: [] for i in range(len(prompts))}
    for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=NEW, **options):
        assert len(chunk.token_ids) == len(chunk.confidences) > 0
        rows[chunk.row] += chunk.token_ids
    return list(rows.values())


def greedy(model, prompt, **options):
    """Transformers' own answer. The mask token's logit is suppressed, as in our decoding."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=NEW, suppress_tokens=[MASK], **options,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", SUPPORTED)
def test_next_token_and_exact_equal_generate(family: str) -> None:
    """Exact must change no token. Threshold 0 drafts everything, and most drafts are wrong. Threshold 0.2 drafts some tokens."""
    model = SUPPORTED[family]().double()  # in float32, ties could not be told from errors
    decoder = Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS])
    reference = [greedy(model, prompt) for prompt in PROMPTS]
    for policy in (NextToken(), Exact(0.0), Exact(0.2, 3), Exact(1.0)):
        assert decoded(decoder, PROMPTS, policy) == reference, policy


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("policy", [ConfAdapt(0.15), StaticK(3), Exact(0.0)], ids=str)
def test_a_row_in_a_batch_equals_the_row_alone(family: str, policy) -> None:
    """Rows of different lengths, which accept different numbers of tokens, share a forward pass. Padding and cache slots must
    not mix them."""
    decoder = Decoder(SUPPORTED[family]().double(), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    alone = [decoded(decoder, [prompt], policy)[0] for prompt in PROMPTS]
    assert decoded(decoder, PROMPTS, policy) == alone


def slow_confadapt(model, prompt, threshold: float, k: int):
    """ConfAdapt without a cache. Each step is one plain forward pass over [everything so far | masks]."""
    ids, chunks = list(prompt), []
    while (left := NEW - (len(ids) - len(prompt))) > 0:
        masks = min(k, left) - 1
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + [MASK] * masks]), use_cache=False).logits[0, -masks - 1 :]
        logits[:, MASK] = -torch.inf
        sure, tokens = logits.softmax(-1).max(-1)
        n = 1
        if sure[0] >= threshold:
            while n <= masks and sure[n] >= threshold:
                n += 1
        chunk = tokens[:n].tolist()
        if EOS in chunk:
            chunks.append(chunk[: chunk.index(EOS) + 1])
            return chunks
        chunks.append(chunk)
        ids += chunk
    return chunks


@pytest.mark.parametrize("family", SUPPORTED)
def test_confadapt_equals_the_slow_reference_chunk_by_chunk(family: str) -> None:
    """The cache must hold entries of real tokens only. A mask's entry that is left in it would change later chunks."""
    model = SUPPORTED[family]().double()
    decoder = Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS])
    sizes = set()
    for prompt in PROMPTS:
        chunks = [list(c.token_ids) for c in decoder.decode([prompt], policy=ConfAdapt(0.15), max_new_tokens=NEW)]
        assert chunks == slow_confadapt(model, prompt, 0.15, 6)
        sizes |= set(map(len, chunks))
    assert len(sizes) > 1, "the threshold should let some chunks be longer than others"


def test_the_same_seed_gives_the_same_text_under_every_exact_policy_and_batch() -> None:
    """Noise belongs to a position: a draft and its confirmation must draw with the same noise."""
    decoder = Decoder(SUPPORTED["llama"]().double(), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    plain = decoded(decoder, PROMPTS, NextToken(), sampling=HOT)
    assert decoded(decoder, PROMPTS, Exact(0.0), sampling=HOT) == plain
    assert [decoded(decoder, [p], Exact(0.0), sampling=HOT, first_row=i)[0] if i == 0 else plain[i]
            for i, p in enumerate(PROMPTS)] == plain  # fmt: skip
    assert decoded(decoder, PROMPTS, NextToken(), sampling=Sampling(8.0, seed=8)) != plain


def test_processors_see_the_prefix_that_plain_decoding_shows_them() -> None:
    """A repetition penalty over a drafted block must count the drafts before each position."""
    model = SUPPORTED["qwen3"]().double()
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5)])
    decoder = Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS], processors=processors)
    reference = [greedy(model, prompt, repetition_penalty=1.5) for prompt in PROMPTS]
    assert decoded(decoder, PROMPTS, NextToken()) == reference
    assert decoded(decoder, PROMPTS, Exact(0.0)) == reference


def test_max_new_tokens_is_exact() -> None:
    """No policy may stop early or overshoot (the released decoder of the paper stops up to k - 1 tokens early)."""
    decoder = Decoder(SUPPORTED["llama"](), mask_id=MASK, trained_k=6, eos_ids=[])
    for policy in (NextToken(), StaticK(4), ConfAdapt(0.0), Exact(0.0)):
        for budget in (1, 2, 5, 7):
            chunks = list(decoder.decode([PROMPTS[0]], policy=policy, max_new_tokens=budget))
            assert sum(len(c.token_ids) for c in chunks) == budget


def test_decodes_up_to_the_models_last_position() -> None:
    """GPT-2 has a table of learned positions, and crashes at a position past its end."""
    decoder = Decoder(SUPPORTED["gpt2"](), mask_id=MASK, trained_k=6, eos_ids=[])
    for policy in (NextToken(), StaticK(4), Exact(0.0)):
        chunks = list(decoder.decode([[7] * 100], policy=policy, max_new_tokens=28))
        assert sum(len(c.token_ids) for c in chunks) == 28


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "prompt 0 is empty"),
        ([], {}, "there is no prompt"),
        ([[7, MASK]], {}, "contains the mask token"),
        ([[7, 96]], {}, "token id 96; the model knows 0 to 95"),
        ([[7] * 120], {}, "120 tokens and max_new_tokens is 24, together more than the model's 128 positions"),
        ([[7]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[7]], {"policy": StaticK(7)}, "k is 7, but this model was trained for k up to 6"),
    ],
)
def test_bad_requests_are_refused_before_any_work(prompts, options, message: str) -> None:
    """`decode` is lazy, but its checks must not be: the call itself must raise the error."""
    decoder = Decoder(SUPPORTED["llama"](), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    with pytest.raises(DecodingError, match=message):
        decoder.decode(prompts, **{"policy": NextToken(), "max_new_tokens": NEW, **options})


def test_logits_that_are_not_numbers_are_an_error() -> None:
    """The argmax of NaN is a token like any other, so broken weights would write nonsense that looks fluent."""
    model = SUPPORTED["llama"]()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    decoder = Decoder(model, mask_id=MASK, trained_k=6, eos_ids=[EOS])
    with pytest.raises(DecodingError, match="not numbers"):
        list(decoder.decode([PROMPTS[0]], policy=NextToken(), max_new_tokens=2))
