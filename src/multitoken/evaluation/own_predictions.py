"""How sure a model is of its own words: it writes greedily, then reads what it wrote in one pass a response.

Shapes: N tokens of a response, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multitoken.decoding.policies import NextToken
from multitoken.models.model import Model

ROWS = 32  # responses written side by side


@dataclass(frozen=True)
class OwnPredictions:
    """One response. For each of its N tokens (EOS included), what the model predicted there: the entropy of its
    next-token distribution in nats, and the probability that it gave to the token it then wrote."""

    entropies: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.entropies) == len(self.probabilities) > 0


def own_predictions(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[OwnPredictions]:
    """The model's predictions along its own greedy response to each prompt (token ids), in the prompts' order.

    `progress(done, total)` counts tokens; those that an early end leaves unwritten count as done.
    Raises `DecodingError` for a prompt that is empty or leaves no room for `max_new_tokens`.
    """
    # Long ones first: rows of a batch are alike in length, and what does not fit in memory fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: dict[int, OwnPredictions] = {}
    for start in range(0, len(order), ROWS):
        batch = order[start : start + ROWS]
        responses: list[list[int]] = [[] for _ in batch]
        written = 0
        chunks = model.decoder.decode([prompts[i] for i in batch], policy=NextToken(), max_new_tokens=max_new_tokens)
        for chunk in chunks:
            responses[chunk.row] += chunk.token_ids
            written += len(chunk.token_ids)
            if progress is not None:
                progress(start * max_new_tokens + written, len(order) * max_new_tokens)
        found |= {i: _reread(model, prompts[i], response) for i, response in zip(batch, responses, strict=True)}
        if progress is not None:
            progress((start + len(batch)) * max_new_tokens, len(order) * max_new_tokens)
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def _reread(model: Model, prompt: Sequence[int], response: Sequence[int]) -> OwnPredictions:
    """One row at a time: its logits [N, V] are the largest thing here, and there is no padding to get wrong."""
    ids = torch.tensor([[*prompt, *response]], device=model.hf.device)
    logits: Tensor = model.hf(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits
    log_p = logits[0, -len(response) - 1 : -1].float().log_softmax(-1)
    # p log p is 0 where p is: masked out, as 0 * -inf is no number.
    entropies = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)
    probabilities = log_p.gather(-1, ids[0, len(prompt) :, None])[:, 0].exp()
    return OwnPredictions(tuple(entropies.tolist()), tuple(probabilities.tolist()))
