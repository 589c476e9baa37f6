"""Calibration on models whose true losses are known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.calibration_promise import RIGHT, TRUE_LOSS, FakeModel, once, simulate
from multitoken.commands.calibrate import _verdict
from multitoken.decoding.policies import ConfAdapt, Exact, as_options
from multitoken.errors import DataError, UsageError
from multitoken.evaluation.calibration import Allowed, Calibration, calibrate, candidates_of, usual_prompts
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.journal import Journal
from multitoken.evaluation.tasks import Question, Task


@pytest.mark.slow
def test_the_promise_holds() -> None:
    """Guards against a promise that rests on the prompts of the search itself: of many candidates, some look good by
    chance."""
    said = simulate("different", 1500, range(25))
    assert said["broken"] == 0
    assert said["chosen"].get("none", 0) < 10  # the promise must not be kept by never making one


def test_gains_and_losses_of_accuracy() -> None:
    found = once("drop", 3000, seed=1)
    assert found.chosen is not None and TRUE_LOSS[float(found.chosen.label)] * 0.9 <= 0.01
    assert found.chosen.at_most is not None and found.chosen.at_most <= 0.01


def test_too_few_prompts_are_told() -> None:
    """Guards against a promise from 200 prompts (the confirming half), and against not saying how many are needed."""
    found = once("different", 400, seed=0)
    assert found.chosen is None
    failed = next(c for c in found.candidates if c.confirmed_loss is not None)
    assert failed.promised is False and failed.needed is not None and failed.needed >= 598


def test_too_few_prompts_and_too_much_loss_are_told_apart() -> None:
    """If every candidate loses too much on the searching half, none is tested. Guards against a verdict without a reason, and
    against asking for more prompts where they do not help."""
    task = Task("few", tuple(Question(str(i), str(RIGHT)) for i in range(40)), grader_named("exact"), 4)
    bad = {"bad": ConfAdapt(0.3), "worse": ConfAdapt(0.5)}

    def verdict(allowed: float, every: int) -> str:
        found = calibrate({"adapted": Losing(every)}, task, bad, Allowed("different", allowed), batch_size=5)
        assert found.chosen is None and all(c.confirmed_loss is None for c in found.candidates)
        return _verdict(found)

    assert "lost more than 10.00%" in verdict(0.1, 1) and "Allow a larger loss" in verdict(0.1, 1)
    assert "at least 118 prompts, even if no answer loses" in verdict(0.05, 10)
    assert "Allow a larger loss" in verdict(0.2, 3), "40 prompts could have promised 20%"


class Losing(FakeModel):
    """Every so many answers of its policies differ from the original's; the seed says how many."""

    def generate(self, prompt, *, policy, **options):
        if isinstance(prompt, list):
            return [self.generate(each, policy=policy) for each in prompt]
        found = super().generate(prompt, policy=SimpleNamespace(name="next-token", threshold=0.9))
        return found if policy.name == "next-token" or int(prompt) % self.seed else replace(found, token_ids=(4, 2))


def test_a_lead_within_the_noise_is_told() -> None:
    """Guards against storing the faster of two policies as if a few prompts could tell which one is faster."""

    def chosen(prompts: int) -> Calibration:
        task = Task("few", tuple(Question(str(i), str(RIGHT)) for i in range(prompts)), grader_named("none"), 4)
        return calibrate({"adapted": FakeModel(0)}, task, {"a": ConfAdapt(0.9), "b": ConfAdapt(0.3)}, None)

    few, many = chosen(40), chosen(6 * 128)
    assert few.as_fast == "a" and "a may be as fast: on 40 prompts" in _verdict(few)
    assert many.as_fast is None and _verdict(many) == "b: the fastest one here, and no output changes."


def test_the_usual_number_of_prompts_can_promise_the_limit() -> None:
    assert usual_prompts(Allowed("drop", 0.01), 0.95) == 598
    assert usual_prompts(Allowed("different", 0.1), 0.95) == usual_prompts(None, 0.95) == 100


def test_exact_over_untouched_weights_needs_no_test() -> None:
    """A policy that loses nothing by construction needs no test, so it must not be refused because there are too few
    prompts. Compared with the weights of another model, it does need the test."""
    task = Task("few", tuple(Question(str(i), str(RIGHT)) for i in range(20)), grader_named("exact"), 4)

    class WithExact(FakeModel):
        def generate(self, prompt, *, policy, **options):
            if isinstance(prompt, list):
                return [self.generate(each, policy=policy) for each in prompt]
            known = policy if policy.name == "confadapt" else SimpleNamespace(name="next-token", threshold=1.5)
            return super().generate(prompt, policy=known)

    policies = {"exact": Exact(0.5), "fast": ConfAdapt(0.3)}
    found = calibrate({"adapted": WithExact(0)}, task, policies, Allowed("different", 0.01), batch_size=5)
    assert found.chosen is not None and (found.chosen.label, found.chosen.at_most) == ("exact", 0.0)
    apart = calibrate(
        {"original": FakeModel(0), "adapted": WithExact(0)}, task, policies, Allowed("different", 0.01), batch_size=5
    )
    assert apart.chosen is None


def test_progress_reaches_its_total_only_at_the_end() -> None:
    """Guards against a bar that is full while the prompts of the confirming half are still being answered."""
    told: list[tuple[int, int]] = []
    task = Task("many", tuple(Question(str(i), str(RIGHT)) for i in range(60)), grader_named("exact"), 4)
    policies = {"safe": ConfAdapt(0.99), "fast": ConfAdapt(0.3)}
    calibrate(
        {"adapted": FakeModel(0)}, task, policies, Allowed("different", 0.5), progress=lambda *at: told.append(at)
    )
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    confirming = [at for at in told if at[0] > 3 * 30]
    assert confirming and len({total for _, total in confirming}) == 1
    assert confirming[-1][0] == confirming[-1][1]


def test_an_interrupted_calibration_goes_on(tmp_path) -> None:
    """Guards against losing an hour of answers, in either half, and against mixing up the answers of the two halves."""
    task = Task("many", tuple(Question(str(i), str(RIGHT)) for i in range(60)), grader_named("exact"), 4)
    policies = {"safe": ConfAdapt(0.99), "fast": ConfAdapt(0.3)}
    asked: list[str] = []

    class Counting(FakeModel):
        dies_at = 10**9

        def generate(self, prompt, **options):
            if not isinstance(prompt, list):
                asked.append(prompt)
                if len(asked) > self.dies_at:
                    raise KeyboardInterrupt
            return super().generate(prompt, **options)

    def run(model: FakeModel, folder):
        asked.clear()
        journal = Journal(folder, {"x": 1})
        return calibrate({"adapted": model}, task, policies, Allowed("different", 0.5), batch_size=1, journal=journal)

    whole = run(Counting(0), tmp_path / "whole")
    number = len(asked)
    dying = Counting(0)
    dying.dies_at = number - 20  # in the confirming half: the search takes 3 x 30 answers
    with pytest.raises(KeyboardInterrupt):
        run(dying, tmp_path / "cut")
    resumed = run(Counting(0), tmp_path / "cut")
    assert len(asked) < 30
    assert [(c.label, c.loss, c.confirmed_loss, c.promised) for c in resumed.candidates] == [
        (c.label, c.loss, c.confirmed_loss, c.promised) for c in whole.candidates
    ]


def test_without_a_loss_to_allow_the_fastest_wins() -> None:
    task = Task("few", tuple(Question(str(i), str(RIGHT)) for i in range(20)), grader_named("none"), 4)
    found = calibrate({"adapted": FakeModel(0)}, task, {"0.9": ConfAdapt(0.9), "0.3": ConfAdapt(0.3)}, None)
    assert found.chosen is not None and found.chosen.label == "0.3"
    assert as_options(found.chosen.policy) == {"policy": "confadapt", "threshold": 0.3, "k": None}


def test_candidates_try_half_the_places_too() -> None:
    assert candidates_of(8, [Exact])[:2] == [Exact(0.3, k=8), Exact(0.3, k=4)]
    assert all(policy.k == 2 for policy in candidates_of(2, [ConfAdapt]))
    assert candidates_of(8, [ConfAdapt], [0.97]) == [ConfAdapt(0.97, k=8), ConfAdapt(0.97, k=4)]


def test_bad_input_is_refused_before_anything_is_decoded() -> None:
    task = Task("few", (Question("1"),) * 19, grader_named("none"), 4)
    with pytest.raises(DataError, match="few has 19 prompts; calibration needs at least 20"):
        calibrate({"adapted": FakeModel(0)}, task, {}, Allowed("different", 0.1))
    task = Task("more", (Question("1"),) * 20, grader_named("none"), 4)
    with pytest.raises(UsageError, match="needs answers to grade against"):
        calibrate({"adapted": FakeModel(0)}, task, {}, Allowed("drop", 0.1))
    with pytest.raises(UsageError, match="confidence is 1"):
        calibrate({"adapted": FakeModel(0)}, task, {}, None, confidence=1)
    with pytest.raises(UsageError, match=r"the allowed loss is 1\.5"):
        Allowed("drop", 1.5)
