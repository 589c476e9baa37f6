"""The keyword arguments of `mt.adapt`, for editors and type checkers. A test compares them with `config.AdaptConfig`."""

from typing import Literal, TypedDict

from .config import PathOrName


class AdaptOptions(TypedDict, total=False):
    """The keyword arguments of `mt.adapt` besides model, data and output: the other fields of `AdaptConfig`."""

    method: Literal["full", "lora", "gated"]
    rank: int
    layers: str | None
    head_rank: int
    masks: Literal["vector", "noise"]
    start_from: PathOrName | None
    quantize: Literal["none", "int8", "nf4"]
    minutes: float | None
    steps: int | None
    batch_size: int
    gradient_accumulation: int
    max_length: int
    pack: bool
    join_share: float
    validation_share: float
    k_max: int
    k_schedule: Literal["random", "fixed"]
    k_growth: float
    blocks_per_row: int
    train_on: Literal["response", "all"]
    labels: Literal["auto", "online", "data"]
    teacher: Literal["hard", "soft"]
    loss_until: Literal["end", "first-disagreement"]
    loss_weights: Literal["even", "reach"]
    next_token_weight: float
    free_directions: float
    max_drift: float | None
    optimizer: Literal["adamw", "muon"]
    learning_rate: float | None
    weight_decay: float
    warmup: float
    responses: Literal["greedy", "sampled", "mixed"]
    temperature: float
    max_new_tokens: int
    responses_from: str | None
    rewrite_responses: bool
    seed: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    device: str
    shard: bool
    device_map: Literal["auto"] | None
    evaluate_every: int | None
    patience: int | None
    report_to: str
    checkpoint_every: int
    resume: bool
    overwrite: bool
    trust_remote_code: bool
