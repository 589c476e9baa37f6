"""The original model as a writer of the responses that the data lacks: many rows at a time, with a bar and a cache."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from multitoken.config import AdaptConfig
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import NextToken
from multitoken.decoding.sampling import Sampling

from .progress import counting_bar
from .responses import Written, is_sampled, teacher_key, write_missing
from .run_folder import RESPONSES

_ROWS = 64  # responses written side by side


def response_writer(
    teacher: PreTrainedModel,
    mask_id: int,
    ends: list[int],
    config: AdaptConfig,
    work: Path,
    base_hash: str,
    console: Console,
) -> Callable[[list[list[int]]], list[Written]]:
    """Has the teacher write responses, many rows at a time, with a bar and a cache in the run's folder."""
    decoder = Decoder(teacher, mask_id=mask_id, trained_k=1, eos_ids=ends)
    drawn = Sampling(config.temperature, config.seed)
    key = teacher_key(
        base_hash,
        mode=config.responses,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )

    def write_batch(prompts: list[list[int]], number: int) -> list[Written]:
        room = min(config.max_new_tokens, (decoder.max_positions or config.max_length) - max(map(len, prompts)))
        responses: list[list[int]] = [[] for _ in prompts]
        requests = [
            decoder.request(
                prompt,
                policy=NextToken(),
                max_new_tokens=room,
                sampling=drawn if is_sampled(prompt, config.responses) else None,
                row=number + i,
                name=f"prompt {number + i}",
            )
            for i, prompt in enumerate(prompts)
        ]
        for chunk in decoder.run(requests, first_row=number):
            responses[chunk.row - number] += chunk.token_ids
        return [(ids, ids[-1] in decoder.eos_ids) for ids in responses]

    def write(prompts: list[list[int]]) -> list[Written]:
        with counting_bar(console, "the original model writes responses", len(prompts)) as advance:
            return write_missing(prompts, write_batch, work / RESPONSES, key=key, batch_size=_ROWS, progress=advance)

    return write
