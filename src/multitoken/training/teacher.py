"""The original model writes the responses that the data lacks, here or on a server, with a progress bar and a cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multitoken.config import AdaptConfig
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import NextToken
from multitoken.decoding.sampling import Sampling
from multitoken.progress import counting_bar

from .responses import Write, Written, is_sampled, longest_response, teacher_key, write_missing
from .run_folder import RESPONSES
from .server import ResponseServer

_ROWS = 64  # responses written in one batch


def response_writer(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int,
    ends: list[int],
    config: AdaptConfig,
    work: Path,
    base_hash: str,
    console: Console,
) -> Callable[[list[list[int]]], list[Written]]:
    """A function that has the original write responses, many at a time, with a bar and a cache in the run's folder.

    Raises `UsageError` for a server that cannot be used, before the first response.
    """
    decoder = Decoder(teacher, mask_id=mask_id, trained_k=1, eos_ids=ends)
    key = teacher_key(
        base_hash,
        mode=config.responses,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    if config.quantize != "none":
        key += f" {config.quantize}"  # `base_hash` is that of the files
    server = None
    if config.responses_from is not None:
        server = ResponseServer(
            config.responses_from,
            tokenizer,
            decoder.eos_ids,
            config.max_new_tokens,
            config.temperature,
            config.seed,
            decoder.max_positions,
        )
        key += " server"  # its noise differs

    def write(prompts: list[list[int]]) -> list[Written]:
        if server is not None:
            server.check(teacher, prompts)
            console.print(
                f"{server.model} at {server.url} writes the responses; on a sample it wrote what the original writes."
            )
        by = _here(decoder, config) if server is None else _behind(server, config)
        with counting_bar(console, "the original model writes responses", len(prompts)) as advance:
            return write_missing(prompts, by, work / RESPONSES, key=key, progress=advance)

    return write


def _here(decoder: Decoder, config: AdaptConfig) -> Write:
    """Responses written by this process, `_ROWS` at a time."""
    drawn = Sampling(config.temperature, config.seed)

    def write(prompts: list[list[int]], numbers: list[int]) -> Iterator[dict[int, Written]]:
        for first in range(0, len(prompts), _ROWS):
            part = prompts[first : first + _ROWS]
            responses: list[list[int]] = [[] for _ in part]
            requests = [
                decoder.request(
                    prompt,
                    policy=NextToken(),
                    max_new_tokens=longest_response(len(prompt), config.max_new_tokens, decoder.max_positions),
                    sampling=drawn if is_sampled(prompt, config.responses) else None,
                    row=numbers[first + i],
                    name=f"prompt {numbers[first + i]}",
                )
                for i, prompt in enumerate(part)
            ]
            for chunk in decoder.run(requests):
                responses[chunk.row] += chunk.token_ids
            yield {first + i: (ids, ids[-1] in decoder.eos_ids) for i, ids in enumerate(responses)}

    return write


def _behind(server: ResponseServer, config: AdaptConfig) -> Write:
    def write(prompts: list[list[int]], numbers: list[int]) -> Iterator[dict[int, Written]]:
        drawn = [is_sampled(prompt, config.responses) for prompt in prompts]
        for place, response in server.write(prompts, drawn):
            yield {place: response}

    return write
