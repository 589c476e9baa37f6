"""Every name of vLLM that this plugin uses and that is not part of vLLM's public interface, in one place.

A release of vLLM may move any of them. `SUPPORTED` lists the releases that the plugin was tested with, `check_version`
stops a server of any other release, and `moved` (with its test) lists what has changed.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from multitoken.errors import MultitokenError

SUPPORTED = ("0.32", "0.33")  # releases of vLLM, as MAJOR.MINOR

_CALLS = {  # module, then the qualified name: the parameters that we pass to it, or that it passes to us
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
    "vllm.engine.arg_utils:EngineArgs.create_model_config": ("self",),
    "vllm.transformers_utils.config:get_config": (
        "model",
        "trust_remote_code",
        "revision",
        "code_revision",
        "config_format",
    ),
    "vllm.transformers_utils.config:try_get_generation_config": (
        "model",
        "trust_remote_code",
        "revision",
        "code_revision",
        "config_format",
        "hf_token",
    ),
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": ("self", "request_id", "prompt", "params"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample": ("self", "logits", "spec_decode_metadata"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._input_fits_in_drafter": ("self", "common_attn_metadata"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model": ("self", "scheduler_output"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.take_draft_token_ids": ("self",),
    "vllm.model_executor.model_loader.utils:initialize_model": ("vllm_config",),
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output": (
        "self",
        "request",
        "new_token_ids",
        "is_stale",
    ),
    "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p": ("logits", "k", "p"),
    "vllm.v1.sample.ops.bad_words:apply_bad_words": ("logits", "bad_words_token_ids", "past_tokens_ids"),
    "vllm.model_executor.layers.utils:apply_penalties": (
        "logits",
        "prompt_tokens_tensor",
        "output_tokens_tensor",
        "presence_penalties",
        "frequency_penalties",
        "repetition_penalties",
    ),
    "vllm.v1.sample.logits_processor.builtin:MinTokensLogitsProcessor.apply_with_spec_decode": (
        "self",
        "logits",
        "num_draft_tokens",
    ),
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod.apply": ("self", "layer", "x", "bias"),
    "vllm.utils.torch_utils:direct_register_custom_op": ("op_name", "op_func", "mutates_args", "fake_impl"),
    "vllm.v1.sample.sampler:Sampler.compute_logprobs": ("logits",),
    "vllm.v1.sample.sampler:Sampler.gather_logprobs": ("logprobs", "num_logprobs", "token_ids"),
}
_FIELDS = {
    "vllm.v1.spec_decode.metadata:SpecDecodeMetadata": ("draft_token_ids", "num_draft_tokens"),
    "vllm.v1.outputs:SamplerOutput": ("sampled_token_ids", "logprobs_tensors"),
    "vllm.v1.outputs:DraftTokenIds": ("req_ids", "draft_token_ids"),
    "vllm.v1.core.sched.output:SchedulerOutput": ("scheduled_spec_decode_tokens",),
    "vllm.config:CompilationConfig": ("static_forward_context", "static_all_moe_layers", "mode"),
    "vllm.v1.sample.metadata:SamplingMetadata": (
        "temperature",
        "all_greedy",
        "all_random",
        "top_p",
        "top_k",
        "max_num_logprobs",
        "no_penalties",
        "prompt_token_ids",
        "frequency_penalties",
        "presence_penalties",
        "repetition_penalties",
        "output_token_ids",
        "allowed_token_ids_mask",
        "bad_words_token_ids",
        "logitsprocs",
    ),
}
_READ = {  # attributes of instances: text that the source of the class must contain
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "self.input_batch",
        "self.requests",
        "self.sampler",
        "self.drafter",
        "self.discard_request_mask",
        "use_spec_decode = self.speculative_config is not None",
        "spec_config = self.speculative_config",
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": (
        "self.num_tokens_no_spec",
        "self.sampling_metadata",
        "def req_ids",
        "def num_reqs",
    ),
    "vllm.model_executor.layers.linear:LinearBase": (
        "self.input_size",
        "self.output_size",
        "self.params_dtype",
        "self.quant_method",
    ),
    "vllm.model_executor.layers.linear:ColumnParallelLinear": ("self.quant_method.apply(self, input_, bias)",),
    "vllm.model_executor.layers.linear:RowParallelLinear": ("self.quant_method.apply(self, input_parallel, bias_)",),
    "vllm.model_executor.layers.linear:MergedColumnParallelLinear": ("self.output_sizes",),
    "vllm.model_executor.layers.linear:QKVParallelLinear": ("self.output_sizes",),
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding": (
        "self.quant_method.embedding(self, ",
    ),
    "vllm.v1.worker.gpu_worker:Worker": ("def init_device", "def load_model", "def compile_or_warm_up_model"),
    "vllm.v1.core.sched.scheduler:Scheduler": ("request.num_computed_tokens -= num_rejected",),
}


def check_version() -> None:
    """Raises `MultitokenError` if the release of vLLM is not one of `SUPPORTED`."""
    import vllm

    version = str(vllm.__version__)
    if not version.startswith(tuple(f"{release}." for release in SUPPORTED)):
        raise MultitokenError(
            f"vLLM is {version}; multi-token decoding needs {' or '.join(f'{r}.*' for r in SUPPORTED)}: install that "
            f"(pip install 'vllm=={SUPPORTED[-1]}.*') or another multitoken, or serve the model as an ordinary one "
            'with --additional-config \'{"mtp": {"enabled": false}}\''
        )


def moved() -> list[str]:
    """What is missing or different from what this plugin expects; empty if everything is as expected."""
    wrong = []
    for name, expected in _CALLS.items():
        found = _find(name)
        parameters = tuple(inspect.signature(found).parameters) if found is not None else ()
        if parameters[: len(expected)] != expected:
            wrong.append(f"{name}{parameters}; expected {expected}")
    for name, expected in _FIELDS.items():
        found = _find(name)
        there = {field.name for field in fields(found)} if found is not None else set()
        wrong += [f"{name}.{field}" for field in expected if field not in there]
    for name, expected in _READ.items():
        found = _find(name)
        source = inspect.getsource(found) if found is not None else ""
        wrong += [f"{name}: {word}" for word in expected if word not in source]
    return wrong


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), import_module(module))
    except (ImportError, AttributeError):
        return None


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace a method by `around(original, self, ...)`. Repeated calls replace it only once."""
    original = getattr(owner, name)
    if getattr(original, "_by_multitoken", False):
        return

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    method._by_multitoken = True  # pyright: ignore[reportAttributeAccessIssue]
    setattr(owner, name, method)


@dataclass(frozen=True)
class Step:
    """What vLLM's model runner knows when it is about to sample."""

    names: Sequence[str]  # requests, in the order of the batch
    states: dict[str, Any]  # vLLM's record of each
    metadata: Any  # SamplingMetadata
    _runner: Any

    @property
    def lengths(self) -> np.ndarray:
        """[B] real tokens of each request, without drafts."""
        return self._runner.input_batch.num_tokens_no_spec[: len(self.names)]

    @property
    def discarded(self) -> np.ndarray:
        """[B] whether only a part of the request's prompt was fed, so that the sampled token is discarded."""
        return self._runner.discard_request_mask.np[: len(self.names)]


def step_of(runner: Any) -> Step:
    batch = runner.input_batch
    return Step(batch.req_ids, runner.requests, batch.sampling_metadata, runner)


def take_over(
    runner: Any,
    sample: Callable[[Tensor, Any], Any],
    take: Callable[[], list[list[int]] | None],
    begin: Callable[[bool], None],
) -> None:
    """Let `sample(logits, spec_decode_metadata)` choose the tokens of this model runner. `take()` returns what each
    request feeds after its last real token in the next step (None: no request feeds more). `begin` is called before
    each pass with whether any request feeds more.

    A step that feeds no drafts is an ordinary step for the runner, without the cost of speculative decoding.
    """
    stock, execute, speculative = runner._sample, runner.execute_model, runner.speculative_config

    def execute_model(scheduler_output: Any, *args: Any, **named: Any) -> Any:
        feeds_more = bool(scheduler_output.scheduled_spec_decode_tokens)
        runner.speculative_config = speculative if feeds_more else None
        begin(feeds_more)
        return execute(scheduler_output, *args, **named)

    def take_draft_token_ids() -> Any:
        from vllm.v1.outputs import DraftTokenIds

        ids = take()
        return None if ids is None else DraftTokenIds(runner.input_batch.req_ids.copy(), ids)

    def _sample(logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        return stock(logits, spec_decode_metadata) if logits is None else sample(logits, spec_decode_metadata)

    runner._sample = _sample
    runner.execute_model = execute_model
    runner.take_draft_token_ids = take_draft_token_ids
    # Otherwise one request near max_model_len would make vLLM replace the drafts of the whole batch by token 0. Masks
    # need no cache of a drafter, and the scheduler cuts off what is beyond max_model_len.
    runner._input_fits_in_drafter = lambda common_attn_metadata: common_attn_metadata is not None
