import pytest

from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, StaticK
from multitoken.decoding.sampling import Sampling
from multitoken.errors import DataError, UsageError
from multitoken.evaluation import answers
from multitoken.evaluation.graders import Grader, grader_named
from multitoken.evaluation.rows import Combination
from multitoken.evaluation.run import evaluate
from multitoken.evaluation.statistics import Interval
from multitoken.evaluation.tasks import Question, Task
from multitoken.processes import Processes
from tests.unit.evaluation.scripted import ScriptedLM, ScriptedModel

EOS = 2


def make_task(*answers: tuple[str, str], grader: str = "exact", max_new_tokens: int = 20) -> Task:
    questions = tuple(Question(prompt, answer) for prompt, answer in answers)
    return Task("sums", questions, grader_named(grader), max_new_tokens)


TASK = make_task(("a", "3 4 5 2"), ("bb", "6 2"))
ORIGINAL = {("next-token", "a"): [[3], [4], [5], [EOS]], ("next-token", "bb"): [[6], [EOS]]}
ADAPTED = {
    ("next-token", "a"): [[3], [4], [5], [EOS]],
    ("next-token", "bb"): [[7], [EOS]],
    ("exact", "a"): [[3], [4, 5, EOS]],
    ("exact", "bb"): [[7], [EOS]],
    ("confadapt", "a"): [[3, 4], [8, EOS]],
    ("confadapt", "bb"): [[6, EOS]],
}


def test_every_number_of_a_row() -> None:
    """Guards against mistakes that make a measurement wrong: averaging per-prompt rates, counting prefill tokens as
    steps, dropping EOS, grading against the wrong prompt, comparing with the wrong model. The expected values are
    computed by hand."""
    models = {"original": ScriptedModel(ORIGINAL), "adapted": ScriptedModel(ADAPTED, k=8, speed=2.0)}
    policies = {"mild": ConfAdapt(threshold=0.8), "exact 0.5": Exact(threshold=0.5, k=4)}
    original, own, confadapt, exact = evaluate(models, TASK, policies)

    assert (original.model, original.policy, original.label, original.k) == ("original", "next-token", "next-token", 1)
    assert (original.threshold, original.prompts, original.accuracy) == (None, 2, 1.0)
    assert (original.tokens, original.forward_passes, original.seconds) == (6, 6, 6.0)
    assert (original.tokens_per_step, original.tokens_per_second, original.speedup) == (1.0, 1.0, 1.0)
    assert (original.identical_to_original, original.identical_to_own_next_token) == (2, 2)

    assert (own.model, own.policy, own.k, own.accuracy) == ("adapted", "next-token", 1, 0.5)
    assert (own.identical_to_original, own.identical_to_own_next_token, own.speedup) == (1, 2, 2.0)
    assert own.accuracy_change == -0.5

    assert (confadapt.label, confadapt.policy, confadapt.threshold, confadapt.k) == ("mild", "confadapt", 0.8, 8)
    # a: 3 4 | 8 EOS and bb: 6 EOS |. That is 6 tokens, 4 of them in prefills, in 3 passes, 2 of them prefills.
    assert (confadapt.tokens, confadapt.forward_passes, confadapt.tokens_per_step) == (6, 3, 2.0)
    assert (confadapt.seconds, confadapt.tokens_per_second) == (1.5, 4.0)
    assert (confadapt.accuracy, confadapt.identical_to_original, confadapt.identical_to_own_next_token) == (0.5, 1, 0)
    assert confadapt.speedup == 4.0  # seconds per token: a 1.0 / 0.25, bb 1.0 / 0.25

    assert (exact.label, exact.policy, exact.threshold, exact.k) == ("exact 0.5", "exact", 0.5, 4)
    assert (exact.tokens, exact.forward_passes, exact.tokens_per_step) == (6, 4, 2.0)
    assert (exact.identical_to_original, exact.identical_to_own_next_token) == (1, 2)
    assert exact.speedup == 3.0  # a 1.0 / 0.25, bb 1.0 / 0.5: the median of 4 and 2
    assert exact.accuracy_interval == pytest.approx(Interval(0.0945, 0.9055), abs=1e-4)
    assert exact.speedup_interval is None  # two prompts


def test_combinations_take_turns_and_warm_up_once() -> None:
    """The combinations must be interleaved: if one model ran after the other, a machine that slows down would decide
    which is faster. The first, cold answer must not count, and the warm-up must not be a whole answer."""
    order: list[str] = []

    class Noted(ScriptedModel):
        def generate(self, prompt, *, policy, max_new_tokens, adaptive, **sampling):
            order.append(f"{policy.name}:{prompt}:{max_new_tokens}")
            return super().generate(prompt, policy=policy, max_new_tokens=max_new_tokens, adaptive=adaptive)

    progress: list[tuple[int, int]] = []
    rows = evaluate(
        {"original": Noted(ADAPTED, k=8)},
        TASK,
        {"e": Exact()},
        progress=lambda done, all_: progress.append((done, all_)),
    )
    warm_up = ["next-token:a:16", "exact:a:16"]
    assert order == [*warm_up, "next-token:a:20", "exact:a:20", "exact:bb:20", "next-token:bb:20"]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [row.forward_passes for row in rows] == [6, 4]


def test_every_combination_samples_a_question_with_the_same_seed() -> None:
    """Guards against policies that get different noise, so that no outputs could be identical, and against all
    questions sharing the noise of one seed. top_k is given explicitly, because transformers would otherwise sample
    among 50 tokens."""
    models = {"original": ScriptedModel(ORIGINAL), "adapted": ScriptedModel(ADAPTED, k=8)}
    rows = evaluate(models, TASK, {"e": Exact()}, sampling=Sampling(0.8, seed=7, top_p=0.9))
    for model in models.values():
        assert {(call[1], s["seed"]) for call, s in zip(model.calls, model.samplings, strict=True)} == {
            ("a", 7),
            ("bb", 8),
        }
        assert all((s["temperature"], s["top_p"], s["top_k"]) == (0.8, 0.9, 0) for s in model.samplings)
    assert [row.heading for row in rows] == ["sums, 2 prompts, temperature 0.8, top-p 0.9, seed 7"] * 3
    greedy = ScriptedModel(ORIGINAL)
    assert evaluate({"original": greedy}, TASK, {})[0].heading == "sums, 2 prompts"
    assert greedy.samplings == [{}] * 3


def test_ties_are_counted_apart_and_judged_by_the_model_they_are_ties_of() -> None:
    """Guards against a tie counted as identical or as different, and against asking the original's float64 copy about
    a difference between two outputs of the adapted weights."""
    close = [0.0] * 10
    close[4], close[8] = 5.0, 5.00001
    adapted = ScriptedModel({("next-token", "a"): [[3], [4]], ("exact", "a"): [[3, 8]]}, k=8, hf=ScriptedLM(close))
    original = ScriptedModel({("next-token", "a"): [[3], [4]]}, hf=ScriptedLM([0.0] * 4 + [5.0] + [0.0] * 5))
    _, own, exact = evaluate({"original": original, "adapted": adapted}, make_task(("a", "3 4")), {"e": Exact()})
    assert (own.identical_to_original, own.ties) == (1, 0)
    assert (exact.identical_to_own_next_token, exact.own_ties) == (0, 1)
    assert (exact.identical_to_original, exact.ties) == (0, 0)


def test_an_ungraded_task_has_speeds_and_no_accuracy() -> None:
    """Guards against 0% for a task where nothing is right or wrong."""
    row = evaluate({"original": ScriptedModel(ORIGINAL)}, make_task(("a", ""), grader="none"), {})[0]
    assert (row.accuracy, row.accuracy_interval, row.accuracy_change, row.accuracy_change_interval) == (None,) * 4
    assert row.tokens_per_step == 1.0


def test_answers_that_the_grader_does_not_judge_have_no_change() -> None:
    """A user's grader may return None for single answers. The change of accuracy is then over the prompts where both
    answers have a grade."""

    def grade(text: str, expected: str) -> bool | None:
        return None if text == "7 2" else text == expected

    task = Task("sums", TASK.questions, Grader("mine", grade), 20)
    models = {"original": ScriptedModel(ORIGINAL), "adapted": ScriptedModel(ADAPTED, k=8)}
    original, own, confadapt = evaluate(models, task, {"c": ConfAdapt(0.8)})
    assert (original.accuracy, own.accuracy, confadapt.accuracy) == (1.0, 1.0, 0.5)
    assert (own.accuracy_change, own.accuracy_p_value, confadapt.accuracy_change) == (0.0, 1.0, -0.5)


def test_a_model_without_a_mask_token_runs_next_token_only() -> None:
    """Guards against feeding masks to the original, which has no mask token."""
    original = ScriptedModel(ORIGINAL)
    rows = evaluate({"original": original, "adapted": ScriptedModel(ADAPTED, k=8)}, TASK, {"e": Exact()})
    assert [(row.model, row.policy) for row in rows] == [
        ("original", "next-token"),
        ("adapted", "next-token"),
        ("adapted", "exact"),
    ]
    with pytest.raises(UsageError, match="no model here has a mask token, which two needs; adapt one first"):
        evaluate({"original": original}, TASK, {"two": StaticK(2)})


def test_an_answer_that_ends_in_its_prefill_has_no_steps() -> None:
    """Guards against a division by zero where every answer is one token long."""
    row = evaluate({"original": ScriptedModel({("next-token", "a"): [[EOS]]})}, make_task(("a", "2")), {})[0]
    assert (row.tokens_per_step, row.tokens, row.forward_passes) == (0.0, 1, 1)


def test_bad_prompts_are_found_before_anything_runs() -> None:
    """Guards against losing an hour of measurement to a bad prompt 1,400, and against a prompt that silently runs past
    the model's last position."""
    model = ScriptedModel(ORIGINAL, hf=ScriptedLM(positions=22))
    with pytest.raises(DataError, match=r"question 2 of sums, original model: 3 prompt tokens and 20 new ones are 23"):
        evaluate({"original": model}, make_task(("a", "1"), ("ccc", "1")), {})
    with pytest.raises(
        DataError, match="question 2 of sums cannot be read by the original model: a prompt with a zero"
    ):
        evaluate({"original": model}, make_task(("a", "1"), ("\x00", "1")), {})
    with pytest.raises(DataError, match="has no questions"):
        evaluate({"original": model}, make_task(), {})
    assert model.calls == []


def test_models_that_cannot_be_compared_are_refused() -> None:
    """Guards against comparing token ids of two tokenizers, and against an arbitrary choice of the baseline."""

    class Other(ScriptedModel):
        def encode(self, prompt: str) -> list[int]:
            return [1, *super().encode(prompt)]

    with pytest.raises(UsageError, match="question 1 of sums has different token ids in the adapted model"):
        evaluate({"original": ScriptedModel(ORIGINAL), "adapted": Other(ADAPTED, k=8)}, TASK, {})
    with pytest.raises(UsageError, match="expected one of them to be labelled 'original'"):
        evaluate({"a": ScriptedModel(ORIGINAL), "b": ScriptedModel(ADAPTED, k=8)}, TASK, {})


def test_parts_are_one_observation_of_the_clock_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an interval that treats every answer of a part as an independent measurement, and against counting
    a part's time once per answer. There are two parts, of 2 and 1 questions. A part takes as long as its slowest
    answer."""
    monkeypatch.setattr(answers, "_PART", 1)
    task = make_task(("a", "3 4 5 2"), ("bb", "6 2"), ("a", "3 4 5 2"))
    models = {"original": ScriptedModel(ORIGINAL), "adapted": ScriptedModel(ADAPTED, k=8, speed=2.0)}
    original, _, exact = evaluate(models, task, {"e": Exact()}, batch_size=2)
    assert (original.batch_size, original.seconds, original.tokens_per_second) == (2, 8.0, 10 / 8)
    # e: the first batch takes 2 passes of half a second each, and so does the second.
    assert (exact.seconds, exact.speedup, exact.speedup_interval) == (2.0, 4.0, None)
    assert exact.heading == "sums, 3 prompts, batches of 2"
    with pytest.raises(UsageError, match="batch_size is 0"):
        evaluate(models, task, {}, batch_size=0)


def test_few_questions_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against one process that answers all questions in one part while the other processes wait."""
    names = ("a", "bb", "ccc", "dddd", "eeeee")
    task = make_task(*((name, "3") for name in names))
    asked: list[list[str]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        model = ScriptedModel({("next-token", name): [[3]] for name in names})
        monkeypatch.setenv("RANK", str(rank))
        run = answers.Run(Combination("original", "next-token", "next-token", None, 1), model, NextToken())
        monkeypatch.setattr(
            Processes, "gather", lambda self, found, run=run: [{(run.what, i): None for i in range(5)}, found]
        )
        answers.answer_all([run], task, batch_size=4)
        asked.append([prompt for _, prompt, most in model.calls if most == task.max_new_tokens])
    assert asked == [["a", "bb", "ccc"], ["dddd", "eeeee"]]


def test_answers_without_a_grader_have_a_perplexity_under_the_original() -> None:
    """Guards against the adapted model judging itself. The original gives token 3 a probability of one half, and 4 and
    EOS one quarter each."""
    logits = [-1e9] * 10
    logits[3], logits[4], logits[2] = 2.0, 2.0 - 0.6931471805599453, 2.0 - 0.6931471805599453
    original = ScriptedModel({("next-token", "a"): [[3], [EOS]]}, hf=ScriptedLM(logits))
    adapted = ScriptedModel({("next-token", "a"): [[3], [EOS]], ("exact", "a"): [[4, EOS]]}, k=8)
    first, _, exact = evaluate(
        {"original": original, "adapted": adapted}, make_task(("a", ""), grader="none"), {"e": Exact()}
    )
    assert first.perplexity == pytest.approx(8**0.5)
    assert exact.perplexity == pytest.approx(4.0)
    assert evaluate({"original": original}, make_task(("a", "3")), {})[0].perplexity is None
