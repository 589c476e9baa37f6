"""The embedded checkpoints on fresh word problems: what is gained, what is lost, and the measured speed.

    python -m benchmarks.word_problems                       the gated adapter (about ten minutes on 2 cores)
    python -m benchmarks.word_problems --full                the full adaptation
    python -m benchmarks.word_problems --model DIR --prompts 300 --policy exact:0.5 --pairs 0
    python -m benchmarks.word_problems --prompts 0           the speed alone
    python -m benchmarks.word_problems --prompts 0 --adaptive   also with as many masks as pay here, the default of `generate`

Accuracy, identity and tokens per step need no clock, so they are measured in batches on all prompts. Speed is measured at batch
1 in pairs, after a warm-up, with one clock: the original under transformers' greedy `generate` and our decoding answer the same
prompt before the next prompt starts. A speed-up is the median ratio of seconds per token over the pairs, with its 95% interval.
The last line is JSON.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.rivals import rival
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, Exact, NextToken, Policy
from multitoken.decoding.sampling import Sampling
from multitoken.evaluation.identity import Judge, compare
from multitoken.evaluation.measure import label_of, parse_policy
from multitoken.evaluation.results import percent
from multitoken.evaluation.rows import Combination, Outcome, Row, make_row
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task

POLICIES: tuple[Policy, ...] = (
    Exact(0.5),
    Exact(0.7),
    ConfAdapt(0.9),
)


def answer_all(
    model: Model,
    prompts: list[list[int]],
    policy: Policy,
    batch: int,
    new: int,
    what: str,
    sampling: Sampling | None = None,
) -> list[tuple]:
    """(token ids, tokens of the prefill, forward passes that the row took part in) for each prompt, in order. All masks are
    fed. If sampled, prompt i draws the noise of row i, regardless of the batch."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: dict[int, tuple] = {}
    for start in track(range(0, len(order), batch), description=what, console=Console(stderr=True)):
        part = order[start : start + batch]
        chunks: dict[int, list] = {i: [] for i in range(len(part))}
        requests = [
            model.decoder.request(
                prompts[i], policy=policy, max_new_tokens=new, sampling=sampling, row=i, name=f"prompt {i}"
            )
            for i in part
        ]
        for chunk in model.decoder.run(requests):
            chunks[chunk.row].append(chunk.token_ids)
        for row, i in enumerate(part):
            ids = tuple(t for c in chunks[row] for t in c)
            results[i] = (ids, len(chunks[row][0]), len(chunks[row]))
    return [results[i] for i in range(len(prompts))]


def tokens_per_step(answers: list[tuple]) -> float:
    """From the results of `answer_all`, summed over prompts, without the prefill's tokens and pass."""
    return sum(len(ids) - prefill for ids, prefill, _ in answers) / sum(passes - 1 for _, _, passes in answers)


def label_of_model(model: Model) -> str:
    return model.mtp.method if model.mtp else "original"


def measure_all(
    original: Model, adapted: Model, policies: Sequence[Policy], number: int, batch: int, task_name: str
) -> list[Row]:
    """Rows without a clock (their `seconds` are a placeholder and not reported)."""
    task = embedded_task(task_name, number)
    prompts = [original.encode(q.prompt) for q in task.questions]
    outcomes: dict[Combination, list[Outcome]] = {}
    for label, model in (("original", original), (label_of_model(adapted), adapted)):
        for policy in (NextToken(), *(policies if model.mtp else ())):
            k = policy.k or (model.mtp.k if model.mtp else 1)
            what = Combination(label, label_of(policy), policy.name, getattr(policy, "threshold", None), k)
            answers = answer_all(model, prompts, policy, batch, task.max_new_tokens, f"{label}, {what.label}")
            outcomes[what] = []
            for question, (ids, prefill, passes) in zip(task.questions, answers, strict=True):
                text = model.tokenizer.decode(list(ids), skip_special_tokens=True)
                correct = task.grader.grade(str(text), question.answer)
                outcomes[what].append(Outcome(ids, prefill, passes, 1.0, correct, batch=len(outcomes[what])))
    plain = {what.model: o for what, o in outcomes.items() if what.policy == "next-token"}
    judges = {
        label: Judge(model.hf, adapted.mtp.mask_token_id if adapted.mtp else None)
        for label, model in (("original", original), (label_of_model(adapted), adapted))
    }

    def identities(ours: list[Outcome], label: str) -> list:
        triples = zip(ours, plain[label], prompts, strict=True)
        return [compare(o.token_ids, r.token_ids, gap=judges[label].after(ids)) for o, r, ids in triples]

    return [
        make_row(task.name, what, o, plain["original"], identities(o, "original"), identities(o, what.model))
        for what, o in outcomes.items()
    ]


def race_generate(
    original: Model, adapted: Model, policies: Sequence[Policy], pairs: int, *, adaptive: bool = False
) -> list[dict]:
    """Speed-ups over transformers' greedy `generate` of the original, in interleaved pairs, with all masks fed. adaptive: the
    verified policies also run with as many masks as pay."""
    task = embedded_task("word-problems", pairs + 3, split="speed")

    def generate(ids: list[int]) -> tuple[int, float]:
        row = torch.tensor([ids])
        started = time.perf_counter()
        out = original.hf.generate(  # pyright: ignore[reportCallIssue]
            row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=task.max_new_tokens,
        )
        return out.shape[1] - len(ids), time.perf_counter() - started

    ways = {label_of(policy): (policy, False) for policy in policies}
    if adaptive:
        ways |= {f"{label_of(policy)}, adaptive": (policy, True) for policy in policies if policy.verifies}
    seconds: dict[str, list[float]] = {label: [] for label in ("generate", *ways)}
    for i, question in enumerate(track(task.questions, description="racing generate", console=Console(stderr=True))):
        n, spent = generate(original.encode(question.prompt))
        measured = {"generate": (n, spent)}
        for label, (policy, paced) in ways.items():
            answer = adapted.generate(
                question.prompt, policy=policy, max_new_tokens=task.max_new_tokens, adaptive=paced
            )
            measured[label] = (len(answer.token_ids), answer.seconds)
        if i >= 3:  # the first three warm up
            for label, (n, spent) in measured.items():
                seconds[label].append(spent / n)
    results = []
    for label in seconds:
        ratio = ratio_interval(list(zip(seconds["generate"], seconds[label], strict=True)))
        results.append(
            {
                "label": label,
                "seconds_per_token": sum(seconds[label]) / len(seconds[label]),
                "tokens_per_second": len(seconds[label]) / sum(seconds[label]),
                "speedup": ratio.median,
                "interval": ratio.interval,
            }
        )
    return results


def print_rows(rows: list[Row], what: str) -> None:
    print(f"| {what} | accuracy (95%) | tokens per step | identical to own next-token | ties | identical to original |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        accuracy = percent(r.accuracy, r.accuracy_interval) if r.accuracy is not None else "-"
        print(
            f"| {r.model}, {r.label} | {accuracy} | {r.tokens_per_step:.2f} | "
            f"{r.identical_to_own_next_token} | {r.own_ties} | {r.identical_to_original} (+{r.ties} ties) |"
        )


def print_speeds(speeds: list[dict], pairs: int) -> None:
    print(f"\n| batch 1, {pairs} pairs | tokens per second | against transformers' generate (95%) |\n|---|---|---|")
    for s in speeds:
        low, high = s["interval"] or (float("nan"), float("nan"))
        print(f"| {s['label']} | {s['tokens_per_second']:.0f} | {s['speedup']:.2f} ({low:.2f} to {high:.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--full", action="store_const", const=str(rival("full")), dest="model")
    parser.add_argument("--original", default=str(checkpoint("base")))
    parser.add_argument("--task", default="word-problems")
    parser.add_argument("--prompts", type=int, default=1500, help="0: measure the speed alone")
    parser.add_argument("--pairs", type=int, default=60, help="number of timed pairs; 0: time nothing")
    parser.add_argument("--adaptive", action="store_true", help="time also with as many masks as pay")
    parser.add_argument("--policy", type=parse_policy, action="append", help="in addition to next-token; repeatable")
    parser.add_argument("--batch", type=int, default=32)
    a = parser.parse_args()
    original, adapted = Model.load(a.original), Model.load(a.model)
    policies = a.policy or POLICIES
    rows = measure_all(original, adapted, policies, a.prompts, a.batch, a.task) if a.prompts else []
    if rows:
        print_rows(rows, f"{a.prompts} {a.task}")
    raced = (NextToken(), *policies)
    speeds = race_generate(original, adapted, raced, a.pairs, adaptive=a.adaptive) if a.pairs else []
    if speeds:
        print_speeds(speeds, a.pairs)
    facts = provenance(threads=torch.get_num_threads())
    print(json.dumps({"provenance": facts, "rows": [dataclasses.asdict(r) for r in rows], "speed": speeds}))


if __name__ == "__main__":
    main()
