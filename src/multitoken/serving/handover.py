"""`multitoken serve --engine vllm`: passes the same flags to `vllm serve`, which finds the plugin by itself."""

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any, NoReturn

from multitoken.errors import UsageError

from .options import ServeOptions


def serve_with_vllm(model: str, options: ServeOptions, **more: Any) -> NoReturn:
    """Replace this process by `vllm serve`. more: those of `vllm_arguments`. Raises `UsageError` if vLLM is not installed."""
    program = shutil.which("vllm")
    if program is None:
        raise UsageError("the command vllm is not installed: pip install 'multitoken[vllm]' (docs/vllm.md)")
    arguments = vllm_arguments(model, options, **more)
    if options.api_key is not None:  # not as an argument, which every user of the machine can read
        os.environ["VLLM_API_KEY"] = options.api_key
    os.execv(program, [program, *arguments])


def vllm_arguments(
    model: str,
    options: ServeOptions,
    *,
    decoding: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> list[str]:
    """The arguments after `vllm`. decoding: the options that replace those of the checkpoint's default policy. The limits
    on queue, answer length and time are left out: `vllm serve` has no options for them."""
    arguments = ["serve", model, "--host", options.host, "--port", str(options.port)]
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
