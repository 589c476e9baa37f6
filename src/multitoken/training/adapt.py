"""The whole of adapting, in the order it happens: check, load, data, train, save."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from multitoken.checkpoints.atomic import check_output, disk_errors
from multitoken.config import AdaptConfig, make_config
from multitoken.errors import ModelError, UsageError
from multitoken.models.loading import load_causal_lm, weight_hash
from multitoken.models.model import eos_ids
from multitoken.models.mtp_config import MtpConfig
from multitoken.models.selftest import check_blocks

from .dataset import DataReport, prepare_samples
from .methods import prepare
from .objective import Distillation, Objective
from .progress import TrainingBar
from .run_folder import open_run_folder
from .sources import Record, read_records
from .stream import BlockStream, StreamOptions
from .teacher import response_writer
from .trainer import BlockTrainer, Clock
from .validate import Validation, validate

_UNBOUNDED_STEPS = 10**8  # a run by minutes ends by the clock


@dataclass(frozen=True)
class Adapted:
    """What came of it: where the model is, how long it trained, what it does on unseen prompts, and the log."""

    output: Path
    steps: int
    seconds: float
    validation: Validation | None
    log: list[dict[str, Any]]


def adapt(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    config: AdaptConfig | None = None,
    console: Console | None = None,
    **options: Any,
) -> Adapted:
    """Adapt a causal language model to several tokens a pass and save it to `output`.

    Takes the fields of `AdaptConfig` as keywords, or a ready `config`. Interrupted runs continue with `resume=True` from
    the last complete checkpoint, kept beside the output in `OUTPUT.training`.

    Raises `UsageError`, `DataError`, `ModelError` or `OutputError`, all before training where they can be known.
    """
    if config is None:
        config = make_config(model=model, data=data, output=output, **options)
    elif options or model is not None or data is not None or output is not None:
        raise UsageError("give a config, or options, but not both")
    console = console or Console()
    work = Path(f"{config.output}.training")
    check_output(config.output, overwrite=config.overwrite)
    checkpoint = open_run_folder(work, config)

    device = _device(config.device)
    loaded = load_causal_lm(config.model, device=device, trust_remote_code=config.trust_remote_code)
    language_model, tokenizer = loaded.model, loaded.tokenizer
    if loaded.mtp is not None:
        raise ModelError(f"{loaded.name} was adapted already (k={loaded.mtp.k}); start from {loaded.mtp.base_name}")
    base_hash = weight_hash(language_model)
    records = list(read_records(config.data))
    way = prepare(loaded, config, map(_text_of, records))
    mask = way.mask
    console.print(f"Mask token: {mask.describe()}.")
    check_blocks(language_model, mask.id)

    config = _within_positions(config, language_model, console)
    ends = eos_ids(language_model, tokenizer)
    write = response_writer(language_model, mask.id, ends, config, work, base_hash, console)
    prepared = prepare_samples(records, tokenizer, mask.id, config, write, eos_ids=ends)
    console.print(f"Data: {prepared.report}. Training on {len(prepared.train)} samples.")

    clock = Clock(steps=config.steps, minutes=config.minutes)
    bar = TrainingBar(clock, console)
    objective = _objective(config, prepared.report)
    if objective.labels != config.labels:
        console.print(
            "Labels: the responses' own tokens. The original model wrote them greedily, so they are its labels."
        )
    distillation = Distillation(way.trained, way.passes, objective=objective, mask_id=mask.id, eos_ids=ends).to(device)
    transformers_logging.disable_progress_bar()
    trainer = BlockTrainer(
        distillation,
        _arguments(config, work, device),
        BlockStream(prepared.train, _stream_options(config), config.steps or _UNBOUNDED_STEPS),
        clock=clock,
        optimizer=config.optimizer,
        warmup=config.warmup,
        callbacks=[bar],
    )
    trainer.remove_callback(PrinterCallback)  # the bar says it better
    if checkpoint is not None:
        trainer.restore_clock(checkpoint)
        console.print(f"Continuing from {checkpoint.name}.")
    try:
        with disk_errors(work):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()

    validation = validate(distillation, prepared.validation, _stream_options(config))
    if validation is not None:
        console.print(f"Validation: {validation}.")

    mtp = MtpConfig(
        k=config.k_max,
        mask_token_id=mask.id,
        mask_token=mask.token,
        method=config.method,
        base_name=loaded.name,
        base_hash=base_hash,
    )
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "config": _portable(config),
        "mask_token": mask.describe(),
        "steps": trainer.state.global_step,
        "seconds": round(clock.seconds, 1),
        "validation": dataclasses.asdict(validation) if validation else None,
        "log": log,
    }
    way.save(mtp, {"adapt.json": json.dumps(record, indent=1)})
    shutil.rmtree(work)
    return Adapted(config.output, trainer.state.global_step, clock.seconds, validation, log)


def _text_of(record: Record) -> str:
    parts = (record.messages, record.tools, record.prompt, record.response, record.text)
    return " ".join(str(part) for part in parts if part)


def _portable(config: AdaptConfig) -> dict[str, Any]:
    """The options as they go into a checkpoint: no folders of this machine."""
    options = config.model_dump(mode="json", exclude={"resume", "overwrite"})
    for key in ("model", "data", "output"):
        if Path(str(options[key])).exists() or key == "output":
            options[key] = Path(str(options[key])).name
    return options


def _within_positions(config: AdaptConfig, model: PreTrainedModel, console: Console) -> AdaptConfig:
    """Samples no longer than leaves room for a block behind their last token: learned position tables end there."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or config.max_length + config.k_max <= limit:
        return config
    longest = limit - config.k_max
    if longest < 4:
        raise UsageError(f"k_max is {config.k_max}, but the model has {limit} positions; choose a smaller --k-max")
    console.print(
        f"Samples are cut at {longest} tokens: the model has {limit} positions, a block needs {config.k_max}."
    )
    return config.model_copy(update={"max_length": longest})


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _objective(config: AdaptConfig, report: DataReport) -> Objective:
    """The objective asked for, with its exact short cut where the data allows it (see `objective`)."""
    until_disagreement = config.loss_until == "first-disagreement"
    teachers_own_words = (
        config.responses == "greedy"
        and config.train_on == "response"
        and report.written == report.records - report.no_room
    )
    same = until_disagreement and teachers_own_words and config.teacher == "hard"
    return Objective(
        labels="data" if same else config.labels,
        teacher=config.teacher,
        until_disagreement=until_disagreement,
        next_token_weight=config.next_token_weight,
    )


def _stream_options(config: AdaptConfig) -> StreamOptions:
    return StreamOptions(
        seed=config.seed,
        rows_per_step=config.batch_size * config.gradient_accumulation,
        blocks=config.blocks_per_row,
        k_max=config.k_max,
        fixed_k=config.k_schedule == "fixed",
        train_on=config.train_on,
        pack=config.pack,
    )


def _arguments(config: AdaptConfig, work: Path, device: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        max_steps=config.steps or _UNBOUNDED_STEPS,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        bf16=config.dtype == "bfloat16",
        use_cpu=device == "cpu",
        seed=config.seed,
        save_steps=config.checkpoint_every,
        save_total_limit=2,
        logging_steps=10,
        logging_first_step=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.startswith("cuda"),
    )
