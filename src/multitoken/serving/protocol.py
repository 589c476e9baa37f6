"""The request bodies of the API. An error names each field that is not supported; nothing is silently ignored."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from multitoken.errors import nearest

_NULL: tuple[Any, ...] = (None,)
# Fields of OpenAI's API that are not supported. The values listed here are accepted: they ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": _NULL,
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": _NULL,
    "parallel_tool_calls": (None, True),
    "prediction": _NULL,
    "reasoning_effort": _NULL,
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": _NULL,
    "web_search_options": _NULL,
}
_OF_NO_EFFECT = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def _no_zero_in_disguise(temperature: float) -> float:
    """In float32 a smaller number is 0. The division by it would end the pass, and with it the other rows' answers."""
    if 0 < temperature < 1e-30:
        raise ValueError("expected 0 (greedy), or at least 1e-30")
    return temperature


Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_no_zero_in_disguise)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MtpOptions(BaseModel):
    """How this request is decoded. Options that are left out take the server's defaults."""

    model_config = _STRICT

    policy: Literal["exact", "confadapt", "static", "next-token"] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    k: int | None = Field(None, ge=1)
    branches: int | None = Field(
        None, ge=0, le=32, description="Further blocks per step, after drafts that may be refused. For exact only."
    )
    adaptive: bool = Field(True, description="Feed the fastest number of masks, if that changes no output. false: all.")
    confidences: bool = Field(False, description="Add the text and the confidence of each token to the choices.")


class StreamOptions(BaseModel):
    model_config = _STRICT

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationBody(BaseModel):
    """The fields of both endpoints."""

    model_config = _STRICT

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="Default: as many as the server allows.")
    n: int | None = Field(1, ge=1)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    temperature: Temperature | None = Field(None, description="Greedy at 0, or if nothing asks for sampling.")
    top_p: Share | None = None
    top_k: int | None = Field(None, ge=1)
    min_p: Share | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0)
    return_token_ids: bool = False
    mtp: MtpOptions = Field(default_factory=lambda: MtpOptions.model_validate({}))

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair: valid in JSON, but not for a tokenizer
            raise ValueError(f"the body contains a string that is not valid Unicode: {error}") from error
        for name in [name for name in _UNSUPPORTED if name in body and name not in cls.model_fields]:
            # In Python `1 == True`; in JSON they are different values.
            if not any(body[name] == plain and type(body[name]) is type(plain) for plain in _UNSUPPORTED[name]):
                raise ValueError(f"{name} is not supported; leave it out")
        body = {
            k: v for k, v in body.items() if k not in _OF_NO_EFFECT and (k not in _UNSUPPORTED or k in cls.model_fields)
        }
        for name in body:
            if name not in cls.model_fields:
                raise ValueError(f"{name!r} is not a field of this request{nearest(name, cls.model_fields)}")
        return body

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None for no logprobs."""
        raise NotImplementedError


class CompletionBody(GenerationBody):
    endpoint: ClassVar[str] = "completions"

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]


class ContentPart(BaseModel):
    model_config = _STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message for the chat template. Its other fields (a name, tool calls) are passed to the template too."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[ContentPart] | None = None

    def for_template(self) -> dict[str, Any]:
        message = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        return message


class ChatBody(GenerationBody):
    endpoint: ClassVar[str] = "chat/completions"

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
