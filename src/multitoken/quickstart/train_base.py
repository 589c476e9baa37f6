"""Train the embedded base model from scratch: `python -m multitoken.quickstart.train_base --output DIR`.

This takes about an hour and a half on two cores. `continue_base` then teaches the model counting and repeating in
people's own words. The text is `corpus.mixed("train")`. The weights are rounded to bf16 at the end, *before* anything
is adapted from them, so that base and adapted model start from the same numbers. The optimizers are Muon (for matrices)
and AdamW (for the rest), because a CPU does not compute much in an hour. A step takes micro-batches of different
lengths.

`--size draft` trains the small model that drafts for the base in transformers' assisted generation, a method that
`benchmarks/performance.py` compares with.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from multitoken.checkpoints.atomic import write_text
from multitoken.models.model import Model
from multitoken.models.placement import cpu_gains_by_bf16
from multitoken.training.denormals import flushed_denormals
from multitoken.training.muon import Muon

from .base_text import END, PAD, TOKENIZER_SIZE, batches, train_tokenizer
from .corpus import GENERATOR_VERSION, examples

VOCABULARY = 2048  # rows of the embedding matrix; those that no token uses are room for a mask token
SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "head_dim": 64,
    },
    "draft": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 24,
    },
}
MICRO_BATCHES = 4  # of different lengths in every step: a step of letters only would disturb the training
SUMS_FROM = 750  # step from which the text also has plain arithmetic, and results weigh more
JUDGED_AT_ONCE, LONGEST_ANSWER = 32, 330


def build_model(tokenizer: PreTrainedTokenizerFast, size: str = "base") -> LlamaForCausalLM:
    """A Llama of 5.2 M parameters ("base") or 0.5 M ("draft") with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        **SIZES[size],
        num_key_value_heads=2,
        **common_config(tokenizer),
    )
    model = LlamaForCausalLM(config)
    silence_branches(model)
    return model


def common_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The settings that do not depend on the architecture."""
    return {
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.vocab[END],
        "pad_token_id": tokenizer.vocab[PAD],
        "initializer_range": 0.02,
    }


def silence_branches(model: nn.Module) -> None:
    """Start residual branches at zero, so that activations stay stable at a high learning rate."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)


def loss_of(model: nn.Module, ids: torch.Tensor, weights: torch.Tensor, autocast: bool) -> torch.Tensor:
    """Weighted sum of next-token cross-entropies. ids, weights: [B, T + 1]."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    token_losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten()
    return (token_losses * w).sum()


def share_right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: str, number: int) -> float:
    """The share of a task's first `number` validation examples that greedy decoding answers correctly."""
    ours = Model(model, tokenizer)
    questions = sorted(examples(task, "valid", number), key=lambda e: len(e.response))
    right = 0
    for start in range(0, number, JUDGED_AT_ONCE):
        batch = questions[start : start + JUDGED_AT_ONCE]
        answers: list[list[int]] = [[] for _ in batch]
        for chunk in ours.decoder.decode([ours.encode(e.prompt) for e in batch], max_new_tokens=LONGEST_ANSWER):
            answers[chunk.row] += chunk.token_ids
        for e, ids in zip(batch, answers, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            right += text.rsplit("Answer: ", 1)[-1].strip() == e.answer
    return right / number


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Save the state that a run is resumed from. If saving is interrupted, the previous state remains."""
    temporary = file.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(file)


def save_rounded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, output: Path, facts: dict[str, Any]
) -> None:
    """Save the model in bf16, and `training.json` with the facts of its training."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    facts = {"generator_version": GENERATOR_VERSION, **facts, "torch": torch.__version__}
    write_text(output / "training.json", json.dumps(facts, indent=2) + "\n")
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)


def learning_rate_factor(step: int, steps: int, warmup: int = 100, floor: float = 0.01) -> float:
    """Short warm-up, flat to 40%, then linear to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    flat = 0.4 * steps
    return 1.0 if step < flat else max(floor, (steps - step) / (steps - flat))


def steps_in(minutes: float, step: int, seconds: float) -> int:
    """The expected number of steps, at the speed of the steps so far. Once the time is over, the current step is the
    last."""
    if step == 0 or seconds <= 0:
        return sys.maxsize
    return max(step + 1, round(step * 60 * minutes / seconds))


@flushed_denormals()
def train(
    output: Path,
    build: Callable[[PreTrainedTokenizerFast], PreTrainedModel],
    *,
    steps: int | None,
    tokens_per_batch: int,
    lr: float,
    seed: int,
    checkpoint_every: int,
    tokenizer_size: int = TOKENIZER_SIZE,
    minutes: float | None = None,
    sums_from: int | None = SUMS_FROM,
    autocast: bool | None = None,
) -> None:
    """Train the model that `build` returns, log to `output/train_log.jsonl`, save to `output` (bf16). Resumes from
    `output/state.pt` if that exists.

    Ends after `steps`, or after `minutes` if these are given instead: the learning rate then falls with the elapsed
    time. From step `sums_from` on (None: never) the model practises arithmetic too. With `autocast` the passes are in
    bf16, else in float32, which is faster for small models on one core. None: whichever is faster on this machine.
    """
    autocast = cpu_gains_by_bf16() if autocast is None else autocast
    if (steps is None) == (minutes is None):
        raise ValueError(f"steps is {steps} and minutes is {minutes}; expected exactly one of them")
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(tokenizer_size)
    model = build(tokenizer)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    first, used, tokens, spent = 0, 0, 0, 0.0
    state_file = output / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, used, tokens = state["step"], state["used"], state["tokens"]
        spent = state["seconds"]
    started = time.time() - spent
    stream, done = None, first
    with (output / "train_log.jsonl").open("a") as log:
        for step in count(first) if steps is None else range(first, steps):
            total = steps_in(minutes, step, time.time() - started) if minutes is not None else cast(int, steps)
            is_last = step == total - 1
            if stream is None or step == sums_from:
                practice = sums_from is not None and step >= sums_from
                stream = batches(tokenizer, tokens_per_batch // MICRO_BATCHES, used, practice=practice)
            micro = [next(stream) for _ in range(MICRO_BATCHES)]
            used = micro[-1][2]
            whole = sum(weights[:, 1:].sum() for _, weights, _ in micro)
            factor = learning_rate_factor(step, total)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
            loss = torch.zeros(())
            for ids, weights, _ in micro:
                part = loss_of(model, ids, weights, autocast) / whole
                part.backward()
                loss += part.detach()
                tokens += int((weights > 0).sum())
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"loss is {loss.item()} at step {step}")
            if step % 20 == 0 or is_last:
                record = {
                    "step": step,
                    "loss": round(loss.item(), 4),
                    "norm": round(float(norm), 3),
                    "tokens": tokens,
                    "examples": used,
                    "seconds": round(time.time() - started, 1),
                }
                print(json.dumps(record), file=log, flush=True)
            if (step + 1) % checkpoint_every == 0 or is_last:
                model.eval()
                record = {
                    "step": step,
                    "solved_of_128": share_right(model, tokenizer, "word-problems", 128),
                    "seconds": round(time.time() - started, 1),
                }
                model.train()
                print(json.dumps(record), file=log, flush=True)
                state = {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                    "used": used,
                    "tokens": tokens,
                    "seconds": time.time() - started,
                }
                save_state(state_file, state)
            done = step + 1
            if is_last:
                break
    facts = {"steps": done, "tokens": tokens, "seed": seed, "lr": lr, "tokens_per_batch": tokens_per_batch}
    save_rounded(model, tokenizer, output, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    a = parser.parse_args()
    train(
        a.output,
        lambda tokenizer: build_model(tokenizer, a.size),
        steps=a.steps,
        tokens_per_batch=a.tokens_per_batch,
        lr=a.lr,
        seed=a.seed,
        checkpoint_every=a.checkpoint_every,
    )


if __name__ == "__main__":
    main()
