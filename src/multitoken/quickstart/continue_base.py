"""Teach the embedded base the toy tasks: `python -m multitoken.quickstart.continue_base --start-from DIR --output DIR`.

A small model that is trained on everything at once never learns where to stop counting: the end is one token among a
hundred, and word problems are most of the text. Here short counts come first and longer ones follow, the end token has
a higher weight at first, and training steps are small. Word problems become worse at first and recover in the last
stage, while the learning rate falls (docs/embedded-models.md).
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from multitoken.errors import OutputError
from multitoken.models.placement import cpu_gains_by_bf16
from multitoken.training.denormals import flushed_denormals

from .base_text import RESULT_WEIGHT, Row, encode, grouped
from .corpus import make_example
from .train_base import loss_of, save_rounded, save_state, share_right

POOL = 1024  # how many examples are sorted by length at a time
CONVERSATIONS = 0.1  # share of the examples that are joined into conversations
LONGEST_CONVERSATION = 1900  # tokens
WARMUP = 100  # steps
JUDGED = ("counting", "repeating", "held-out-counting", "held-out-repeating", "word-problems")


@dataclass(frozen=True)
class Stage:
    """until: the share of the run at which it ends. mixture: weight by task. end_weight: of the token that ends a
    response."""

    until: float
    mixture: dict[str, float]
    end_weight: float


@dataclass(frozen=True)
class Curriculum:
    """A sequence of stages. flat: the share of the run at which the learning rate begins to fall."""

    stages: tuple[Stage, ...]
    flat: float

    def at(self, share: float) -> Stage:
        """The stage of this share (0 to 1) of the run."""
        return next((stage for stage in self.stages if share < stage.until), self.stages[-1])

    def learning_rate_factor(self, step: int, share: float, floor: float = 0.01) -> float:
        """Short warm-up, flat up to the share `flat` of the run, then linear to `floor`."""
        warm = min(1.0, (step + 1) / WARMUP)
        return warm * (1.0 if share < self.flat else max(floor, (1 - share) / (1 - self.flat)))


_TASKS = ("short-counting", "short-repeating", "counting", "repeating", "word-problems", "letters", "sums")


def _mix(*weights: float) -> dict[str, float]:
    return dict(zip(_TASKS, weights, strict=True))


# To be run one after the other: "toys" teaches counting to a model that solves word problems, "copying" teaches it to
# repeat words that it never saw, and "finish" lets everything settle under a falling learning rate.
CURRICULA = {
    "toys": Curriculum(
        (
            Stage(0.10, _mix(0.50, 0.30, 0.00, 0.00, 0.12, 0.03, 0.05), 5.0),
            Stage(0.25, _mix(0.25, 0.15, 0.25, 0.15, 0.13, 0.03, 0.04), 5.0),
            Stage(0.60, _mix(0.12, 0.06, 0.36, 0.22, 0.16, 0.03, 0.05), 3.0),
            Stage(1.00, _mix(0.06, 0.04, 0.26, 0.17, 0.35, 0.05, 0.07), 1.0),
        ),
        flat=0.5,
    ),
    "copying": Curriculum(
        (
            Stage(0.55, _mix(0.05, 0.22, 0.26, 0.16, 0.21, 0.03, 0.07), 2.0),
            Stage(1.00, _mix(0.04, 0.10, 0.25, 0.16, 0.33, 0.05, 0.07), 1.0),
        ),
        flat=0.3,
    ),
    "finish": Curriculum(
        (
            Stage(0.50, _mix(0.04, 0.16, 0.27, 0.16, 0.27, 0.03, 0.07), 1.0),
            Stage(1.00, _mix(0.03, 0.12, 0.25, 0.15, 0.34, 0.04, 0.07), 1.0),
        ),
        flat=0.15,
    ),
}


def join_turns(rows: list[Row], share: float, rng: random.Random) -> list[Row]:
    """The rows, a random share of them joined as turns of conversations of 100 to 1,900 tokens."""
    alone: list[Row] = []
    joined: list[Row] = []
    for row in rows:
        (joined if rng.random() < share else alone).append(row)
    room = 0
    for ids, weights in joined:
        if len(ids) > room:
            room = rng.randint(100, LONGEST_CONVERSATION)
            alone.append(([], []))
        alone[-1][0].extend(ids)
        alone[-1][1].extend(weights)
        room -= len(ids)
    return alone


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, tokens: int, start: int, stream: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, weights) of the examples `start` to `start + POOL` of a stream: rows of similar length, right-padded, at
    most `tokens` tokens or one row per batch. ids, weights: [B, T]."""
    rows = []
    for i in range(start, start + POOL):
        rng = random.Random(f"{stream}:{i}")
        task = rng.choices(list(stage.mixture), weights=list(stage.mixture.values()))[0]
        rows.append(make_example(task, "train", i))
    encoded = encode(tokenizer, rows, RESULT_WEIGHT, stage.end_weight)
    encoded = join_turns(encoded, CONVERSATIONS, random.Random(start))
    yield from grouped(encoded, tokens, random.Random(start))


class Run:
    """The state that can be resumed: weights, optimizer and progress. `seconds`: time spent on training."""

    def __init__(self, start_from: Path, output: Path, lr: float) -> None:
        self.file = output / "state.pt"
        self.model = cast(LlamaForCausalLM, LlamaForCausalLM.from_pretrained(start_from, dtype=torch.float32))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.used, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.autocast = cpu_gains_by_bf16()
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.used, self.tokens, self.seconds = state["progress"]

    def save(self) -> None:
        progress = (self.step, self.used, self.tokens, self.seconds)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "progress": progress}
        save_state(self.file, state)

    def learn(self, ids: torch.Tensor, weights: torch.Tensor, lr: float) -> float:
        """Do one training step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of(self.model, ids, weights, self.autocast) / weights[:, 1:].sum()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}")
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int((weights > 0).sum())
        return loss.item()


@flushed_denormals()
def continue_base(
    start_from: Path,
    output: Path,
    *,
    curriculum: str,
    minutes: float,
    lr: float,
    tokens_per_batch: int = 1024,
    judge_every: float = 9.0,
    judged: int = 128,
) -> None:
    """Train the model in `start_from` for some minutes; log to `output/train_log.jsonl`, save to `output` (bf16).
    Resumes from `output/state.pt` if that exists.

    judge_every: minutes between two validations on `judged` examples of every task. Their time does not count.
    """
    plan = CURRICULA[curriculum]
    output.mkdir(parents=True, exist_ok=True)
    if (output / "model.safetensors").exists():
        raise OutputError(f"{output} already holds a finished model; choose another output")
    tokenizer = cast(PreTrainedTokenizerFast, PreTrainedTokenizerFast.from_pretrained(start_from))
    run = Run(start_from, output, lr)
    with (output / "train_log.jsonl").open("a") as log:

        def note(record: dict[str, Any]) -> None:
            print(json.dumps({"step": run.step, **record}), file=log, flush=True)

        def judge() -> None:
            run.model.eval()
            note({"right": {task: share_right(run.model, tokenizer, task, judged) for task in JUDGED}})
            run.model.train()

        share, average, looked = run.seconds / 60 / minutes, 0.0, run.seconds
        while share < 1:
            for ids, weights in batches(tokenizer, plan.at(share), tokens_per_batch, run.used, curriculum):
                started = time.time()
                loss = run.learn(ids, weights, lr * plan.learning_rate_factor(run.step, share))
                average = 0.98 * average + 0.02 * loss
                run.seconds += time.time() - started
                share = run.seconds / 60 / minutes
                if run.step % 50 == 0:
                    note({"loss": round(average, 4), "tokens": run.tokens, "seconds": round(run.seconds)})
                if share >= 1:
                    break
            run.used += POOL
            if run.seconds - looked > 60 * judge_every and share < 1:
                run.save()
                judge()
                looked = run.seconds
        for parameter in run.model.parameters():  # judge exactly the weights that are saved
            parameter.data = parameter.data.to(torch.bfloat16).float()
        judge()
    facts = {
        "curriculum": curriculum,
        "steps": run.step,
        "tokens": run.tokens,
        "lr": lr,
        "tokens_per_batch": tokens_per_batch,
        "minutes": minutes,
    }
    save_rounded(run.model, tokenizer, output, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start-from", type=Path, required=True, help="the folder of the model to continue with")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--curriculum", choices=sorted(CURRICULA), default="toys")
    parser.add_argument("--minutes", type=float, default=95.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--judge-every", type=float, default=9.0, help="minutes between two validations")
    parser.add_argument("--judged", type=int, default=128, help="validation examples of every task")
    a = parser.parse_args()
    if a.minutes <= 0:
        parser.error(f"--minutes is {a.minutes}; expected a number above 0")
    continue_base(**vars(a))


if __name__ == "__main__":
    main()
