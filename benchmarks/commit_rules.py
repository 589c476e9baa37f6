"""Which rule should decide how many tokens of a block are final? `python -m benchmarks.commit_rules` (about 15 minutes on one core).

Each rule gives every token of a block a score. The longest prefix whose scores reach a threshold is emitted and never confirmed, as under
ConfAdapt. Every rule decodes the same prompts at several thresholds. Counted are the answers that are word for word the original's, and the
tokens per step. A rule is better if it writes more tokens per step at the same share of identical answers.

    per token      the probability of the token (ConfAdapt, arXiv 2602.06019, 3.3)
    product        the product of the probabilities so far
    margin         the lead over the second likeliest token
    entropy        exp(-entropy) of the distribution
    temperature    the probability after scaling by the temperature that fits other prompts best
    by place       the probability, with a separate threshold for each position in the block. The thresholds are fitted on other prompts, so
                   that the tokens above them are right equally often at each position

The draft head is left out, because its corrected confidences are probabilities alone and some rules need more. `--policy exact` compares the
rules as drafting rules instead, where no output changes. `--with-head` keeps the head and compares rules that need only its probabilities:

    per token, product      as above
    stricter behind         the probability, with a threshold that is 0.1 lower at the first three positions and 0.1 higher after the eighth
    most tokens             the number of drafts that promises most tokens: those that hold, and t / (1 - t) more if all hold, at threshold t

The last line is JSON.
"""

import argparse
import itertools
import json
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, Exact, NextToken, step
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
IDENTICAL = (0.9, 0.95, 0.99)  # shares of identical answers at which rules are compared
PLACES_OF_A_PROMPT = 16


Front = Callable[[Sequence[float], float], int]


@dataclass(frozen=True)
class Rule:
    """score: from logits [..., V], the score [...] of the top token. front: from scores and a threshold, how many tokens at the front
    suffice. tests_anchor: whether the anchor's token must suffice too. It need not if the thresholds are fitted at masks, because
    the anchor's token is the model's own."""

    name: str
    score: Callable[[Tensor], Tensor]
    front: Front
    tests_anchor: bool = True


def probability(logits: Tensor) -> Tensor:
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


def margin(logits: Tensor) -> Tensor:
    first, second = logits.softmax(-1).topk(2, -1).values.unbind(-1)
    return first - second


def certainty(logits: Tensor) -> Tensor:
    """exp(-entropy): 1 where one token has all the probability."""
    logs = logits.log_softmax(-1)
    return (logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(-1).exp()


def leading(flags: Iterable[bool]) -> int:
    return sum(1 for _ in itertools.takewhile(bool, flags))


def each(scores: Sequence[float], threshold: float) -> int:
    """How many tokens at the front reach the threshold."""
    return leading(score >= threshold for score in scores)


def product(scores: Sequence[float], threshold: float) -> int:
    """How many tokens at the front have a product that reaches the threshold."""
    return each(list(itertools.accumulate(scores, operator.mul)), threshold)


def by_place(thresholds: Callable[[float], Sequence[float]]) -> Front:
    """How many tokens at the front reach the threshold of their own position. thresholds: maps the rule's threshold to those of the
    positions 1, 2, ... in the block."""

    def front(scores: Sequence[float], threshold: float) -> int:
        return leading(score >= limit for score, limit in zip(scores, thresholds(threshold), strict=False))

    return front


def most_tokens(scores: Sequence[float], threshold: float) -> int:
    """The length of the front that promises most tokens. A block that holds as a whole counts as t / (1 - t) tokens more, so a single
    score pays if it is above t."""
    block = threshold / (1.0 - threshold)
    best, most, so_far, tokens = 0, block, 1.0, 0.0
    for i, score in enumerate(scores, 1):
        so_far *= score
        tokens += so_far
        if tokens + so_far * block > most:
            best, most = i, tokens + so_far * block
    return best


@dataclass(frozen=True)
class Committing(ConfAdapt):
    """ConfAdapt with another rule."""

    rule: Rule | None = None

    def kept(self, confidences: Sequence[float]) -> int:
        assert self.rule is not None
        if not self.rule.tests_anchor:
            return 1 + self.rule.front(confidences[1:], self.threshold)
        return max(1, self.rule.front(confidences, self.threshold))


@dataclass(frozen=True)
class Drafting(Exact):
    """Exact with another rule."""

    rule: Rule | None = None

    def kept(self, confidences: Sequence[float]) -> int:
        assert self.rule is not None
        return 1 + self.rule.front(confidences[1:], self.threshold)


@torch.inference_mode()
def observed(model: Model, prompts: list[list[int]], answers: list[tuple]) -> tuple[Tensor, Tensor]:
    """Logits [N, k - 1, V] at the masks after prefixes of the model's own answers, and the answers' tokens [N, k - 1] there."""
    assert model.mtp is not None
    k, mask = model.mtp.k, model.mtp.mask_token_id
    logits, tokens = [], []
    for prompt, (ids, *_) in zip(
        track(prompts, description="masks after answers", console=Console(stderr=True)), answers, strict=True
    ):
        last = len(ids) - k
        for at in range(0, last, max(1, last // PLACES_OF_A_PROMPT)):
            row = torch.tensor([[*prompt, *ids[:at], *[mask] * (k - 1)]])
            found = model.hf(input_ids=row, use_cache=False).logits[0, -(k - 1) :].float()
            found[:, mask] = -torch.inf
            logits.append(found)
            tokens.append(torch.tensor(ids[at + 1 : at + k]))
    return torch.stack(logits), torch.stack(tokens)


def best_temperature(logits: Tensor, tokens: Tensor) -> float:
    """The temperature from 0.5 to 3 that makes the tokens likeliest."""

    def loss(temperature: float) -> float:
        return torch.nn.functional.cross_entropy((logits / temperature).flatten(0, 1), tokens.flatten()).item()

    return min((0.05 * i for i in range(10, 61)), key=loss)


def place_thresholds(logits: Tensor, tokens: Tensor) -> Callable[[float], Sequence[float]]:
    """For each position in the block, the smallest threshold above which a token is right with at least a given frequency."""
    scores, right = probability(logits), (logits.argmax(-1) == tokens).double()
    order = scores.argsort(0, descending=True)
    frequency = right.gather(0, order).cumsum(0) / torch.arange(1, len(right) + 1)[:, None]
    ranked = scores.gather(0, order)

    def thresholds(target: float) -> Sequence[float]:
        limits = []
        for place in range(ranked.shape[1]):
            enough = (frequency[:, place] >= target).nonzero()[:, 0]
            limits.append(float(ranked[enough[-1], place]) if len(enough) else float("inf"))
        return limits

    return thresholds


def rules_of(logits: Tensor, tokens: Tensor) -> list[Rule]:
    temperature = best_temperature(logits, tokens)
    return [
        Rule("per token", probability, each),
        Rule("product", probability, product),
        Rule("margin", margin, each),
        Rule("entropy", certainty, each),
        Rule(f"temperature {temperature:.2f}", lambda x: probability(x / temperature), each),
        Rule("by place", probability, by_place(place_thresholds(logits, tokens)), tests_anchor=False),
    ]


def rules_with_head(places: int) -> list[Rule]:
    def stricter(threshold: float) -> Sequence[float]:
        return [threshold + (-0.1 if place < 3 else 0.0 if place < 8 else 0.1) for place in range(places)]

    return [
        Rule("per token", probability, each),
        Rule("product", probability, product),
        Rule("stricter behind", probability, by_place(stricter)),
        Rule("most tokens", probability, most_tokens),
    ]


def measure(
    model: Model, rules: list[Rule], prompts: list[list[int]], plain: list[tuple], a: argparse.Namespace, new: int
) -> Iterator[dict[str, Any]]:
    kind = Drafting if a.policy == "exact" else Committing
    for rule in rules:

        def likeliest(logits: Tensor, rule: Rule = rule) -> tuple[Tensor, Tensor]:
            return logits.argmax(-1), rule.score(logits)

        with patch.object(step, "top_and_confidence", likeliest):
            for threshold in a.thresholds:
                assert model.mtp is not None
                policy = kind(threshold, k=model.mtp.k, rule=rule)
                ours = answer_all(model, prompts, policy, a.batch, new, f"{rule.name} {threshold}")
                same = sum(mine[0] == theirs[0] for mine, theirs in zip(ours, plain, strict=True))
                yield {
                    "rule": rule.name,
                    "threshold": threshold,
                    "identical": same / len(prompts),
                    "tokens_per_step": tokens_per_step(ours),
                }


def speed_at(points: list[dict[str, Any]], identical: float) -> float | None:
    """Tokens per step at which this share of the answers is identical, interpolated linearly between the two nearest thresholds."""
    line = sorted(points, key=lambda p: p["identical"])
    for low, high in itertools.pairwise(line):
        if low["identical"] <= identical <= high["identical"] and high["identical"] > low["identical"]:
            weight = (identical - low["identical"]) / (high["identical"] - low["identical"])
            return low["tokens_per_step"] + weight * (high["tokens_per_step"] - low["tokens_per_step"])
    return max((p["tokens_per_step"] for p in line if p["identical"] >= identical), default=None)


def show(results: list[dict[str, Any]], policy: str) -> None:
    """Print a table that compares the rules."""
    rules = list(dict.fromkeys(point["rule"] for point in results))
    if policy == "exact":
        print("\n| rule | best threshold | tokens per step |\n|---|---|---|")
        for rule in rules:
            best = max((p for p in results if p["rule"] == rule), key=lambda p: p["tokens_per_step"])
            print(f"| {rule} | {best['threshold']:g} | {best['tokens_per_step']:.2f} |")
        return
    heads = " | ".join(f"at {share:.0%} identical" for share in IDENTICAL)
    print(f"\n| rule: tokens per step | {heads} |\n|---|{'---|' * len(IDENTICAL)}")
    for rule in rules:
        speeds = [speed_at([p for p in results if p["rule"] == rule], share) for share in IDENTICAL]
        print(f"| {rule} | {' | '.join('not reached' if s is None else f'{s:.2f}' for s in speeds)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--task", default="word-problems")
    parser.add_argument("--policy", choices=("confadapt", "exact"), default="confadapt")
    parser.add_argument(
        "--with-head", action="store_true", help="rules for the draft head's probabilities (needs --policy exact)"
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument(
        "--fitted-on", type=int, default=60, help="number of other prompts, to fit the temperature and thresholds"
    )
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    a = parser.parse_args()
    if a.with_head and a.policy != "exact":
        parser.error("--with-head compares drafting rules: add --policy exact")
    model = Model.load(a.model, dtype="float32")
    mtp = model.mtp
    if mtp is None:
        parser.error(f"{a.model} is not adapted: it has no blocks to commit")
    if not a.with_head:
        model = Model(model.hf, model.tokenizer, mtp, model.name)  # without its draft head
    task = embedded_task(a.task, a.prompts)
    prompts = [model.encode(question.prompt) for question in task.questions]
    plain = answer_all(model, prompts, NextToken(), a.batch, task.max_new_tokens, "next token")
    if a.with_head:
        rules = rules_with_head(mtp.k - 1)
    else:
        others = [model.encode(q.prompt) for q in embedded_task(a.task, a.fitted_on, split="valid").questions]
        fitted = answer_all(model, others, NextToken(), a.batch, task.max_new_tokens, "next token, other prompts")
        rules = rules_of(*observed(model, others, fitted))
    results = []
    for point in measure(model, rules, prompts, plain, a, task.max_new_tokens):
        results.append(point)
        print(json.dumps(point), file=sys.stderr, flush=True)  # so that an interrupted run shows its results
    show(results, a.policy)
    print(json.dumps({"results": results, "task": a.task, "prompts": a.prompts, "policy": a.policy, **provenance()}))


if __name__ == "__main__":
    main()
