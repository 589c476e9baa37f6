"""`multitoken lm-eval`: the command line of lm-evaluation-harness, with this project's model class registered."""

import sys

import typer

from multitoken.errors import UsageError

_OURS = """\
multitoken lm-eval is the command line of lm-evaluation-harness with one more model, multitoken:

  multitoken lm-eval --model_args pretrained=my-model,policy=exact,threshold=0.7 --tasks gsm8k

If not given: --model multitoken, --batch_size 32, --device auto.
--model_args of multitoken: pretrained, policy, threshold, k, branches, base, dtype, device_map, quantize, attn_implementation, seed,
trust_remote_code, and the harness's own (max_length, truncation, add_bos_token, enable_thinking, ...).

The rest of this page is the harness's own. `multitoken lm-eval run --help` lists its options.
"""
HARNESS_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval_command(context: typer.Context) -> None:
    """Run lm-evaluation-harness: --model_args pretrained=DIR,policy=exact,threshold=0.7 --tasks gsm8k ...

    All arguments are those of the harness (--help lists them). If not given: --model multitoken, --batch_size 32, --device auto.
    """
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        import multitoken.evaluation.harness  # noqa: F401  # registers the model
    except ModuleNotFoundError as error:
        raise UsageError(
            f"lm-eval needs the package {error.name}, which is not installed; pip install 'multitoken[eval]'"
        ) from error

    arguments = list(context.args)
    runs = not any(word in arguments for word in ("ls", "validate"))
    if runs and {"--help", "-h"} & {*arguments}:
        print(_OURS)
    elif runs:
        arguments += _defaults(arguments)
    # The harness's parser reads the command line itself.
    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        setup_logging()
        harness = HarnessCLI()
        harness.execute(harness.parse_args())
    except ValueError as error:
        if str(error).startswith(("No tasks specified", "Tasks not found")):
            raise UsageError(
                f"{str(error).rstrip('.')}; `multitoken lm-eval ls tasks` lists the tasks for --tasks"
            ) from error
        raise
    finally:
        sys.argv = before


def _defaults(arguments: list[str]) -> list[str]:
    """Defaults for arguments that are not given. The harness's own default device is a GPU, whether there is one or not."""
    defaults = {("--model", "-M"): "multitoken", ("--batch_size", "-b"): "32", ("--device",): "auto"}
    given = {word.split("=")[0] for word in arguments}
    return [word for names, value in defaults.items() if not given & {*names} for word in (names[0], value)]
