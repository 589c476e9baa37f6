"""What a rejected draft costs, and how much masks after every draft could save at most.

    python -m benchmarks.rejections --prompts 200

After a rejected draft the masks of that step are wasted, and the next step has no drafts. With masks after *every* draft (a
quadratic layout: arXiv 2507.11851, and others) there would always be a valid block. The upper bound is the same tokens in
fewer steps: the steps now taken minus those in which a draft is rejected. The cost is that a step with d drafts feeds (1 + d)
blocks of masks instead of one. Prints both, and how long a step of either width takes. The last line is JSON.
"""

import argparse
import json
import time

import torch

from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.policies import NextToken
from multitoken.decoding.row import Request, Row
from multitoken.decoding.step import Batch, Feed, step
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task


def seconds(model: Model, width: int, length: int = 64, repeats: int = 8) -> float:
    """The best time of a step that feeds `width` tokens, all but one of them masks, after `length` cached tokens."""
    decoder, best = model.decoder, float("inf")
    decoder.rule.grow(length + width)
    batch = Batch(model.hf, decoder.mask_id, decoder.rule, SlotCache(model.hf, 1, length + width))
    for _ in range(repeats):
        row = Row(0, Request([0] * (length + 1), NextToken(), width + 1))
        row.cached = length
        started = time.perf_counter()
        step(batch, [Feed(row, 1, width - 1)])
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--prompts", type=int, default=200)
    a = parser.parse_args()
    model = Model.load(a.model)
    assert model.mtp is not None
    task = embedded_task("word-problems", a.prompts)
    masks = model.mtp.k - 1
    results = []
    print(
        "| threshold | steps | a draft fails in | drafts a step | tokens per step | at most | width | would be | time |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for threshold in (0.3, 0.5, 0.7, 0.9):
        steps = failed = drafts = tokens = 0
        for question in task.questions:
            engine = model.decoder.engine()
            engine.add(
                model.decoder.request(model.encode(question.prompt), policy=Exact(threshold), max_new_tokens=320)
            )
            row = None
            for number, chunk in enumerate(engine.run()):
                if not number:  # the prefill
                    row = engine._rows[0] if engine._rows else None
                    continue
                assert row is not None
                steps += 1
                tokens += len(chunk.token_ids)
                if row.settled is not None:
                    _, made, held = row.settled
                    drafts += made
                    failed += held < made
        mean = drafts / steps
        now, then = 1 + mean + masks, (1 + mean) * (1 + masks)
        ratio = seconds(model, round(then)) / seconds(model, round(now))
        facts = {
            "threshold": threshold,
            "steps": steps,
            "failed": failed / steps,
            "drafts": mean,
            "tokens_per_step": tokens / steps,
            "bound": tokens / (steps - failed),
            "width": now,
            "width_then": then,
            "time_ratio": ratio,
        }
        results.append(facts)
        print(
            f"| {threshold} | {steps} | {100 * facts['failed']:.1f}% | {mean:.2f} | {facts['tokens_per_step']:.2f} | "
            f"{facts['bound']:.2f} | {now:.0f} | {then:.0f} | {ratio:.2f} times |",
            flush=True,
        )
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
