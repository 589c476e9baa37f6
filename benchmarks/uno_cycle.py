"""UNO's two passes compared with our one, with the same adapter: tokens per forward pass, and whether the output is the original's.

    python -m benchmarks.uno_cycle --adapter DIR              an adapter of `multitoken adapt --masks noise`, 500 word problems
    python -m benchmarks.uno_cycle --adapter DIR --prompts 40

This is UNO's linear, greedy cycle as SGLang 0.5.23 runs it. A draft pass over [last token, noise, ...] of width F gives one certain token at
its first position and drafts at the others. Then a verify pass of the same width, without the adapter, keeps the drafts up to the first that
is not the model's own next token, and adds one more token. The code here is written to count passes, one prompt at a time. Ours is `Exact` in
the engine with all masks fed, without branches and with some. The prefill counts as a pass for both. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import DynamicCache

from benchmarks.word_problems import answer_all
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, NextToken
from multitoken.decoding.mixers import cache_inputs
from multitoken.evaluation.measure import label_of
from multitoken.evaluation.statistics import ratio_of_sums_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task

WIDTHS = (4, 8, 12, 16)
NEW = 320


@torch.inference_mode()
def next_tokens(model: Model, cache: DynamicCache, tokens: Sequence[int], masks: int) -> list[int]:
    """The likeliest token after each of these tokens and masks, which follow what is in the cache."""
    assert model.mtp is not None
    known = cache.get_seq_length()
    ids = torch.tensor([[*tokens, *[model.mtp.mask_token_id] * masks]])
    positions = torch.arange(known, known + ids.shape[1])[None]
    logits: Tensor = model.hf(input_ids=ids, position_ids=positions, **cache_inputs(model.hf, cache)).logits[0]
    if model.mtp.mask_token_id < logits.shape[-1]:
        logits[:, model.mtp.mask_token_id] = -torch.inf
    return logits.argmax(-1).tolist()


def _forget(cache: DynamicCache, last: int) -> None:
    if last:
        cache.crop(-last)


def uno(model: Model, prompt: Sequence[int], width: int, new: int = NEW) -> tuple[list[int], int]:
    """(tokens, forward passes) of UNO's cycle at this width, at most `new` tokens."""
    ends = model.decoder.eos_ids
    cache = DynamicCache(config=model.hf.config)
    written = next_tokens(model, cache, prompt, 0)[-1:]  # the token of the prefill
    passes = 1
    while len(written) < new and written[-1] not in ends:
        sure, *drafts = next_tokens(model, cache, written[-1:], width - 1)
        _forget(cache, len(drafts))  # the masks
        said = next_tokens(model, cache, [sure, *drafts], 0)  # verify: what follows the sure token and each draft
        held = 0
        while held < len(drafts) and drafts[held] == said[held]:
            held += 1
        _forget(cache, len(drafts) - held)  # the drafts that failed
        passes += 2
        for token in (sure, *drafts[:held], said[held]):
            written.append(token)
            if token in ends or len(written) == new:
                break
    return written, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="widths of UNO's passes")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--branches-threshold", type=float, default=0.3, help="lower, since a refusal costs less")
    a = parser.parse_args()
    model = Model.load(a.adapter, device="cpu")
    original = Model.load(checkpoint("base"), device="cpu")
    prompts = [original.encode(q.prompt) for q in embedded_task("word-problems", a.prompts).questions]
    reference = [ids for ids, _, _ in answer_all(original, prompts, NextToken(), 64, NEW, "original")]
    assert model.mtp is not None
    rows = []
    for width in a.widths:
        cycles = [uno(model, p, width) for p in track(prompts, f"UNO, width {width}", console=Console(stderr=True))]
        rows.append(_row(f"UNO, width {width}", [(tuple(ids), n) for ids, n in cycles], reference))
    for k in (8, model.mtp.k) if model.mtp.k > 8 else (model.mtp.k,):
        for policy in (
            Exact(a.threshold, k=k, branches=0),
            Exact(a.branches_threshold, k=k, branches=a.branches),
        ):
            name = f"ours, {label_of(policy)}"
            answers = answer_all(model, prompts, policy, 32, NEW, name)
            rows.append(_row(name, [(ids, passes) for ids, _, passes in answers], reference))
    for row in rows:
        print(
            f"{row['name']}: {row['tokens_per_pass']:.2f} tokens per forward pass {row['interval']}, "
            f"{row['identical']} of {a.prompts} identical to the original"
        )
    print(json.dumps({"rows": rows, "provenance": provenance()}))


def _row(name: str, answers: Sequence[tuple[tuple[int, ...], int]], reference: Sequence[tuple[int, ...]]) -> dict:
    pairs = [(float(len(ids)), float(passes)) for ids, passes in answers]
    low, high = ratio_of_sums_interval(pairs)
    return {
        "name": name,
        "tokens_per_pass": round(sum(t for t, _ in pairs) / sum(p for _, p in pairs), 3),
        "interval": [round(low, 2), round(high, 2)],
        "identical": sum(ids == ref for (ids, _), ref in zip(answers, reference, strict=True)),
    }


if __name__ == "__main__":
    main()
