"""A vLLM engine in this process, and functions that query it. Import this module before vLLM: it sets what a small CPU machine
needs."""

import gc
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.vllm_environment import IN_PROCESS

os.environ.update(IN_PROCESS)

from multitoken.checkpoints.provenance import provenance
from multitoken.models.prompts import encode_prompt
from multitoken.quickstart.corpus import LANGUAGE, mixed


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[Any]:
    """A vLLM engine. Its memory is released at the end."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 4096,
        "disable_log_stats": False,
    }
    llm = LLM(model=str(model), **(defaults | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def facts() -> dict[str, Any]:
    """`provenance`, with vLLM's version."""
    import vllm

    return provenance(vllm=str(vllm.__version__))


def answers(llm: Any, prompts: Sequence[list[int]], new: int = 200) -> list[list[int]]:
    """Greedy token ids for each prompt, EOS included."""
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=new),
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def counters(llm: Any) -> dict[str, float]:
    """vLLM's own counts of speculative decoding."""
    metrics = [metric for metric in llm.get_metrics() if "spec_decode" in metric.name and hasattr(metric, "value")]
    return {metric.name.rsplit("spec_decode_", 1)[1]: metric.value for metric in metrics}


def mixed_prompts(split: str, number: int, tokenizer: Any) -> tuple[list[str], list[list[int]]]:
    """Prompts of the embedded tasks in the mixture used for training, as texts and as token ids."""
    texts = [example.prompt for example in itertools.islice(mixed(split, mixture=LANGUAGE), number)]
    return texts, [encode_prompt(text, tokenizer) for text in texts]
