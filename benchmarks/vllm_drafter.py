"""A small adapted model as stock vLLM's parallel drafter for a larger target: accepted tokens per step of the target.

    VLLM_PLUGINS= python -m benchmarks.vllm_drafter --write target.jsonl --prompts 1500    # the target's answers, to train on
    multitoken adapt DRAFT --data target.jsonl --output adapted --method full --labels data ...
    multitoken export adapted drafter
    VLLM_PLUGINS= python -m benchmarks.vllm_drafter --drafter drafter --draft DRAFT

Runs in an environment with vLLM (`make test-vllm` builds one). `VLLM_PLUGINS=` keeps our plugin out. The target is the embedded
base, and DRAFT is the embedded draft model. Greedy, float32, 16 requests at once; every text is compared with plain vLLM's. For
comparison, the draft model before it was adapted drafts one token after the other. Heads that vLLM's CPU kernels do not support
are padded with zeros (`vllm_padding`). The last line is JSON.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import transformers

from benchmarks.vllm_local import answers, counters, engine, facts, mixed_prompts
from benchmarks.vllm_padding import with_wider_heads
from multitoken.checkpoints.atomic import write_text
from multitoken.evaluation.identity import Judge, compare
from multitoken.quickstart.embedded import checkpoint


def write(path: Path, target: Path, number: int, tokenizer: Any) -> None:
    """Write prompts with the target's responses. The target was not trained on these prompts, and they are not tested on."""
    texts, prompts = mixed_prompts("adapt", number, tokenizer)
    with engine(target, max_num_seqs=64) as llm:
        rows = answers(llm, prompts)
    pairs = [
        {"prompt": text, "response": tokenizer.decode(row, skip_special_tokens=True)}
        for text, row in zip(texts, rows, strict=True)
        if row[-1] == tokenizer.eos_token_id
    ]
    write_text(path, "".join(json.dumps(pair) + "\n" for pair in pairs))
    print(f"{len(pairs)} of {number} prompts answered to the end: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=checkpoint("base"))
    parser.add_argument("--write", type=Path, help="write the target's responses to this file, and measure nothing")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--drafter", type=Path, help="an exported adapted model")
    parser.add_argument("--draft", type=Path, help="an ordinary small model to compare with")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 12])
    a = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(a.target)
    if a.write is not None:
        write(a.write, a.target, a.prompts, tokenizer)
        return
    if a.drafter is None:
        parser.error("expected --drafter or --write")
    _, prompts = mixed_prompts("test", a.prompts, tokenizer)
    with engine(a.target) as llm:
        plain = answers(llm, prompts)
    model = transformers.AutoModelForCausalLM.from_pretrained(a.target, dtype="float32").eval()
    judge = Judge(model)
    print(f"{len(prompts)} prompts, {sum(map(len, plain))} tokens of the target, 16 requests at once")
    rows = []
    rivals = [("adapted, in parallel", a.drafter, True)]
    if a.draft is not None:
        rivals.append(("not adapted, one token at a time", a.draft, False))
    for (name, folder, parallel), k in itertools.product(rivals, a.lengths):
        with tempfile.TemporaryDirectory() as room:
            drafter = with_wider_heads(folder, Path(room) / "wider")
            speculative = {"method": "draft_model", "model": str(drafter), "num_speculative_tokens": k}
            speculative |= {"parallel_drafting": True} if parallel else {}
            with engine(a.target, speculative_config=speculative) as llm:
                texts = answers(llm, prompts)
                counts = counters(llm)
        sameness = [
            compare(ours, reference, gap=judge.after(prompt)).value
            for prompt, ours, reference in zip(prompts, texts, plain, strict=True)
        ]
        rows.append(
            {
                "drafter": name,
                "k": k,
                "tokens_per_target_step": 1 + counts["num_accepted_tokens"] / counts["num_drafts"],
                "drafter_passes_per_target_step": 1 if parallel else k,
                "accepted_share": counts["num_accepted_tokens"] / counts["num_draft_tokens"],
                "identical": sameness.count("identical"),
                "ties": sameness.count("tie"),
            }
        )
        print(
            "{drafter}, k = {k}: {tokens_per_target_step:.2f} tokens per target step, {drafter_passes_per_target_step} "
            "drafter passes each, {accepted_share:.0%} of drafts accepted, {identical} identical, {ties} ties".format(
                **rows[-1]
            ),
            flush=True,
        )
    print(json.dumps({"provenance": facts(), "rows": rows}))


if __name__ == "__main__":
    main()
