"""A model for lm-evaluation-harness, under the name `multitoken`. Everything but decoding is the harness's own `hf` model.

`loglikelihood` requests run the plain model; `generate_until` requests run the batched engine under a policy. The tokens,
steps and time of each task are in the results, under `config: multitoken`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from multitoken.decoding.policies import as_options, varied, with_trained_k
from multitoken.errors import UsageError, nearest
from multitoken.models.model import Model

_LOADING = ("device_map", "attn_implementation", "base", "quantize")
_OF_HARNESS = (
    "max_length",
    "truncation",
    "logits_cache",
    "softmax_dtype",
    "add_bos_token",
    "prefix_token_id",
    "enable_thinking",
    "think_end_token",
    "chat_template_args",
)


@dataclass
class Spent:
    """What the generated answers of one task took. EOS tokens count. The prefill's tokens and passes do not count as steps."""

    answers: int = 0
    tokens: int = 0
    tokens_after_prefill: int = 0
    steps: int = 0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For the results file."""
        per_step = self.tokens_after_prefill / self.steps if self.steps else 0.0
        return {
            "answers": self.answers,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_step": round(per_step, 4),
            "tokens_per_second": round(self.tokens / self.seconds, 2) if self.seconds else 0.0,
        }


_HFLM: Any = HFLM  # its decorators remove its types


@register_model("multitoken")
class MultitokenLM(_HFLM):
    """`--model multitoken --model_args pretrained=DIR,policy=exact,threshold=0.7`.

    pretrained: a folder or Hub name, adapted or not. policy, threshold, k, branches: given values replace those of the
    model's default policy. base, quantize, device_map, attn_implementation, dtype, trust_remote_code: as in
    `multitoken.load`. seed: for sampled answers, if a task samples. All others are the harness's own (max_length,
    add_bos_token, enable_thinking, ...). Raises `UsageError` for an argument that neither knows, before anything is loaded.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        policy: str | None = None,
        threshold: float | None = None,
        k: int | None = None,
        branches: int | None = None,
        seed: int = 0,
        device: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        batch_size: int | str | None = 32,
        max_batch_size: int | None = 64,
        **more: Any,
    ) -> None:
        for name in more:
            if name not in (*_LOADING, *_OF_HARNESS):
                raise UsageError(
                    f"model_args: there is no argument {name!r} here{nearest(name, (*_LOADING, *_OF_HARNESS))}"
                )
        loading = {name: more.pop(name) for name in _LOADING if name in more}
        ours = Model.load(
            pretrained, device=device or "auto", dtype=dtype, trust_remote_code=trust_remote_code, **loading
        )
        chosen = varied(ours.default_policy, policy, threshold=threshold, k=k, branches=branches)
        self._policy = with_trained_k(chosen, ours.mtp.k if ours.mtp is not None else 1)
        self._ours = ours
        self._seed = seed
        self._spent: dict[str, Spent] = {}
        self._now = Spent()
        super().__init__(
            pretrained=ours.hf,
            tokenizer=ours.tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            **more,
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Runs task by task, so that the time of each task is measured separately."""
        of_task: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            of_task.setdefault(request.task_name or "unnamed", []).append(i)
        texts = [""] * len(requests)
        for task, places in of_task.items():
            self._now = self._spent.setdefault(task, Spent())
            written = super().generate_until([requests[i] for i in places], disable_tqdm=disable_tqdm)
            for i, text in zip(places, written, strict=True):
                texts[i] = text
        return texts

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """context, attention_mask: [B, L], padded at the left -> [B, L + longest answer]: each row followed by its answer."""
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        prompts = [ids[kept.bool()].tolist() for ids, kept in zip(context, mask, strict=True)]
        started = time.perf_counter()
        answers = self._ours.generate(
            prompts,
            policy=self._policy,
            max_new_tokens=max_length - context.shape[1],
            stop_strings=[text for text in stop if text] or None,
            **self._sampling(options),
        )
        spent = self._now
        spent.seconds += time.perf_counter() - started
        spent.answers += len(answers)
        for answer in answers:
            spent.tokens += len(answer.token_ids)
            spent.tokens_after_prefill += len(answer.token_ids) - len(answer.chunks[0].token_ids)
            spent.steps += answer.forward_passes - 1
        longest = max(len(answer.token_ids) for answer in answers)
        behind = torch.full((len(answers), longest), int(self.tokenizer.pad_token_id or 0), dtype=context.dtype)
        for row, answer in zip(behind, answers, strict=True):
            row[: len(answer.token_ids)] = torch.tensor(answer.token_ids)
        return torch.cat([context, behind.to(context.device)], dim=1)

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The task's `generation_kwargs` for `Model.generate`: greedy at temperature 0, as in the harness. A task that
        says only `do_sample: true` samples at 1, as in transformers."""
        given = dict(options)
        temperature = given.pop("temperature", 1.0 if given.get("do_sample") else 0.0)
        if not given.pop("do_sample", bool(temperature)) or not temperature:
            return {name: value for name, value in given.items() if name not in ("top_p", "top_k", "min_p")}
        # Under one seed the answers to the first prompt of every batch would share their noise.
        return {**given, "temperature": temperature, "seed": self._seed + sum(s.answers for s in self._spent.values())}

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model, and what each task's answers took so far."""
        tasks = {task: spent.record() for task, spent in self._spent.items()}
        parameters = sum(p.numel() for p in self._ours.hf.parameters())
        return {
            "model_num_parameters": parameters,
            "model_dtype": str(self._ours.hf.dtype),
            "multitoken": {**as_options(self._policy), "tasks": tasks},
        }
