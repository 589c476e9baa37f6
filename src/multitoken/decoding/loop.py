"""The one decode loop: prompts in, chunks out, until every row is finished."""

from collections.abc import Iterator, Sequence

from transformers import LogitsProcessorList, PreTrainedModel

from .attention import AttentionRule
from .cache import SlotCache
from .policies import NextToken, Policy, with_trained_k
from .records import Chunk, DecodingError
from .sampling import Sampling
from .step import Row, State, drop_finished, step


class Decoder:
    """Decodes with one model. `mask_id=None` (or `trained_k=1`): an ordinary model, NextToken only."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_id: int | None = None,
        trained_k: int = 1,
        eos_ids: Sequence[int] = (),
        processors: LogitsProcessorList | None = None,
    ) -> None:
        self.model = model
        self.mask_id = mask_id
        self.trained_k = trained_k if mask_id is not None else 1
        self.eos_ids = frozenset(eos_ids)
        self.processors = processors or LogitsProcessorList()
        config = model.config.get_text_config()
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self._layers: int = config.num_hidden_layers
        self._rule = AttentionRule(model)

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        policy: Policy,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        first_row: int = 0,
    ) -> State:
        """Check everything and make the state before the first step. `first_row` numbers the rows (and their noise)."""
        policy = with_trained_k(policy, self.trained_k)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise DecodingError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number of at least 1")
        if not prompts:
            raise DecodingError("there is no prompt; give at least one")
        for i, prompt in enumerate(prompts):
            self._check_prompt(i, prompt, max_new_tokens)
        # At most k - 1 drafts and k - 1 masks stand behind the last real token, and none beyond the last emitted one.
        capacity = max(map(len, prompts)) + max_new_tokens
        self._rule.grow(capacity)
        rows = [Row(first_row + i, list(prompt), max_new_tokens, policy) for i, prompt in enumerate(prompts)]
        return State(
            self.model,
            self._rule,
            SlotCache(self._layers, capacity),
            rows,
            self.mask_id,
            self.eos_ids,
            self.max_positions,
            self.processors,
            sampling,
        )

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        policy: Policy | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        first_row: int = 0,
    ) -> Iterator[Chunk]:
        """Chunks as they come, all rows side by side. Errors in the arguments are raised here, before any work."""
        state = self.start(
            prompts,
            policy=NextToken() if policy is None else policy,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            first_row=first_row,
        )
        return _run(state)

    def _check_prompt(self, i: int, prompt: Sequence[int], max_new_tokens: int) -> None:
        if not len(prompt):
            raise DecodingError(f"prompt {i} is empty; it needs at least one token")
        vocabulary: int = self.model.config.get_text_config().vocab_size
        for token in prompt:
            if token == self.mask_id:
                raise DecodingError(
                    f"prompt {i} contains the mask token (id {token}), which only the decoder may feed; remove it"
                )
            if not 0 <= token < vocabulary:
                raise DecodingError(f"prompt {i} contains token id {token}; the model knows 0 to {vocabulary - 1}")
        if self.max_positions is not None and len(prompt) + max_new_tokens > self.max_positions:
            raise DecodingError(
                f"prompt {i} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, together more than the "
                f"model's {self.max_positions} positions; shorten the prompt or ask for at most "
                f"{max(0, self.max_positions - len(prompt))} tokens"
            )


def _run(state: State) -> Iterator[Chunk]:
    while state.rows:
        yield from step(state)
        drop_finished(state)
