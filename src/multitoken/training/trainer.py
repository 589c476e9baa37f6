"""The trainer: Hugging Face's, with our loss, our stream and checkpoints that are marked when they are complete.

Several processes (`torchrun`, `accelerate launch`) share each step's rows. Together they do what one process would do
with all their batches in one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from .clock import Clock
from .denormals import flushed_denormals
from .objective import BlockStatistics, Distillation
from .optimizer import build_schedule, weight_at
from .run_folder import COMPLETE, last_complete_checkpoint
from .sharding import is_sharded, load_optimizer_state, load_whole, whole_optimizer_state, whole_state
from .stream import collate
from .validate import Validation

_STATE = "run.json"  # what changes during a run besides weights and optimizer


class BlockTrainer(Trainer):
    """Trains with `Distillation`. Parameters stay float32; `bf16` in the arguments only affects the computation."""

    # Micro-batches have equal shapes, so the mean over them is the loss of one large batch.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        distillation: Distillation,
        args: TrainingArguments,
        stream: Dataset[dict[str, Any]],
        *,
        clock: Clock,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        learning_rate: float,
        warmup: float,
        max_drift: float | None,
        examine: Callable[[], Validation | None],
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            model=distillation,
            args=args,
            train_dataset=stream,
            eval_dataset=stream,  # never read: `examine` has its own data, but Trainer requires one
            data_collator=collate,
            callbacks=[clock, *callbacks],
        )
        # This tells Trainer that the model is already on its devices and must not be wrapped. It is set after Trainer's
        # checks, which refuse checkpoints of such a model: here checkpoints are whole.
        self.is_distributed_loading_by_transformers = is_sharded(distillation)
        self.distillation = distillation
        self.clock = clock
        self._make_optimizer = make_optimizer
        self._learning_rate = learning_rate
        self._warmup = warmup
        self._max_drift = max_drift
        self._examine = examine
        self._tally = _Tally()
        self.tokens = 0  # of this process, in this run

    @flushed_denormals()
    def train(self, *args: Any, **named: Any) -> Any:
        return super().train(*args, **named)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        self.distillation.steadiness = weight_at(self.clock.progress(), self._warmup)
        loss, statistics = model(inputs)
        if not math.isfinite(loss.item()):
            kept = last_complete_checkpoint(Path(str(self.args.output_dir)))
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; lower --learning-rate "
                f"(now {self._learning_rate:g}). "
                + (f"The last good state is kept in {kept}" if kept else "No checkpoint was written yet")
            )
        self._tally.add(statistics)
        self.tokens += statistics.tokens
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._tally.read_and_clear() | {"seconds": round(self.clock.seconds, 1)}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Every process examines the same unseen blocks, so that with early stopping all of them stop together."""
        validation = self._examine()
        metrics = {f"eval_{name}": value for name, value in validation.metrics().items()} if validation else {}
        if self._max_drift is not None and validation is not None:
            if validation.drift > self._max_drift:
                self._weigh_next_tokens(2 * self._next_token_weight or 1.0)
            metrics["eval_next_token_weight"] = self._next_token_weight
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _next_token_weight(self) -> float:
        return self.distillation.objective.next_token_weight

    def _weigh_next_tokens(self, weight: float) -> None:
        self.distillation.objective = replace(self.distillation.objective, next_token_weight=weight)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self._make_optimizer()
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, self.clock.progress, self._warmup)  # pyright: ignore[reportArgumentType]
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]  # the stream has its own order

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves what is trained, with tied tensors once. The model's own folder is written at the end of the run."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = whole_state(self.distillation.trained) if is_sharded(self.distillation) else None
        if not self.args.should_save:
            return  # the first process writes for all
        if state is None:
            save_model(self.distillation.trained, str(folder / SAFE_WEIGHTS_NAME))
        else:
            save_file({name: tensor.clone() for name, tensor in state.items()}, folder / SAFE_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        file = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if is_sharded(self.distillation):
            load_whole(self.distillation.trained, load_file(file))
        else:
            load_model(self.distillation.trained, str(file))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.distillation):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # pyright: ignore[reportOptionalMemberAccess]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.distillation):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        read = partial(torch.load, map_location="cpu", weights_only=True)
        load_optimizer_state(self.optimizer, read(Path(checkpoint) / OPTIMIZER_NAME))
        self.lr_scheduler.load_state_dict(read(Path(checkpoint) / SCHEDULER_NAME))  # pyright: ignore[reportOptionalMemberAccess]

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Gradients of all but the last micro-batch are not reduced across processes."""
        assert isinstance(self.distillation, FSDPModule)
        self.distillation.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.distillation.set_requires_gradient_sync(True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # until the others have written their random states
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            state = {"seconds": self.clock.seconds, "next_token_weight": self._next_token_weight}
            (folder / _STATE).write_text(json.dumps(state))
            (folder / COMPLETE).touch()

    def restore(self, checkpoint: Path) -> None:
        """Restore the minutes that the interrupted run had trained at this checkpoint, and its weight against drift."""
        state = json.loads((checkpoint / _STATE).read_text())
        self.clock.spent = float(state["seconds"])
        self._weigh_next_tokens(float(state["next_token_weight"]))


class _Tally:
    """Sums of block statistics between two log lines."""

    def __init__(self) -> None:
        self._accepted: list[float] = []
        self._tokens = 0
        self._started = time.monotonic()

    def add(self, statistics: BlockStatistics) -> None:
        self._accepted.append(statistics.accepted)
        self._tokens += statistics.tokens

    def read_and_clear(self) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self._started)
        logs = {
            "accepted": round(sum(self._accepted) / max(1, len(self._accepted)), 3),
            "tokens_per_second": round(self._tokens / seconds, 1),
        }
        self.__init__()
        return logs
