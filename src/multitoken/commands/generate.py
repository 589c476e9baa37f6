"""`multitoken generate` and `multitoken chat`."""

import sys
import time
from typing import Annotated, Any

import typer

from .options import (
    BaseOption,
    BranchesOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    KOption,
    ModelArgument,
    PolicyOption,
    TemperatureOption,
    ThresholdOption,
    TopPOption,
    TrustFlag,
    chosen_policy,
    console_for,
    model_path,
    print_json,
)


def generate_command(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads it from standard input.")],
    policy: PolicyOption = None,
    threshold: ThresholdOption = None,
    k: KOption = None,
    branches: BranchesOption = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of the answer (256, or as many as fit, if not given).")
    ] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Sample among this many of the most likely tokens (50 if not given, unless MODEL says otherwise)."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Sample among the tokens with at least this share of the most likely one's probability."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sample with this seed; the same seed gives the same text.")] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Answer PROMPT with MODEL, streaming each chunk in its own colour."""
    from multitoken.models.generation import Generation
    from multitoken.models.model import Model
    from multitoken.serving.terminal import show

    text = sys.stdin.read() if prompt == "-" else prompt
    how = {"device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    loaded = Model.load(model_path(model), base=base, **how)
    chosen = chosen_policy(loaded, policy, threshold, k, branches)
    console = console_for(json_output)
    started = time.perf_counter()
    chunks = []
    # A single answer is too short for measuring the machine to pay off.
    options: dict[str, Any] = {"adaptive": False}
    given: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if temperature != 0:
        given |= {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    options |= {name: value for name, value in given.items() if value is not None}
    for i, chunk in enumerate(loaded.stream(text, policy=chosen, **options)):
        chunks.append(chunk)
        show(chunk, i, console)
    answer = Generation.of(chunks, time.perf_counter() - started)
    console.print(
        f"\n{answer.passes_said}, {answer.seconds:.2f} s", style="dim", markup=False, highlight=False, soft_wrap=True
    )
    if json_output:
        print_json(
            {
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "chunk_sizes": [len(c.token_ids) for c in chunks],
                "forward_passes": answer.forward_passes,
                "tokens_per_step": answer.tokens_per_step,
                "seconds": answer.seconds,
            }
        )


def chat_command(
    model: ModelArgument,
    policy: PolicyOption = None,
    threshold: ThresholdOption = None,
    k: KOption = None,
    branches: BranchesOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of an answer.")] = 512,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
) -> None:
    """Chat with MODEL in the terminal; type /help there to see which settings can be changed."""
    from multitoken.models.model import Model
    from multitoken.serving.terminal import Chat

    loaded = Model.load(model_path(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
    Chat(
        loaded,
        console_for(),
        policy=chosen_policy(loaded, policy, threshold, k, branches),
        max_new_tokens=max_new_tokens,
    ).run()
