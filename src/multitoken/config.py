"""All options of `multitoken adapt`, in one typed record. The CLI, `mt.adapt` and recipes use the same option names.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from multitoken.errors import UsageError, nearest

DEFAULT_MINUTES = 10.0
METHODS = ("gated", "lora", "full")
# Defaults that depend on the method (docs/defaults.md). The first ones are of both methods that change the model itself.
_CHANGING = {"next_token_weight": 10.0, "free_directions": 0.5, "batch_size": 4, "blocks_per_row": 24}
BY_METHOD: dict[str, dict[str, Any]] = {
    "gated": {"optimizer": "muon", "next_token_weight": 0.0},
    "lora": {"optimizer": "muon"} | _CHANGING,
    "full": {"optimizer": "adamw"} | _CHANGING,
}


def _expanded(value: Any) -> Any:
    """A path as text, without the `~` that a shell leaves in `--output=~/folder` and that recipes may hold."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return str(Path(text).expanduser()) if isinstance(text, str) and text.startswith("~/") else text


PathOrName = Annotated[str, BeforeValidator(_expanded)]


class AdaptConfig(BaseModel):
    """The options of one adaptation. Make one with `make_config`, which turns invalid values into a `UsageError`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    model: PathOrName = Field(min_length=1)
    """The model to adapt: a folder or a Hub name."""
    data: PathOrName = Field(min_length=1)
    """Training data: a .jsonl, .json, .parquet, .txt or .md file, a folder, or a dataset NAME:CONFIG@SPLIT (last two optional)."""
    output: Annotated[Path, BeforeValidator(_expanded)]
    """The folder that the adapted model is written to."""
    method: Literal["full", "lora", "gated"] = "gated"
    """What is trained. gated: a low-rank adapter that acts at mask tokens only, so that nothing of the original model is lost.
    lora: a low-rank adapter that is merged into the weights at the end. full: the weights themselves."""
    rank: int = Field(default=64, ge=1)
    """Rank of the adapter (methods gated and lora)."""
    layers: str | None = None
    """The layers that the adapter acts in: a regular expression to search for in their names (all linear layers, if not
    given)."""
    head_rank: int = Field(default=128, ge=0)
    """Rank of the draft head, which chooses the tokens of a block from left to right. 0: no draft head; all positions of a block
    are chosen independently."""
    masks: Literal["vector", "noise"] = "vector"
    """What method gated feeds at the positions of mask tokens. vector: one vector, which is trained. noise: random tokens, so
    that SGLang can serve the adapter as an UNO adapter (docs/uno.md)."""
    start_from: PathOrName | None = None
    """Start method gated from the adapter in this folder and its draft head, instead of untrained ones. They need the same rank
    or a smaller one, and the same base (or an earlier version of it)."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Hold the frozen model of method gated in 8-bit weights (int8, torchao) or in 4-bit weights (nf4, bitsandbytes) while the
    adapter trains."""

    minutes: float | None = Field(default=None, gt=0)
    """How long to train, in minutes of wall-clock time (10 if neither minutes nor steps are given)."""
    steps: int | None = Field(default=None, ge=1)
    """How long to train, in optimizer steps. Only a run of a given number of steps is repeatable bit by bit."""
    batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass (methods lora and full: 4, if not given)."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes whose gradients are added up for one optimizer step."""
    max_length: int = Field(default=1024, ge=4)
    """The most tokens of prompt and response together; longer samples are cut."""
    pack: bool = False
    """Pack short samples into shared rows as long as the longest sample. Samples in a row do not see each other, and
    blocks_per_row counts for the whole row."""
    join_share: float = Field(default=0.0, ge=0, le=1)
    """Share of steps in which samples are joined one after the other, as turns of one conversation, to train drafts after long
    prompts."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts that is held out from training and used for validation."""

    k_max: int = 16
    """The longest block: the number of tokens predicted by one forward pass."""
    k_schedule: Literal["random", "fixed"] = "random"
    """How long training blocks are. random: drawn from 2 to the longest. fixed: always the longest, which is k_max once blocks have
    grown (k_growth)."""
    k_growth: float = Field(default=1.0, ge=0, le=1)
    """Share of the run over which the longest block grows from 4 to k_max; 0: it is k_max from the start."""
    blocks_per_row: int = Field(default=8, ge=1)
    """Blocks packed after the real tokens of one row (methods lora and full: 24, if not given)."""
    train_on: Literal["response", "all"] = "response"
    """The tokens that blocks may predict. response: those of the response. all: those of the prompt as well."""

    labels: Literal["auto", "online", "data"] = "auto"
    """The tokens that a block is trained to predict. online: the teacher's predictions on the student's own block. data: the
    response's tokens. auto: the response's tokens where the original model wrote the response greedily; otherwise the original
    model's probabilities after the response's tokens."""
    teacher: Literal["hard", "soft"] = "hard"
    """The teacher's labels. hard: its most likely token. soft: its whole distribution (KL divergence)."""
    loss_until: Literal["end", "first-disagreement"] = "end"
    """How far into a block the loss counts. end: to its end (the paper). first-disagreement: to the first token that is not its
    label."""
    loss_weights: Literal["even", "reach"] = "reach"
    """How the positions of a block are weighted in the loss. even: equally. reach: each with the probability that all positions
    before it are right."""
    next_token_weight: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the original model's next-token predictions on real tokens (methods lora and full: 10, if
    not given). The weight rises as the learning rate falls, up to ten times as much."""
    free_directions: float = Field(default=1.0, gt=0, le=1)
    """Share of the input directions of each layer in which its weights change freely: those that real tokens use least. In the
    other directions they change the less, the more real tokens use them. Less than 1 also leaves norms and the vocabulary's
    matrices as they are. 1: every weight changes freely, as in the paper (methods lora and full: 0.5, if not given)."""
    max_drift: float | None = Field(default=None, gt=0, lt=1)
    """Share of next tokens on unseen prompts that may differ from the original's (methods lora and full). next_token_weight is
    doubled after each validation that finds more."""

    optimizer: Literal["adamw", "muon"] = "muon"
    """The optimizer; muon orthogonalises the updates of weight matrices (method full: adamw, if not given)."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The highest learning rate of the run (if not given, chosen by method, optimizer and the model's width)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; the mask token's own row never decays."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run in which the learning rate rises from zero."""

    responses: Literal["greedy", "sampled", "mixed"] = "mixed"
    """How the original model writes the responses that are missing in the data. greedy: the likeliest
    token each time. sampled: at the temperature. mixed: every second response is sampled."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampled responses."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest response that the original model writes."""
    responses_from: str | None = None
    """An OpenAI-compatible server that runs the original model and writes the missing responses, such as
    http://localhost:8000/v1. Append "#NAME" if it serves several models."""
    rewrite_responses: bool = False
    """Let the original model write every response, even where the data has one."""

    seed: int = Field(default=0, ge=0)
    """Seed of every random draw of the run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the computation and of a frozen model's weights; weights that are trained are always float32. auto: float32 on
    a CPU, bfloat16 elsewhere. float16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third slower."""
    device: str = "auto"
    """Where to compute: auto (an accelerator if there is one), cpu, mps, cuda, cuda:N, xpu or xpu:N."""
    shard: bool = False
    """Split the model over the processes of a run (FSDP2): with method full the weights, gradients and optimizer states, with
    method gated the frozen model. Needs torchrun, or another launcher, with several processes."""
    device_map: Literal["auto"] | None = None
    """Spread the frozen model of method gated over several devices and memory (auto, by accelerate)."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between two validations on unseen prompts (a tenth of the run, if not given)."""
    patience: int | None = Field(default=None, ge=1)
    """Stop the run after this many validations in which the expected tokens per step were no better than before."""
    report_to: str = "tensorboard"
    """Where the log goes: any reporter of transformers' Trainer, several separated by commas, or none."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints that a run can be resumed from."""
    resume: bool = False
    """Continue from the last complete checkpoint in the output folder."""
    overwrite: bool = False
    """Replace what the output folder holds."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with the checkpoint."""

    @model_validator(mode="before")
    @classmethod
    def _fill_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("minutes") is None and values.get("steps") is None:
            return {**values, "minutes": DEFAULT_MINUTES}
        return values

    @model_validator(mode="before")
    @classmethod
    def _fill_by_method(cls, values: Any) -> Any:
        if not isinstance(values, dict) or (method := values.get("method", "gated")) not in METHODS:
            return values  # the fields' own checks give a better message
        return BY_METHOD[method] | {
            name: value for name, value in values.items() if name not in BY_METHOD[method] or value is not None
        }

    @field_validator("k_max")
    @classmethod
    def _check_k_max(cls, k_max: int) -> int:
        if k_max < 2:
            raise ValueError(f"k_max must be at least 2 (one next token and one mask), found {k_max}")
        return k_max

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
            raise ValueError(f"device must be auto, cpu, mps, cuda, cuda:N, xpu or xpu:N, found {device!r}")
        return device

    @field_validator("responses_from")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"responses_from must be a URL such as http://localhost:8000/v1, found {url!r}")
        return url

    @model_validator(mode="after")
    def _check_together(self) -> "AdaptConfig":
        if self.minutes is not None and self.steps is not None:
            raise ValueError(f"give minutes or steps, not both: found minutes={self.minutes:g} and steps={self.steps}")
        if self.resume and self.overwrite:
            raise ValueError(
                "resume continues what the output folder holds and overwrite discards it: give one of them"
            )
        if self.overwrite and self.method == "gated" and _holds(self.output, self.model):
            raise ValueError(
                f"overwrite would remove {self.model}, the model that the adapter needs: choose an output that does not hold it"
            )
        if self.overwrite and _holds(self.output, self.data):
            raise ValueError(f"overwrite would remove {self.data}, the training data: choose another output")
        # An option that would have no effect is refused: whoever sets it expects one.
        if self.pack and self.join_share:
            raise ValueError(
                f"join_share={self.join_share:g} joins rows of one sample each, and pack puts several into a row: "
                "give one of them"
            )
        if self.temperature != 1.0 and self.responses == "greedy":
            raise ValueError(
                f"temperature={self.temperature:g} needs responses=sampled or mixed: greedy responses have none"
            )
        if self.method == "full" and (self.rank != 64 or self.layers is not None):
            raise ValueError("rank and layers belong to method=gated or method=lora, found method=full")
        if self.method != "gated" and self.start_from is not None:
            raise ValueError(
                f"start_from={self.start_from} continues an adapter, which only method=gated trains, found method={self.method}: "
                "to train a whole model further, give it as the model and leave start_from out"
            )
        if self.method != "gated" and self.device_map is not None:
            raise ValueError(f"device_map belongs to method=gated, whose model is frozen, found {self.method}")
        if self.shard and self.device_map is not None:
            raise ValueError(
                "shard splits the model over processes and device_map over one process's devices: give one of them"
            )
        if self.shard and self.method == "full" and self.optimizer == "muon":
            raise ValueError("shard needs optimizer=adamw for method=full: muon works on whole matrices")
        if self.shard and self.method == "lora":
            raise ValueError(
                "shard belongs to method=full or gated: a lora adapter is merged into whole weights; use method=gated"
            )
        if self.shard and self.quantize != "none":
            raise ValueError(f"shard cannot split {self.quantize} weights: leave one of the two out")
        if self.method != "gated" and self.masks != "vector":
            raise ValueError(f"masks={self.masks} belongs to method=gated, found {self.method}")
        if self.method != "gated" and self.quantize != "none":
            raise ValueError(
                f"quantize belongs to method=gated, which does not change the weights, found {self.method}"
            )
        if self.method == "gated" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing would lose the prefix that method=gated keeps in a cache, and only the activations "
                "of mask tokens could be saved; lower batch_size or blocks_per_row instead"
            )
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience counts validations on unseen prompts: it needs a validation_share above 0")
        if self.method == "gated" and (self.next_token_weight or self.max_drift is not None):
            option = "next_token_weight" if self.next_token_weight else "max_drift"
            raise ValueError(f"{option} needs method=full or lora: a gated adapter cannot move next-token predictions")
        if self.method == "gated" and self.free_directions != 1:
            raise ValueError(
                f"free_directions={self.free_directions:g} needs method=full or lora: a gated adapter acts at masks only"
            )
        if self.max_drift is not None and not self.validation_share:
            raise ValueError(
                "max_drift is checked by validation on unseen prompts: it needs a validation_share above 0"
            )
        if self.teacher == "soft" and self.labels == "data":
            raise ValueError("teacher=soft needs labels=online: with labels=data there is no teacher pass")
        return self


def _holds(folder: Path, path: str) -> bool:
    """Whether `path` is this folder or something in it."""
    return Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve())


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file; relative paths in it are relative to the working directory.

    Raises `UsageError` for a file that cannot be read, is not a YAML mapping, or holds an unknown key.
    """
    import yaml

    path = Path(path)
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe {path}: {error}; expected a YAML file of options") from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        found = "nothing" if recipe is None else f"a {type(recipe).__name__}"
        raise UsageError(f"recipe {path} holds {found}; expected options as `name: value`, for example `k_max: 16`")
    options: dict[str, Any] = {}
    for name, value in recipe.items():
        field = str(name).replace("-", "_")  # as on the command line
        if field not in AdaptConfig.model_fields:
            raise UsageError(f"recipe {path} has unknown option {name!r}{nearest(field, AdaptConfig.model_fields)}")
        if field in options:
            raise UsageError(f"recipe {path} has the option {field!r} twice, with a dash and with an underscore")
        options[field] = value
    return options


def make_config(recipe: Mapping[str, Any] | None = None, **options: Any) -> AdaptConfig:
    """Defaults, overridden by the recipe, overridden by the options that are not None.

    `steps` among the options also replaces the recipe's `minutes`, and the other way round.
    Raises a `UsageError` that names every invalid value, what was expected, and what the option does.
    """
    given = {name: value for name, value in options.items() if value is not None}
    values = dict(recipe or {})
    if "steps" in given or "minutes" in given:
        values.pop("steps", None)
        values.pop("minutes", None)
    try:
        return AdaptConfig.model_validate(values | given)
    except ValidationError as error:
        problems = [_in_plain_words(dict(problem)) for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(problems)) from error


def _in_plain_words(problem: Mapping[str, Any]) -> str:
    message = problem["msg"]
    if problem["type"] == "value_error":
        return message.removeprefix("Value error, ")
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"unknown option {name!r}{nearest(name, AdaptConfig.model_fields)}"
    meaning = AdaptConfig.model_fields[name].description
    if problem["type"] == "missing":
        return f"{name} is missing. {meaning}"
    return f"{name} is {problem['input']!r}; {re.sub('^(Input|String) ', 'it ', message)}. {meaning}"
