"""One answer, as `Model.generate` returns it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from multitoken.decoding.records import Chunk


@dataclass(frozen=True)
class Generation:
    """One answer. `token_ids` are the emitted ids, EOS included; `chunks` has one entry per forward pass, the prefill's
    first. `seconds` is the wall-clock time from the call to the end of this answer. `logprobs`, if requested: the model's own
    log-probability of each token, before temperature and processors."""

    text: str
    token_ids: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    seconds: float
    logprobs: tuple[float, ...] | None = None

    @classmethod
    def of(cls, chunks: Iterable[Chunk], seconds: float, *, logprobs: bool = False) -> "Generation":
        """The answer made up of these chunks, each with its text. logprobs: compute them from the chunks' logits, which are then
        dropped."""
        chunks = tuple(chunks)
        ids = tuple(i for chunk in chunks for i in chunk.token_ids)
        found = None
        if logprobs:
            found = tuple(value for chunk in chunks for value in _logprobs(chunk))
            chunks = tuple(replace(chunk, logits=None, scores=None) for chunk in chunks)
        return cls("".join(chunk.text for chunk in chunks), ids, chunks, seconds, found)

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """ "stop": it ended by itself or at a stop string; "length": it reached the requested length; None: it is not
        finished."""
        finish = self.chunks[-1].finish if self.chunks else None
        return None if finish is None else "length" if finish == "length" else "stop"

    @property
    def forward_passes(self) -> int:
        return len(self.chunks)

    @property
    def tokens_per_step(self) -> float:
        """(tokens - those of the prefill pass) / forward passes after the prefill; 0.0 if there was only the prefill."""
        steps = len(self.chunks) - 1
        return (len(self.token_ids) - len(self.chunks[0].token_ids)) / steps if steps else 0.0

    @property
    def passes_said(self) -> str:
        """What it took, in words. Without the last ones, readers would divide the first number by the second."""
        tokens, passes = len(self.token_ids), self.forward_passes
        said = f"{tokens} token{'s' * (tokens != 1)} in {passes} forward pass{'es' * (passes != 1)}"
        return said + (f" ({self.tokens_per_step:.2f} tokens per step after the prompt's pass)" if passes > 1 else "")


def _logprobs(chunk: Chunk) -> list[float]:
    assert chunk.logits is not None
    scores = torch.log_softmax(chunk.logits.float(), -1)
    return scores.gather(1, torch.tensor(chunk.token_ids, device=scores.device)[:, None])[:, 0].tolist()
