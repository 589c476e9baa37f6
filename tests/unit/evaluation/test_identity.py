from collections.abc import Sequence

import pytest
import torch

from multitoken.decoding.gumbel import gumbel, noise_key, signed, with_noise
from multitoken.decoding.sampling import Sampling
from multitoken.evaluation.identity import Identity, Judge, compare
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.evaluation.scripted import ScriptedLM


def never(before: Sequence[int], ours: int, reference: int) -> float:
    raise AssertionError("the judge costs a float64 forward pass and must not be asked here")


def test_equal_outputs_are_identical_without_a_judge() -> None:
    """Guards against making a float64 copy of the model for nothing: the common case must be free."""
    assert compare([5, 7, 2], (5, 7, 2), gap=never) is Identity.IDENTICAL
    assert compare([], [], gap=never) is Identity.IDENTICAL


@pytest.mark.parametrize(("ours", "reference"), [([5, 7], [5, 7, 2]), ([5, 7, 2, 2], [5, 7, 2]), ([], [5])])
def test_an_output_that_stops_elsewhere_is_different(ours: list[int], reference: list[int]) -> None:
    """Guards against a plain `zip`, which would call outputs identical if only the end-of-text token is lost."""
    assert compare(ours, reference, gap=never) is Identity.DIFFERENT


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [(0.0, Identity.TIE), (0.99e-4, Identity.TIE), (1e-4, Identity.DIFFERENT), (3.0, Identity.DIFFERENT)],
)
def test_the_first_difference_decides(gap: float, verdict: Identity) -> None:
    """Guards against excusing a gap of 1e-4 or more, judging a later difference, or including our own token in the
    judge's prefix."""
    asked = []

    def judge(before: Sequence[int], ours: int, reference: int) -> float:
        asked.append((list(before), ours, reference))
        return gap

    assert compare([5, 7, 1, 3], [5, 8, 1, 4], gap=judge) is verdict
    assert asked == [([5], 7, 8)]


def test_a_third_token_is_not_excused_by_the_tie_of_two_others() -> None:
    """Guards against calling a wrong token a tie because the two best tokens happened to be close there."""
    gap = Judge(ScriptedLM([1.0, 3.0, 3.00001, 0.0])).after([1])
    assert gap([2], 1, 2) == pytest.approx(1e-5)
    assert gap([2], 3, 2) == pytest.approx(3.00001)


def test_the_mask_token_is_out_of_the_running() -> None:
    """Guards against a mask token with the top logit, which would make every near tie look like a clear difference."""
    model = ScriptedLM([1.0, 3.0, 3.0, 9.0])
    assert Judge(model, mask_token_id=3).after([1])([], 1, 2) == 0.0
    assert Judge(model).after([1])([], 1, 2) == 6.0


def test_a_sampled_tie_is_one_of_the_scores_with_their_noise() -> None:
    """Guards against judging a sampled difference by logits without noise, or with the noise of another position. The
    gap of the token that decoding draws is 0, that of a token outside top-k is infinite, and that of any other token is
    the difference between the sums of score and noise."""
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    judge = Judge(ScriptedLM(logits.tolist()))
    for seed in range(8):
        sampling = Sampling(0.7, seed=seed, top_k=5)
        scores = sampling.processors()(torch.zeros(1, 1, dtype=torch.long), logits[None])
        key = torch.tensor(
            [signed(noise_key(seed, 2, 4))]
        )  # row 2; three prompt tokens and one output token come before it
        drawn = int(with_noise(scores, key))
        gap = judge.after([1, 2, 3], sampling, row=2)
        assert gap([5], drawn, drawn) == 0.0
        sums = scores[0] + gumbel(key, torch.arange(20)[None])[0]
        second = int(sums.topk(2).indices[1])
        assert gap([5], second, drawn) == pytest.approx(float(sums[drawn] - sums[second]))
        assert gap([5], int(logits.argmin()), drawn) == float("inf")


def test_the_judge_reads_prompt_and_common_output_in_float64() -> None:
    """Guards against judging without the prompt, in float32, or by turning the user's own model into float64."""
    model = tiny_llama(tiny_tokenizer(20))
    with torch.inference_mode():
        logits = tiny_llama(tiny_tokenizer(20)).double()(torch.tensor([[4, 5, 6]])).logits[0, -1]
    expected = float(logits.max() - min(logits[7], logits[8]))
    assert Judge(model).after([4, 5])([6], 7, 8) == pytest.approx(expected, abs=1e-12)
    assert model.dtype == torch.float32


def test_the_copy_is_made_late_and_a_question_is_answered_once() -> None:
    """Guards against doubling the memory of runs without a difference, and against repeating a forward pass for each
    policy that has the same difference."""
    judge = Judge(ScriptedLM())
    assert judge._twin is None
    for _ in range(3):
        judge.after([1, 2])([3], 4, 5)
        judge.after([1, 2])([3], 5, 4)
    assert judge._twin.forwards == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("dtype", "top", "below", "beyond"),
    [
        (torch.bfloat16, 13.0, 0.06, 0.0),
        (torch.bfloat16, 13.0, 0.09, 0.09 - 1 / 16),
        (torch.bfloat16, 3.0, 0.03, 0.03 - 1 / 64),
        (torch.float16, 13.0, 0.005, 0.0),
        (torch.float16, 13.0, 0.06, 0.06 - 1 / 128),
        (torch.float32, 13.0, 0.005, 0.005),
    ],
)
def test_a_tie_of_a_16_bit_type_is_one_step_of_it(dtype, top, below, beyond) -> None:
    """Guards against calling every difference of a bf16 run an error, and against excusing one that the type can
    represent."""
    model = ScriptedLM([top, top - below, 0.0]).to(dtype)
    judge = Judge(model)
    judge._twin = ScriptedLM([top, top - below, 0.0])  # the logits in float32
    assert judge.after([1])([], 1, 0) == pytest.approx(beyond, abs=1e-6)


def test_a_deep_model_is_excused_by_what_its_type_errs_by_and_no_more() -> None:
    """The rounding errors of many layers add up to more than one step of the type: a random model of 24 layers was off
    by seven steps."""
    for apart, beyond in ((0.4, 0.0), (0.7, 0.2)):
        judge = Judge(ScriptedLM([4.0, 4.0 - apart, 0.25]).to(torch.bfloat16))
        judge._twin = ScriptedLM([4.0, 4.0 - apart, 0.0])
        assert judge.after([1])([], 1, 0) == pytest.approx(beyond, abs=0.02)


def test_a_16_bit_model_is_judged_in_float32() -> None:
    """float32 needs only twice the memory of the model. The weights keep their rounded values."""
    model = tiny_llama(tiny_tokenizer(20), dtype=torch.bfloat16)
    judge = Judge(model, mask_token_id=20)  # beyond the vocabulary, as the mask id of a gated adapter may be
    judge.after([4, 5])([6], 7, 8)
    assert judge._twin.dtype == torch.float32 and model.dtype == torch.bfloat16
