"""Everything that a training run needs, checked and prepared in the order in which mistakes can be detected."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, TrainingArguments

from multitoken.config import AdaptConfig
from multitoken.decoding.positions import position_limit
from multitoken.errors import ModelError, UsageError
from multitoken.models.loading import Loaded, load_causal_lm
from multitoken.models.placement import find_device, find_dtype, has_bf16, say_if_slow
from multitoken.models.prompts import eos_ids
from multitoken.models.selftest import check_blocks
from multitoken.processes import PATIENCE, Processes

from .dataset import DataReport, PreparedData, WriteAll, prepare_samples
from .joining import longest_join
from .methods import Adaptation, prepare
from .objective import Distillation, Objective
from .optimizer import default_rate
from .sharding import shard
from .sources import Record, read_records
from .stream import StreamOptions
from .teacher import response_writer

UNBOUNDED_STEPS = 10**8  # for a run given in minutes, which the clock ends


@dataclass(frozen=True)
class Setup:
    """A prepared run. `config` is what was asked for, adjusted to the model."""

    config: AdaptConfig
    loaded: Loaded
    base_hash: str
    way: Adaptation
    data: PreparedData
    distillation: Distillation
    stream: StreamOptions

    @property
    def validation_stream(self) -> StreamOptions:
        """The stream's options with the rows of one forward pass instead of those of one optimizer step."""
        return replace(self.stream, rows_per_step=self.config.batch_size)


def make_ready(
    config: AdaptConfig,
    work: Path,
    arguments: TrainingArguments,
    console: Console,
    wrap_writer: Callable[[WriteAll], WriteAll] = lambda write: write,
) -> Setup:
    """Load the model, choose the mask token, and prepare what trains and the data. `wrap_writer` may replace the teacher's
    writing.

    Raises `UsageError`, `DataError` or `ModelError`.
    """
    loaded = load_causal_lm(
        config.model,
        # A model that will be split may be larger than any single device.
        device="auto" if config.device_map else torch.device("cpu") if config.shard else arguments.device,
        device_map=config.device_map,
        # Weights that train are float32. A frozen model has the type of the computation.
        dtype=compute_dtype(config) if config.method != "full" else torch.float32,
        trust_remote_code=config.trust_remote_code,
        quantize=config.quantize,
    )
    if loaded.mtp is not None:
        more = (
            f", and add --start-from {config.model} to train its adapter further" if loaded.adapter is not None else ""
        )
        raise ModelError(
            f"{config.model} was adapted already (by method {loaded.mtp.method}): give the model that it was made from, "
            f"{loaded.mtp.base_name}, as the model{more}"
        )
    model = loaded.model
    base_hash = loaded.weight_hash
    records = list(read_records(config.data))
    way = prepare(loaded, config, map(_text_of, records))
    console.print(f"Mask token: {way.mask.describe()}.")
    check_blocks(model, way.mask.id)

    config = _within_positions(config, model, console)
    if config.learning_rate is None:
        width = int(model.config.get_text_config().hidden_size)
        rate = default_rate(config.method, config.optimizer, width, config.free_directions)
        config = config.model_copy(update={"learning_rate": rate})
    ends = eos_ids(model, loaded.tokenizer)
    write = wrap_writer(response_writer(model, loaded.tokenizer, way.mask.id, ends, config, work, base_hash, console))
    data = prepare_samples(records, loaded.tokenizer, way.mask.id, config, write, eos_ids=ends)
    console.print(f"Data: {data.report}. Training on {len(data.train)} samples.")
    for warning in data.warnings(config.validation_share):
        console.print(f"Warning: {warning}.", style="yellow", soft_wrap=True)
    if config.patience is not None and not data.validation:
        raise UsageError(
            f"patience is {config.patience}, but no prompt is left to validate on; give more than one prompt"
        )

    objective = _objective(config, data.report)
    if objective.labels == "data" and config.labels != "data":
        console.print(
            "Labels: the original model's probabilities after the responses' tokens."
            if objective.foreign
            else "Labels: the responses' own tokens, which the original model wrote; its probabilities where it sampled them."
        )
    distillation = Distillation(
        way.trained, way.passes, objective=objective, mask_id=way.mask.id, eos_ids=ends, drafter=way.head
    )
    return Setup(
        config,
        loaded,
        base_hash,
        way,
        data,
        shard(distillation, arguments.device, arguments.world_size)
        if config.shard
        else _placed(distillation, model, arguments.device),
        StreamOptions(
            seed=config.seed,
            rows_per_step=config.batch_size * config.gradient_accumulation * arguments.world_size,
            blocks=config.blocks_per_row,
            k_max=config.k_max,
            fixed_k=config.k_schedule == "fixed",
            growth=config.k_growth,
            train_on=config.train_on,
            pack=config.pack,
            join_share=config.join_share,
            join_room=longest_join(position_limit(model), config.k_max),
        ),
    )


def _placed(distillation: Distillation, model: PreTrainedModel, device: torch.device) -> Distillation:
    """On the device. If the model is spread over several devices, what trains stays on those of the layers it acts in."""
    spread = getattr(model, "hf_device_map", None)
    if spread is None or len(spread) == 1:
        return distillation.to(device)
    distillation.__dict__["hf_device_map"] = spread  # Trainer and accelerate then move nothing either
    distillation.eos_ids = distillation.eos_ids.to(device)
    return distillation


def training_arguments(config: AdaptConfig, work: Path) -> TrainingArguments:
    """The options as Trainer's arguments. Creating them also finds this process's rank among several.

    Raises `UsageError` for a type that the device cannot compute in, and for a reporter that is not available.
    """
    device = find_device(config.device)
    dtype = compute_dtype(config)
    several = Processes.here().number > 1
    if config.shard and not several:
        raise UsageError(
            "shard splits a model over several processes, found one; start it with torchrun --nproc-per-node N"
        )
    if dtype == torch.float16 and device.type == "cpu":
        raise UsageError("dtype is float16, which needs a GPU; use bfloat16 or float32 on a CPU")
    say_if_slow(dtype, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    evaluates = config.validation_share > 0
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=config.steps or UNBOUNDED_STEPS,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and several else None,
        ddp_timeout=int(PATIENCE.total_seconds()),
        seed=config.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.evaluate_every or UNBOUNDED_STEPS,  # else `Looks` requests them by the share of the run
        metric_for_best_model="eval_tokens_per_step" if config.patience is not None else None,
        greater_is_better=True if config.patience is not None else None,
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        logging_steps=10,
        logging_first_step=True,
        report_to=[name for name in reporters(config) if name != "tensorboard"] or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are several processes, never one process's DataParallel
    return arguments


def compute_dtype(config: AdaptConfig) -> torch.dtype:
    """What `config.dtype` means on `config.device`. Raises `UsageError` for a type or a device that is not available."""
    device = find_device(config.device)
    if config.dtype != "auto":
        return find_dtype(config.dtype, device)
    return torch.bfloat16 if device.type != "cpu" and has_bf16(device) else torch.float32


def reporters(config: AdaptConfig) -> list[str]:
    """The names in `report_to`. Raises `UsageError` for one that Trainer does not know or that is not installed."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    names = [name.strip() for name in config.report_to.split(",") if name.strip()]
    if names in ([], ["none"]):
        return []
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        raise UsageError(f"report_to is {config.report_to!r}: {error}") from error
    return names


def _text_of(record: Record) -> str:
    parts = (record.messages, record.tools, record.prompt, record.response, record.text)
    return " ".join(str(part) for part in parts if part)


def _within_positions(config: AdaptConfig, model: PreTrainedModel, console: Console) -> AdaptConfig:
    """Limit `max_length` so that a block still fits after the last token: learned position tables have a fixed length."""
    limit = position_limit(model)
    if limit is None or config.max_length + config.k_max <= limit:
        return config
    longest = limit - config.k_max
    if longest < 4:
        raise UsageError(f"k_max is {config.k_max}, but the model has {limit} positions; choose a smaller --k-max")
    console.print(
        f"Samples are cut at {longest} tokens: the model has {limit} positions, a block needs {config.k_max}."
    )
    return config.model_copy(update={"max_length": longest})


def _objective(config: AdaptConfig, report: DataReport) -> Objective:
    """The objective that the options ask for, with its exact shortcut where the data allows it (see `objective`)."""
    until_disagreement = config.loss_until == "first-disagreement"
    teachers_own_words = config.train_on == "response" and report.written == report.records - report.no_room
    labels = "online" if config.labels == "auto" else config.labels
    # Where every counted position has seen only the teacher's own tokens, the text's token is the teacher's label itself.
    # Otherwise, under auto, it is what the teacher would have written without the student's mistake: measured to be no
    # worse, and it needs no teacher pass (docs/ablations.md). For a sampled text the objective teaches the teacher's
    # distribution. A proposal that differs from the sampled token is not a mistake there, so a loss that ends at a mistake
    # needs the teacher's pass. The same holds for joined rows, whose texts were not written after what is now before them.
    may_skip_the_teacher = not until_disagreement or (config.responses == "greedy" and not config.join_share)
    asked_for = until_disagreement or config.labels == "auto"
    if teachers_own_words and config.teacher == "hard" and may_skip_the_teacher and asked_for:
        labels = "data"
    # For text of another author, teach the original's distribution after it. In equal time this gains more than the
    # original's labels on the student's block, which need a pass of their own (docs/defaults.md).
    foreign = config.labels == "auto" and not teachers_own_words and not until_disagreement and config.teacher == "hard"
    if foreign:
        labels = "data"
    return Objective(
        labels=labels,
        teacher=config.teacher,
        until_disagreement=until_disagreement,
        weights=config.loss_weights,
        foreign=foreign,
        next_token_weight=config.next_token_weight,
    )
