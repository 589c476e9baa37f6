"""Does `calibrate` keep its promise? A simulation: models whose true losses are known are calibrated on few prompts, many times.

    python -m benchmarks.calibration_promise          a few seconds per hundred repetitions

Every repetition draws fresh prompts. Each candidate's answers differ from the original's with a probability of its own. Part of the differences
fall on the same prompts as those of the neighbouring candidates, because hard prompts are hard for all. The promise is broken if the true loss of
the chosen candidate is above the allowed loss.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Literal

import torch

from multitoken.decoding.policies import ConfAdapt
from multitoken.decoding.records import Chunk
from multitoken.evaluation.calibration import Allowed, Calibration, calibrate
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.tasks import Question, Task
from multitoken.models.generation import Generation

# The true loss of each threshold, around the allowed loss of 1%. Lower thresholds are faster.
TRUE_LOSS = {0.99: 0.001, 0.95: 0.004, 0.9: 0.008, 0.8: 0.0102, 0.7: 0.0105, 0.6: 0.013, 0.5: 0.02, 0.3: 0.04}
RIGHT, WRONG, EOS = 3, 4, 2


@dataclass
class FakeModel:
    """Answers RIGHT like the original, or WRONG with the probability of each threshold. A prompt is a number. With `accuracy` below 1 the
    original itself is sometimes wrong; on such a prompt a difference changes nothing."""

    seed: int
    accuracy: float = 1.0

    def __post_init__(self) -> None:
        # The judge of ties needs logits; those of RIGHT and WRONG are far apart.
        self.hf = _Logits()
        self.mtp = SimpleNamespace(k=2, mask_token_id=9)

    def encode(self, prompt: str) -> list[int]:
        return [5, 6]

    def generate(self, prompt: Any, *, policy: Any, **_: Any) -> Any:
        if isinstance(prompt, list):
            return [self.generate(each, policy=policy) for each in prompt]
        rng = Random(f"{self.seed}:{prompt}")
        original_is_right = rng.random() < self.accuracy
        shared, own = rng.random(), Random(f"{self.seed}:{prompt}:{policy}").random()
        differs = False
        if policy.name != "next-token":
            loss = TRUE_LOSS[policy.threshold]
            differs = shared < loss / 2 or own < loss / 2 / (1 - loss / 2)
        ids = [(RIGHT if original_is_right else WRONG) if not differs else WRONG, EOS]
        threshold = getattr(policy, "threshold", 1.0)
        chunks = (Chunk(0, (ids[0],), (1.0,)), Chunk(0, (ids[1],), (1.0,)))
        return Generation(str(ids[0]), tuple(ids), chunks, 1.0 + threshold)


class _Logits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.arange(10.0), requires_grad=False)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=4096))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1).clone())

    device = torch.device("cpu")


def once(kind: Literal["drop", "different"], prompts: int, seed: int, confidence: float = 0.95) -> Calibration:
    """One calibration at an allowed loss of 1%."""
    model = FakeModel(seed, accuracy=0.9 if kind == "drop" else 1.0)
    task = Task("simulated", tuple(Question(str(i), str(RIGHT)) for i in range(prompts)), grader_named("exact"), 4)
    policies = {f"{t}": ConfAdapt(t) for t in TRUE_LOSS}
    return calibrate({"adapted": model}, task, policies, Allowed(kind, 0.01), confidence=confidence, batch_size=prompts)


def is_broken(kind: str, found: Calibration) -> bool:
    if found.chosen is None:
        return False
    loss = TRUE_LOSS[float(found.chosen.label)]
    # Where the original is wrong, nothing can be lost. The loss is therefore multiplied by the original's accuracy.
    return loss * (0.9 if kind == "drop" else 1.0) > 0.01


def simulate(kind: Literal["drop", "different"], prompts: int, seeds: Sequence[int]) -> dict[str, Any]:
    """How often the promise is broken, and what is chosen."""
    chosen: dict[str, int] = {}
    broken = 0
    for seed in seeds:
        found = once(kind, prompts, seed)
        label = found.chosen.label if found.chosen else "none"
        chosen[label] = chosen.get(label, 0) + 1
        broken += is_broken(kind, found)
    return {"kind": kind, "prompts": prompts, "repetitions": len(seeds), "broken": broken, "chosen": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    a = parser.parse_args()
    kinds: tuple[Literal["drop", "different"], ...] = ("different", "drop")
    for kind in kinds:
        for prompts in (400, 1500, 3000):
            print(json.dumps(simulate(kind, prompts, range(a.repetitions))), flush=True)


if __name__ == "__main__":
    main()
