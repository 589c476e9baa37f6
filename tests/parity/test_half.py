"""Decoding in bf16 and fp16: Exact's text is that of next-token decoding except at ties, and a run with fixed widths repeats
bit for bit."""

import copy

import pytest
import torch

import multitoken as mt
from multitoken.decoding import ConfAdapt, Decoder, Exact, NextToken, Sampling
from multitoken.evaluation.identity import Identity, Judge, compare
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint
from tests.parity.families import EOS, MASK, SUPPORTED

PROMPTS = [torch.randint(6, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 11, 30)]


def model_in(family: str, dtype: torch.dtype):
    model = SUPPORTED[family]()
    for parameter in model.parameters():  # not model.to: from_pretrained does not convert rotary frequencies
        parameter.data = parameter.data.to(dtype)
    return model


def decoded(decoder: Decoder, policy, sampling=None) -> list[list[tuple]]:
    rows: list[list[tuple]] = [[] for _ in PROMPTS]
    for chunk in decoder.decode(PROMPTS, policy=policy, max_new_tokens=40, sampling=sampling):
        rows[chunk.row].append((chunk.token_ids, chunk.confidences))
    return rows


def ids(row) -> list[int]:
    return [token for tokens, _ in row for token in tokens]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3, sliding and full", "qwen3 mixture of experts"])
def test_exact_parts_from_next_token_decoding_by_rounding_alone(family: str, dtype: torch.dtype) -> None:
    """In these types, a pass of one token and a pass of several round differently. Random weights round badly, by many steps of
    the type. Where two texts begin to differ, the logits of their tokens must be within twice that error. Otherwise
    something else is wrong."""
    decoder = Decoder(model_in(family, dtype), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    finer = copy.deepcopy(decoder.model).float()
    plain = [ids(row) for row in decoded(decoder, NextToken())]
    exact = [ids(row) for row in decoded(decoder, Exact(0.0))]
    for ours, theirs, prompt in zip(exact, plain, PROMPTS, strict=True):
        if ours == theirs:
            continue
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        before = torch.tensor([[*prompt, *theirs[:place]]])
        with torch.no_grad():
            exactly, rounded = (m(before, use_cache=False).logits[0, -1, :MASK].float() for m in (finer, decoder.model))
        gap = exactly.max() - torch.minimum(exactly[ours[place]], exactly[theirs[place]])
        assert gap <= 2 * (rounded - exactly).abs().max()
    assert sum(ours == theirs for ours, theirs in zip(exact, plain, strict=True)) >= 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_trained_model_parts_at_ties_only(dtype: str) -> None:
    """If texts of a trained model differ by more than ties, either the definition of a tie is too weak or decoding is wrong."""
    base, gated = (mt.load(checkpoint(name), dtype=dtype) for name in ("base", "gated"))
    judge = Judge(base.hf, gated.mtp.mask_token_id)
    for task in ("word-problems", "letters"):
        for example in examples(task, "test", 2):
            plain = base.generate(example.prompt, policy=NextToken(), max_new_tokens=48).token_ids
            exact = gated.generate(example.prompt, policy=Exact(0.5), max_new_tokens=48, adaptive=False)
            assert len(exact.chunks) < len(plain)
            found = compare(exact.token_ids, plain, gap=judge.after(base.encode(example.prompt)))
            assert found is not Identity.DIFFERENT


@pytest.mark.parametrize("policy", [Exact(0.0), Exact(0.3), ConfAdapt(0.2)])
@pytest.mark.parametrize("sampling", [None, Sampling(2.0, seed=3)])
def test_fixed_widths_repeat_bit_for_bit(policy, sampling) -> None:
    """With adaptive=False, a step's width depends on the text alone. The same call must give the same bits, confidences
    included."""
    decoder = Decoder(model_in("llama", torch.bfloat16), mask_id=MASK, trained_k=6, eos_ids=[EOS])
    assert decoded(decoder, policy, sampling) == decoded(decoder, policy, sampling)
