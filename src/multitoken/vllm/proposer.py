"""What vLLM asks for the next step's draft tokens: here, the drafts that the sampler made, and masks behind them."""

from typing import Any

from torch import Tensor

from multitoken.errors import UsageError

from .plugin import settings_of


class Proposer:
    """vLLM's `custom_class` proposer."""

    def __init__(self, vllm_config: Any) -> None:
        settings = settings_of(vllm_config)
        number = vllm_config.speculative_config.num_speculative_tokens
        if number != settings.drafts:
            raise UsageError(
                f"speculative_config: num_speculative_tokens is {number}; expected {settings.drafts} for k = "
                f"{settings.k}. Leave speculative_config out: multitoken fills it in"
            )
        self._next: tuple[Tensor, Tensor] | None = None

    def load_model(self, target_model: Any) -> None:
        """Nothing to load: the model drafts for itself."""

    def take(self, ids: Tensor, number: Tensor) -> None:
        """ids [B, drafts], of which the first `number` [B] of each row are to be fed."""
        self._next = ids, number

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """In vLLM's form: lists, in the order of the batch."""
        if self._next is None:  # a step in which the sampler had nothing to do
            return [[] for _ in sampled_token_ids]
        ids, number = self._next
        self._next = None
        return [row[:n] for row, n in zip(ids.tolist(), number.tolist(), strict=True)]
