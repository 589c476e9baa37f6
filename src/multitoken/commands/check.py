"""`multitoken check`."""

import dataclasses
from typing import Annotated

import typer

from multitoken.errors import UsageError

from .options import BaseOption, DeviceOption, DtypeOption, JsonFlag, TrustFlag, console_for, model_path, print_json


def check_command(
    model: Annotated[str, typer.Argument(help="A folder or Hub name; 'demo' is the embedded one.")],
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Use only the config: random weights, few layers, no download of weights."
        ),
    ] = False,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Test what MODEL can be used for: trained, decoded, exact, batched, sampled, gated, exported. The exit code is 1 if any of
    these would be wrong."""
    from multitoken.models.check import check_model, uses
    from multitoken.models.loading import load_causal_lm, load_config
    from multitoken.models.random_weights import random_model

    path, mask_id = model_path(model, "base"), None
    if random_weights:
        others = {"--base": base is not None, "--device": device != "auto", "--dtype": dtype != "auto"}
        if given := [name for name, is_given in others.items() if is_given]:
            raise UsageError(
                f"{', '.join(given)}: not possible with --random-weights, which tests in float32 on the CPU; leave it out"
            )
        config, name = load_config(path, trust_remote_code=trust_remote_code)
        tested = random_model(config, trust_remote_code=trust_remote_code)
        how = f"random weights, {tested.config.get_text_config().num_hidden_layers} of its layers"
    else:
        loaded = load_causal_lm(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
        tested, name, mask_id = loaded.model, loaded.name, loaded.mtp and loaded.mtp.mask_token_id
        if loaded.adapter is not None:
            raise UsageError(
                f"{name} already has a gate; check the model it was made from (the test adds a gate of its own)"
            )
        how = "its own weights"
    vocabulary: int = tested.config.get_text_config().vocab_size
    findings = check_model(tested, vocabulary - 1 if mask_id is None else mask_id)
    console = console_for(json_output)
    console.print(f"{name}: {type(tested).__name__}, {how}, {str(tested.dtype).removeprefix('torch.')}", soft_wrap=True)
    for found in findings:
        mark = "FAIL" if not found.passed else "note" if found.note else "ok"
        console.print(f"  {mark:<4} {found.test:<46} {found.shown:>9}  {found.note}", markup=False, soft_wrap=True)
    can = dict(uses(findings))
    console.print("  " + ", ".join(f"{use}: {'yes' if yes else 'NO'}" for use, yes in can.items()), soft_wrap=True)
    if json_output:
        print_json({"model": name, "uses": can, "tests": [dataclasses.asdict(found) for found in findings]})
    if not all(can.values()):
        raise typer.Exit(1)
