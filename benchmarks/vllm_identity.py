"""Is what vLLM serves from a gated export the original model's output? Token for token, 200 prompts, 16 at once.

    multitoken export GATED exported && python -m benchmarks.vllm_identity --model exported

Runs in an environment with vLLM (`make test-vllm` builds one). The prompts come in equal parts from the four embedded tasks, and
none was used in training. Each goes once through plain vLLM with the original model, and twice through the export with its
default policy, exact: with a cold and with a warm prefix cache. A first difference that is a tie in float64 is counted
separately. The last line is JSON.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import transformers

from benchmarks.vllm_local import answers, counters, engine, facts
from multitoken.evaluation.identity import Judge, compare
from multitoken.models.prompts import encode_prompt
from multitoken.quickstart.corpus import LANGUAGE, examples
from multitoken.quickstart.embedded import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder that `multitoken export` wrote")
    parser.add_argument("--original", type=Path, default=checkpoint("base"))
    parser.add_argument("--prompts", type=int, default=200)
    a = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(a.original)
    rows = zip(*(examples(task, "test", -(-a.prompts // len(LANGUAGE))) for task in LANGUAGE), strict=True)
    prompts = [encode_prompt(example.prompt, tokenizer) for row in rows for example in row][: a.prompts]
    with engine(a.original) as llm:
        plain = answers(llm, prompts)
    with engine(a.model) as llm:
        runs = {"cold": answers(llm, prompts), "with a warm prefix cache": answers(llm, prompts)}
        counts = counters(llm)
        speculative = llm.llm_engine.vllm_config.speculative_config
    if speculative is None:
        parser.error(f"{a.model} was served as an ordinary model; expected a folder that `multitoken export` wrote")
    model = transformers.AutoModelForCausalLM.from_pretrained(a.original, dtype="float32").eval()
    judge = Judge(model, transformers.AutoConfig.from_pretrained(a.model).mtp["mask_token_id"])
    lengths = sorted(map(len, prompts))
    print(
        f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {sum(map(len, plain))} new tokens each time"
    )
    sameness = {
        name: Counter(
            compare(ours, reference, gap=judge.after(prompt)).value
            for prompt, ours, reference in zip(prompts, texts, plain, strict=True)
        )
        for name, texts in runs.items()
    }
    for name, found in sameness.items():
        print(f"{name}, 16 at once: " + ", ".join(f"{n} {what}" for what, n in found.most_common()))
    emitted = 1 + counts["num_accepted_tokens"] / counts["num_drafts"]
    print(
        f"drafts confirmed: {counts['num_accepted_tokens']:.0f}, {emitted:.2f} tokens per step that fed drafts or masks"
    )
    print(json.dumps({"provenance": facts(), "counts": {name: dict(found) for name, found in sameness.items()}}))


if __name__ == "__main__":
    main()
