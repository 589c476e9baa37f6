"""The proposer that vLLM requires for speculative decoding. The sampler decides what is fed (`private.take_over`)."""

from typing import Any

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

    def load_model(self, target_model: Any) -> None:
        """Nothing to load: the model drafts for itself."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Proposes nothing: vLLM asks only after steps that fed drafts. The sampler provides them after any step."""
        return [[] for _ in sampled_token_ids]
