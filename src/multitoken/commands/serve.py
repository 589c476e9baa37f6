"""`multitoken serve`."""

from dataclasses import replace
from typing import Annotated

import typer

from multitoken.errors import UsageError

from .options import (
    POLICY_HELP,
    BaseOption,
    BranchesOption,
    DeviceOption,
    DtypeOption,
    KOption,
    ModelArgument,
    ThresholdOption,
    TrustFlag,
    console_for,
    model_path,
    policy_options,
)


def serve_command(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 accepts connections from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 chooses any free port.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="MULTITOKEN_API_KEY", help="Key that every request must send.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="The model's name in the API; MODEL if not given.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Policy of requests that name none: {POLICY_HELP}.")] = None,
    threshold: ThresholdOption = None,
    k: KOption = None,
    branches: BranchesOption = None,
    max_rows: Annotated[int, typer.Option(help="Maximum number of answers that are decoded at the same time.")] = 32,
    queue: Annotated[
        int, typer.Option(help="Maximum number of further answers that wait; beyond that, requests get a 429.")
    ] = 128,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of an answer.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Maximum time of a request, in seconds.")] = 600.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may call the API from a browser; repeatable.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="multitoken, or vllm: start vLLM's server with the plugin. A gated model must be exported first."
        ),
    ] = "multitoken",
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the decoding steps first (torch.compile): takes minutes at the start, then is faster.",
        ),
    ] = False,
) -> None:
    """Serve MODEL with an OpenAI-compatible API, and a page at / that shows what multi-token decoding is."""
    from multitoken.decoding.policies import varied
    from multitoken.models.model import Model
    from multitoken.models.stored_policy import policy_in

    try:
        from multitoken.serving import run
        from multitoken.serving.handover import serve_with_vllm
        from multitoken.serving.options import ServeOptions
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; the server needs it: pip install 'multitoken[serve]'"
        ) from error
    if engine not in ("multitoken", "vllm"):
        raise UsageError(f"engine is {engine!r}; expected multitoken or vllm")
    options = ServeOptions(
        name=served_name or model,
        host=host,
        port=port,
        api_key=api_key,
        max_rows=max_rows,
        queue=queue,
        max_tokens=max_tokens,
        timeout=timeout,
        origins=tuple(cors_origin or ()),
    )
    if engine == "vllm" and compiled:
        raise UsageError("vLLM compiles by itself; leave --compile out")
    asked = policy_options(policy, threshold, k, branches)
    if engine == "vllm" and asked["branches"]:
        raise UsageError("vLLM's attention does not support branches; leave --branches out")
    if engine == "vllm":
        usual = ServeOptions("")
        others = {
            "--queue": queue != usual.queue, "--max-tokens": max_tokens != usual.max_tokens,
            "--timeout": timeout != usual.timeout, "--base": base is not None, "--device": device != "auto",
        }  # fmt: skip
        if wrong := [name for name, is_given in others.items() if is_given]:
            raise UsageError(f"{', '.join(wrong)}: vLLM's server has no such option; leave it out")
        varied(policy_in(model_path(model)), **asked)  # raises for a wrong option
        decoding = {
            ("policy" if option == "name" else option): given for option, given in asked.items() if given is not None
        }
        serve_with_vllm(model_path(model), options, decoding=decoding, dtype=dtype, trust_remote_code=trust_remote_code)
    loaded = Model.load(model_path(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
    console = console_for()
    if compiled:
        console.print("Compiling the decoding steps; this takes minutes.")
        loaded.compile()
    run.serve(loaded, replace(options, policy=varied(loaded.default_policy, **asked)), console)
