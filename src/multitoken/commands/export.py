"""`multitoken export`."""

from pathlib import Path
from typing import Annotated

import typer

from multitoken.errors import UsageError

from .options import POLICY_HELP, BaseOption, KOption, ThresholdOption, console_for, model_path, policy_options


def export_command(
    checkpoint: Annotated[str, typer.Argument(help="A folder that adapt wrote; 'demo' is the embedded one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"The default policy of the export: {POLICY_HELP}. If not given: the checkpoint's default policy."
        ),
    ] = None,
    threshold: ThresholdOption = None,
    k: KOption = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Export a gated adapter without its base, which it names on the Hub.")
    ] = False,
    uno: Annotated[
        bool,
        typer.Option(
            "--uno", help="Export an adapter trained with --masks noise in UNO's format, which SGLang serves."
        ),
    ] = False,
    base: BaseOption = None,
    evaluation: Annotated[Path | None, typer.Option(help="A folder that evaluate wrote, for the model card.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Store the weights in bfloat16, float16 or float32; unchanged if not given.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload the folder to this repository on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what the output folder holds.")] = False,
) -> None:
    """Write CHECKPOINT to the folder OUTPUT so that plain transformers can load it, with its decoding code and a model card."""
    from multitoken.checkpoints.export import export
    from multitoken.checkpoints.uno import export_uno
    from multitoken.decoding.policies import varied
    from multitoken.models.stored_policy import policy_in

    console = console_for()
    if uno:
        others = {
            "--policy": policy, "--threshold": threshold, "--k": k, "--reference": reference or None, "--base": base,
            "--evaluation": evaluation, "--dtype": dtype, "--push-to-hub": push_to_hub,
        }  # fmt: skip
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise UsageError(
                f"{', '.join(given)}: not possible with --uno, which writes only the adapter; leave it out"
            )
        serve = export_uno(model_path(checkpoint), output, overwrite=overwrite)
        console.print(f"Exported {output}. Serve it with:\n{serve}", markup=False, soft_wrap=True)
        return
    source = model_path(checkpoint)
    is_changed = policy is not None or threshold is not None or k is not None
    export(
        source,
        output,
        policy=varied(policy_in(source), **policy_options(policy, threshold, k)) if is_changed else None,
        base=base,
        reference=reference,
        evaluation=evaluation,
        dtype=dtype,
        overwrite=overwrite,
        push_to_hub=push_to_hub,
    )
    console.print(f"Exported {output}; its model card is {output / 'README.md'}", markup=False, soft_wrap=True)
    if push_to_hub is not None:
        console.print(f"Pushed to https://huggingface.co/{push_to_hub}", markup=False, soft_wrap=True)


def adopt_command(
    adapter: Annotated[str, typer.Argument(help="An UNO draft adapter: a folder or Hub name.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    base: Annotated[str, typer.Option(help="The model that it drafts for: a folder or Hub name.")],
    overwrite: Annotated[bool, typer.Option(help="Replace what the output folder holds.")] = False,
) -> None:
    """Write an UNO draft adapter to the folder OUTPUT as a gated adapter, which every other command accepts."""
    from multitoken.checkpoints.uno import adopt_uno

    adopt_uno(adapter, output, base=base, overwrite=overwrite)
    console_for().print(f"Written to {output}; try: multitoken generate {output} 'Hello'", markup=False, soft_wrap=True)
