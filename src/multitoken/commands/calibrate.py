"""`multitoken calibrate`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from rich.console import Console

    from multitoken.evaluation.calibration import Calibration, Candidate


def calibrate_command(
    model: Annotated[str, typer.Argument(help="The adapted model's folder; 'demo' is the embedded one.")],
    data: Annotated[
        str, typer.Option(help="A JSONL file of prompts, or an embedded task (word-problems, letters, ...).")
    ],
    max_drop: Annotated[
        float | None, typer.Option(help="The accuracy that may be lost: 0.01 is one point. The prompts need answers.")
    ] = None,
    min_identical: Annotated[
        float | None, typer.Option(help="The share of outputs that must be the original's, such as 0.99.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="exact or confadapt; both are tried if not given.")] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(help="Try only this threshold; repeat it for several. If not given, a dozen are tried."),
    ] = None,
    original: Annotated[str | None, typer.Option(help="The model it was made from (full and lora need it).")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence at which the loss must stay within the limit.")] = 0.95,
    prompts: Annotated[
        int | None,
        typer.Option(
            help="How many prompts; half of them confirm the loss. If not given: all of a file; of an embedded task as many as "
            "the limit takes at least (598 for 1% at 95% confidence), and 100 if no limit is given."
        ),
    ] = None,
    grader: options.GraderOption = None,
    max_new_tokens: options.AnswerLengthOption = 256,
    batch_size: Annotated[
        int, typer.Option(help="Requests decoded at the same time; the fastest policy depends on it.")
    ] = 32,
    write: Annotated[bool, typer.Option(help="Store the choice in MODEL's generation_config.json.")] = True,
    base: options.BaseOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    trust_remote_code: options.TrustFlag = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Store the answers in this folder, so that an interrupted calibration can continue."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the answers in --output.")] = False,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted calibration in --output.")] = False,
    json_output: options.JsonFlag = False,
) -> None:
    """Find the fastest policy, threshold and k for MODEL whose loss stays within a limit that you set, and store them."""
    from multitoken.api import calibrate

    console = options.console_for(json_output)
    found = calibrate(
        options.model_path(model),
        data,
        max_drop=max_drop,
        min_identical=min_identical,
        policy=policy,
        thresholds=threshold,
        original=None if original is None else options.model_path(original, "base"),
        confidence=confidence,
        prompts=prompts,
        grader=grader,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        write=write and model != "demo",
        output=output,
        overwrite=overwrite,
        resume=resume,
        base=base,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        console=console,
    )
    _show(found, console)
    if found.chosen is not None and write:
        where = (
            "the embedded model was not changed"
            if model == "demo"
            else f"stored in {Path(model) / 'generation_config.json'}"
        )
        console.print(where, markup=False, emoji=False, soft_wrap=True)
    if json_output:
        options.print_json(dataclasses.asdict(found))
    if found.chosen is None:
        raise typer.Exit(1)


def _show(found: "Calibration", console: "Console") -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in (
        "policy",
        "tokens per second",
        "tokens per step",
        "lost (searching)",
        "lost (confirming)",
        "at most",
    ):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for each in found.candidates:
        confirmed = ("", "") if each.confirmed_loss is None else (_share(each.confirmed_loss), _share(each.at_most))
        table.add_row(
            each.label, f"{each.tokens_per_second:.0f}", f"{each.tokens_per_step:.2f}", _share(each.loss), *confirmed
        )
    console.print(table)
    console.print(_verdict(found))


def _verdict(found: "Calibration") -> str:
    if found.allowed is None:
        assert found.chosen is not None
        return f"{found.chosen.label}: the fastest one here, and no output changes.{_rival(found)}"
    lost = "outputs differ" if found.allowed.kind == "different" else "of accuracy are lost"
    if found.chosen is not None and found.chosen.at_most == 0.0:
        return f"{found.chosen.label}: the fastest one within the limit, and no output changes.{_rival(found)}"
    limit = f"at most {_share(found.allowed.share)} {lost}, at {found.confidence:.0%} confidence"
    failed = [each for each in found.candidates if each.confirmed_loss is not None and not each.promised]
    said = (
        f"{found.chosen.label}: {limit} ({found.prompts} prompts, half of them to confirm).{_rival(found)}"
        if found.chosen is not None
        else f"Nothing can be promised: the goal ({limit}) was not reached on {found.prompts} prompts."
    )
    if found.chosen is None and not failed:
        said += f"\n{_why_none(found, min(found.candidates, key=lambda each: each.loss))}"
    return "\n".join([said, *(f"{each.label}: {_reason(each)}" for each in failed)])


def _rival(found: "Calibration") -> str:
    if found.as_fast is None:
        return ""
    return f"\n{found.as_fast} may be as fast: on {found.prompts} prompts the difference in speed is within the noise."


def _why_none(found: "Calibration", best: "Candidate") -> str:
    """Why no candidate was tested on the confirming half."""
    from multitoken.evaluation.promise import p_value

    assert found.allowed is not None and found.fewest is not None
    said = f"All candidates lost more than {_share(found.allowed.share)} on the half of the prompts that searches; {best.label} lost least, {_share(best.loss)}. "
    number = found.prompts // 2
    lost = round(best.loss * number)
    fine = [0.0] * lost + [1.0] * (number - lost)
    by_chance = p_value(fine, 1 - found.allowed.share) > 1 - found.confidence  # so many losses, or more, at the limit
    if found.prompts < found.fewest and by_chance:
        return f"{said}That may be chance: this limit takes at least {found.fewest:,} prompts, even if no answer loses anything."
    return f"{said}Allow a larger loss, or try stricter thresholds with --threshold."


def _reason(each: "Candidate") -> str:
    if each.needed is None:
        return f"loses too much ({_share(each.confirmed_loss)} on the half of the prompts that confirms)"
    return f"too few prompts to promise the limit; about {each.needed:,} would be enough"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"
