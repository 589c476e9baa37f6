"""Does a request get the same answer in a large batch as alone? Compares continuous batching with one request at a time.

    python -m benchmarks.batch_identity --prompts ../shared/data/gsm8k/test.jsonl --field question
    python -m benchmarks.batch_identity --model stories-gated --prompts unseen.jsonl

64 prompts of mixed lengths go through one engine that runs 16 at a time and prefills in pieces of 64 tokens. One in four is
sampled at temperature 0.8. Each prompt also goes through an engine alone, and through next-token decoding, which for a gated
adapter is the original's. A first difference that is a tie in float64 is counted separately. The last line is JSON.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import torch

from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, NextToken, Sampling
from multitoken.decoding.engine import Engine
from multitoken.evaluation.identity import Judge, compare
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint


def texts(engine: Engine) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for chunk in engine.run():
        found.setdefault(chunk.row, []).extend(chunk.token_ids)
    if engine.failed:
        raise next(iter(engine.failed.values()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--base", help="path of a gated adapter's base, if it is not where the adapter says")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL file")
    parser.add_argument("--field", default="prompt", help="the key of the prompt in a line")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--threshold", type=float, default=0.7)
    a = parser.parse_args()
    model = Model.load(a.model, base=a.base)
    lines = a.prompts.read_text(encoding="utf-8").splitlines()[: a.number]
    prompts = [model.encode(json.loads(line)[a.field]) for line in lines]
    rng = random.Random(0)
    requests, plain = [], []
    for i, prompt in enumerate(prompts):
        options = {
            "max_new_tokens": rng.randint(16, 192),
            "sampling": Sampling(0.8, seed=1, top_p=0.95) if i % 4 == 3 else None,
            "row": i,
        }
        requests.append(model.decoder.request(prompt, policy=Exact(a.threshold), **options))
        plain.append(model.decoder.request(prompt, policy=NextToken(), **options))
    engine = model.decoder.engine(max_rows=16, prefill_tokens=64)
    for request in requests:
        engine.add(request)
    together = texts(engine)
    judge = Judge(model.hf, model.mtp.mask_token_id if model.mtp else None)
    counts: dict[str, Counter[str]] = {"alone": Counter(), "next token, alone": Counter()}
    for i, prompt in enumerate(prompts):
        for name, request in (("alone", requests[i]), ("next token, alone", plain[i])):
            engine = model.decoder.engine()
            engine.add(request)
            counts[name][compare(together[i], texts(engine)[0], gap=judge.after(prompt)).value] += 1
    lengths = sorted(map(len, prompts))
    print(
        f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {sum(map(len, together.values()))} new tokens"
    )
    for name, found in counts.items():
        print(f"16 at once compared with {name}: " + ", ".join(f"{n} {what}" for what, n in found.most_common()))
    facts = provenance(threads=torch.get_num_threads())
    print(json.dumps({"provenance": facts, "counts": {name: dict(found) for name, found in counts.items()}}))


if __name__ == "__main__":
    main()
