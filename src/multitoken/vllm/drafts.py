"""The draft head in vLLM: `decoding/draft_head.py` for all requests of a step at once.

vLLM gives a sampler only logits. The hidden states that the head also needs are recorded where the model computes the
logits from them.

Shapes: B requests, J masks (of the request that has most), N rows, D hidden, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from multitoken.decoding.draft_head import Drafter, DraftHead, unit
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.head_file import head_of
from multitoken.errors import ModelError, UnsupportedModelError

from .shares import local_tokens, of_all_ranks

_PART = 4096  # tokens embedded at a time


class DraftsInVllm:
    """A draft head, prepared for one of vLLM's models. Raises `ModelError` if it does not fit the model."""

    def __init__(self, model: nn.Module, file: Path) -> None:
        embedding, output = _ends_of(model)
        try:
            head = head_of(load_file(file), int(embedding.embedding_dim), str(file))
        except DecodingError as error:
            raise ModelError(str(error)) from error
        device = next(model.parameters()).device
        head = head.to(device).eval().requires_grad_(False)
        self._drafter = _drafter(head, embedding, output, device)
        self._hidden: Tensor | None = None
        compute: Callable[..., Any] = model.compute_logits  # pyright: ignore[reportAssignmentType]

        def noting(hidden_states: Tensor, *args: Any, **named: Any) -> Any:
            self._hidden = hidden_states
            return compute(hidden_states, *args, **named)

        model.compute_logits = noting  # pyright: ignore[reportAttributeAccessIssue]

    def draft(
        self,
        raw: Tensor,
        sure: Tensor,
        rows: Tensor,
        first: Tensor,
        *,
        warp: Callable[[Tensor], Tensor] | None,
        keys: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and confidences [B, J]. raw [N, V]: the logits. sure [N]: the probability of the likeliest token. rows
        [B, J]: the rows of the masks. first [B]: the tokens at the anchors. warp, keys [B, J]: as
        in `Drafter.draft`."""
        assert self._hidden is not None, "logits were computed from hidden states"
        drafts = self._drafter.draft(self._hidden[rows], raw[rows], sure[rows], first, warp=warp, keys=keys)
        return drafts.tokens, drafts.confidences


@torch.no_grad()
def _drafter(head: DraftHead, embedding: Any, output: Any, device: torch.device) -> Drafter:
    """Compute the two tables with the layers' own methods, because the weights may be stored in a packed format."""
    ids = local_tokens(embedding, device)
    method = embedding.quant_method
    method = getattr(method, "method", method)  # in a gated model: the method below the one with the mask vector
    tokens = torch.cat([F.linear(unit(method.embedding(embedding, part)), head.token) for part in ids.split(_PART)])
    moved = output.quant_method.apply(output, head.up.t().to(output.params_dtype).contiguous())
    columns = of_all_ranks(embedding, moved, 1).t().float().contiguous()
    return Drafter(head, of_all_ranks(embedding, tokens, 0).contiguous(), columns)


def _ends_of(model: nn.Module) -> tuple[Any, Any]:
    """vLLM's input embedding and output matrix, which may be the same."""
    inputs = [m for m in model.modules() if type(m) is VocabParallelEmbedding]
    outputs = [m for m in model.modules() if isinstance(m, ParallelLMHead)] or [getattr(model, "lm_head", None)]
    if len(inputs) != 1 or len(outputs) != 1 or outputs[0] is None:
        raise UnsupportedModelError(
            f"vLLM's {type(model).__name__} has {len(inputs)} embeddings and {len(outputs)} output matrices; a draft head "
            "needs one of each: adapt the model with --head-rank 0"
        )
    return inputs[0], outputs[0]
