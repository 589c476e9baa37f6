"""The steps of `adapt`, in order: check the options, prepare the run, train, save.

With several processes (`torchrun -m multitoken.cli adapt ...`), each writes its share of the responses. Only the first
one prints and saves.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from rich.console import Console
from torch.optim import Optimizer
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from multitoken.adapt_options import AdaptOptions
from multitoken.checkpoints.atomic import check_output, disk_errors, is_complete
from multitoken.config import AdaptConfig, make_config
from multitoken.decoding.draft_head import VERSION
from multitoken.decoding.policies import Exact
from multitoken.errors import OutOfMemoryError, OutputError, UsageError
from multitoken.models.mtp_config import MtpConfig
from multitoken.processes import console_of

from .clock import Clock, ValidationSchedule
from .optimizer import build_optimizer
from .progress import TrainingBar
from .run_folder import last_complete_checkpoint, leave_nothing, may_overwrite, open_run_folder
from .setup import UNBOUNDED_STEPS, Setup, make_ready, reporters, training_arguments
from .sharding import is_sharded, join
from .stream import BlockStream
from .trainer import BlockTrainer
from .validate import Validation, validate

VALIDATIONS = 10  # validation passes on unseen prompts, over the run
_SAMPLES, _PLACES = 16, 32  # of a validation pass during training: a curve needs fewer than the final figure


@dataclass(frozen=True)
class Adapted:
    """The result of a run: where the model is, how long it trained, its validation on unseen prompts, and the log."""

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
    verbose: bool = True,
    **options: Unpack[AdaptOptions],
) -> Adapted:
    """Adapt a causal language model to predict several tokens per forward pass, and save it to `output`.

    Takes the fields of `AdaptConfig` as keywords, or a complete `config`. With `resume=True`, an interrupted run
    continues from its last complete checkpoint, which is kept next to the output in `OUTPUT.training`.
    `verbose=False` prints no progress bar and no lines.

    Raises `UsageError`, `DataError`, `ModelError` or `OutputError`, before training wherever the error can be known by
    then; `OutOfMemoryError`; and `FloatingPointError` for a loss that is not a finite number.
    """
    if config is None:
        config = make_config(model=model, data=data, output=output, **options)
    elif options or model is not None or data is not None or output is not None:
        raise UsageError("give a config, or options, but not both")
    work = Path(f"{config.output}.training")
    if config.resume and may_overwrite(work):
        config = config.model_copy(update={"overwrite": True})
    if config.resume and not work.exists() and is_complete(config.output):
        longer = (
            f"to train longer, add --start-from {config.output} and choose another output"
            if config.method == "gated"
            else "to train longer, run it again with more --minutes or --steps, and --overwrite in place of --resume"
        )
        raise OutputError(f"the run in {config.output} is complete, so nothing is left to resume; {longer}")
    check_output(config.output, overwrite=config.overwrite)
    arguments = training_arguments(config, work)
    first = arguments.process_index == 0
    console = console_of(console, verbose)
    with arguments.main_process_first(local=False):
        checkpoint = open_run_folder(work, config) if first else last_complete_checkpoint(work)

    try:
        setup = make_ready(config, work, arguments, console)
    except BaseException:
        if first:
            leave_nothing(work)
        raise
    clock = Clock(steps=config.steps, minutes=config.minutes)
    bar = TrainingBar(clock, console)
    trainer = make_trainer(setup, arguments, clock, [bar, *_reporting(config, first)])
    if checkpoint is not None:
        trainer.restore(checkpoint)
        console.print(f"Continuing from {checkpoint.name}.")
    try:
        with disk_errors(work), memory_errors(setup.config):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()

    validation = validate(setup.distillation, setup.data.validation, setup.validation_stream)
    if validation is not None:
        console.print(f"Validation: {validation}.")
        _say_climb(trainer.state.log_history, validation, console)
        if config.max_drift is not None and validation.drift > config.max_drift:
            console.print(f"The drift is above max_drift={config.max_drift:g}: lower --learning-rate.", style="yellow")
    log = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_accepted" in entry]
    adapted = Adapted(config.output, trainer.state.global_step, clock.seconds, validation, log)
    if is_sharded(setup.distillation):
        join(setup.distillation)
    if first:
        _save(setup, adapted)
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()
    return adapted


def _say_climb(history: list[dict[str, Any]], validation: Validation, console: Console) -> None:
    """Print how the expected tokens per step grew during the run, which shows whether a longer run would gain more."""
    validations = [entry["eval_tokens_per_step"] for entry in history if "eval_tokens_per_step" in entry]
    if validations:
        climb = ", ".join(f"{speed:.2f}" for speed in [*validations, validation.metrics()["tokens_per_step"]])
        console.print(f"Expected tokens per step during the run: {climb}.")


def make_trainer(
    setup: Setup, arguments: TrainingArguments, clock: Clock, callbacks: list[TrainerCallback]
) -> BlockTrainer:
    """The trainer of a prepared run."""
    config = setup.config
    assert config.learning_rate is not None, "make_ready chose one"
    validations = (
        [ValidationSchedule(clock, VALIDATIONS)] if config.evaluate_every is None and config.validation_share else []
    )
    stopping = [EarlyStoppingCallback(config.patience)] if config.patience is not None else []
    transformers_logging.disable_progress_bar()
    trainer = BlockTrainer(
        setup.distillation,
        arguments,
        BlockStream(
            setup.data.train,
            setup.stream,
            config.steps or UNBOUNDED_STEPS,
            progress=clock.progress if config.minutes is not None else None,
        ),
        clock=clock,
        make_optimizer=partial(_optimizer, setup),
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        max_drift=config.max_drift,
        examine=partial(
            validate, setup.distillation, setup.data.validation, setup.validation_stream, _SAMPLES, _PLACES
        ),
        callbacks=[*validations, *callbacks, *stopping],
    )
    trainer.remove_callback(PrinterCallback)  # the bar shows the same numbers
    return trainer


def _optimizer(setup: Setup) -> Optimizer:
    config = setup.config
    assert config.learning_rate is not None, "make_ready chose one"
    optimizer = build_optimizer(
        setup.way.trained,
        name=config.optimizer,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fresh=setup.way.head if config.method == "full" else None,  # a draft head next to trained weights
    )
    steering = setup.way.steering(setup.data.train, config.free_directions)
    if steering is not None:
        steering.attach(optimizer)
    return optimizer


@contextmanager
def memory_errors(c: AdaptConfig) -> Iterator[None]:
    """Where memory runs out, on a GPU or on a CPU, raise an error that says which options to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_full and "DefaultCPUAllocator: can't allocate" not in str(error):
            raise
        raise OutOfMemoryError(
            f"out of memory with batch_size={c.batch_size}, blocks_per_row={c.blocks_per_row}, k_max={c.k_max}, "
            f"max_length={c.max_length}: lower one of them (half the batch_size with twice the gradient_accumulation "
            "trains the same); --dry-run shows what uses the memory. Responses already written are kept"
        ) from error


def _reporting(config: AdaptConfig, first: bool) -> list[TrainerCallback]:
    """TensorBoard, which writes next to the output into a folder that outlives the run. Trainer starts all others."""
    if not first or "tensorboard" not in reporters(config):
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(f"{config.output}.logs/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))]


def _save(setup: Setup, adapted: Adapted) -> None:
    config, mask = setup.config, setup.way.mask
    mtp = MtpConfig(
        k=config.k_max,
        mask_token_id=mask.id,
        mask_token=mask.token,
        method=config.method,
        base_name=setup.loaded.name,
        base_hash=setup.base_hash,
        draft_head=VERSION if setup.way.head is not None else 0,
    )
    record = {
        "config": _portable(config),
        "mask_token": mask.describe(),
        "steps": adapted.steps,
        "seconds": round(adapted.seconds, 1),
        "validation": dataclasses.asdict(adapted.validation) if adapted.validation else None,
        "log": adapted.log,
    }
    decoding = {"policy": Exact.name, "threshold": adapted.validation.threshold} if adapted.validation else {}
    setup.way.save(mtp, decoding, {"adapt.json": json.dumps(record, indent=1)})


def _portable(config: AdaptConfig) -> dict[str, Any]:
    """The options as they are stored in a checkpoint, without paths of this machine."""
    options = config.model_dump(mode="json", exclude={"resume", "overwrite"})
    for key in ("model", "data", "output", "start_from"):
        if (options[key] is not None and Path(str(options[key])).exists()) or key == "output":
            options[key] = Path(str(options[key])).name
    return options
