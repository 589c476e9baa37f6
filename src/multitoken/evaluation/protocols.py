"""What the evaluation needs from the things it measures. `models.Model` provides it, and so do scripted fakes in tests."""

from collections.abc import Sequence
from typing import Any, Protocol

Prompt = str | list[dict[str, Any]]


class ChunkLike(Protocol):
    """The tokens that one forward pass emitted, their confidences and their piece of the text."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def confidences(self) -> tuple[float, ...]: ...
    @property
    def text(self) -> str: ...


class GenerationLike(Protocol):
    """One answer. `chunks[0]` is the prefill's. `seconds` is the synchronised time of the whole decoding."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def chunks(self) -> Sequence[ChunkLike]: ...
    @property
    def forward_passes(self) -> int: ...
    @property
    def tokens_per_step(self) -> float: ...
    @property
    def seconds(self) -> float: ...


class ModelLike(Protocol):
    """A loaded model. `mtp` is None for a model without a mask token, which decodes one token per step."""

    @property
    def hf(self) -> Any: ...
    @property
    def mtp(self) -> Any: ...
    def encode(self, prompt: Any) -> list[int]: ...
    def generate(
        self,
        prompt: Any,
        *,
        policy: Any,
        max_new_tokens: int,
        adaptive: bool,
        batch_size: int | None = None,
        **sampling: Any,
    ) -> Any: ...
