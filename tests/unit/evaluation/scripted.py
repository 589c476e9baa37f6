"""Scripted models, whose answers are written in the test."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from multitoken.decoding.records import Chunk
from multitoken.models.generation import Generation

Script = Mapping[tuple[str, str], Sequence[Sequence[int]]]
"""(policy name, prompt) -> the ids of each chunk."""


class ScriptedLM(torch.nn.Module):
    """The "Hugging Face model" inside a `ScriptedModel`. After every prefix, its logits are the given ones."""

    def __init__(self, logits: Sequence[float] = (0.0,) * 10, positions: int = 64) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float64), requires_grad=False)
        text_config = SimpleNamespace(max_position_embeddings=positions)
        self.config = SimpleNamespace(get_text_config=lambda: text_config)
        self.device = torch.device("cpu")
        self.forwards: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.forwards += input_ids.tolist()
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1).clone())


class ScriptedModel:
    """Answers by the script and records every call. A forward pass takes 1 / `speed` seconds.

    A prompt of n letters has the ids 1 to n. The text of an answer is its ids, joined by spaces.
    """

    def __init__(
        self, script: Script, *, k: int | None = None, speed: float = 1.0, hf: ScriptedLM | None = None
    ) -> None:
        self.hf = hf if hf is not None else ScriptedLM()
        self.mtp = SimpleNamespace(k=k, mask_token_id=9) if k is not None else None
        self.calls: list[tuple[str, str, int]] = []
        self.samplings: list[dict[str, Any]] = []
        self._script, self._speed = script, speed

    def encode(self, prompt: str) -> list[int]:
        if "\x00" in prompt:
            raise ValueError("a prompt with a zero byte")
        return list(range(1, len(prompt) + 1))

    def generate(self, prompt: Any, *, policy: Any, max_new_tokens: int, adaptive: bool, **sampling: Any) -> Any:
        assert not adaptive, "tokens per step must not depend on the machine"
        if isinstance(prompt, list):
            return [
                self.generate(p, policy=policy, max_new_tokens=max_new_tokens, adaptive=adaptive, **sampling)
                for p in prompt
            ]
        self.calls.append((policy.name, prompt, max_new_tokens))
        self.samplings.append(sampling)
        chunks = tuple(Chunk(0, tuple(ids), (0.9,) * len(ids)) for ids in self._script[policy.name, prompt])
        ids = tuple(i for chunk in chunks for i in chunk.token_ids)
        return Generation(" ".join(map(str, ids)), ids, chunks, len(chunks) / self._speed)
