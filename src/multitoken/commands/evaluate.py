"""`multitoken evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from multitoken.errors import UsageError

from . import options


def evaluate_command(
    model: Annotated[str, typer.Argument(help="The model to measure; 'demo' is the embedded adapted one.")],
    output: Annotated[Path, typer.Option(help="Folder for results.json, tradeoff.png and report.html.")],
    task: Annotated[str, typer.Option(help="An embedded task (word-problems, letters, ...) or a JSONL file.")],
    original: Annotated[str | None, typer.Option(help="The model that MODEL was made from, to compare with.")] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL, repeatable: another model to measure; its rows get that name.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:THRESHOLD or K], repeatable: exact:0.5, confadapt:0.9, static:3."),
    ] = None,
    prompts: options.PromptsOption = None,
    grader: options.GraderOption = None,
    max_new_tokens: options.AnswerLengthOption = 256,
    temperature: options.TemperatureOption = None,
    top_p: options.TopPOption = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many of the most likely tokens.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first question (0 if not given); each next question's seed is one more."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Questions answered at the same time. 1 measures what a single user sees; 32 is faster.")
    ] = 1,
    base: options.BaseOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    device_map: options.DeviceMapOption = None,
    trust_remote_code: options.TrustFlag = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what the output folder holds.")] = False,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted measurement in --output.")] = False,
    json_output: options.JsonFlag = False,
) -> None:
    """Measure MODEL under several policies: accuracy, speed, and how many outputs are identical to those of --original."""
    from multitoken.api import evaluate, task_of
    from multitoken.checkpoints.provenance import provenance
    from multitoken.evaluation.journal import check_answers
    from multitoken.evaluation.measure import parse_policy
    from multitoken.evaluation.run import check_batch_size
    from multitoken.evaluation.sampled import sampling_of
    from multitoken.models.model import Model

    drawing = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    sampling_of(**drawing)
    policies = [parse_policy(text) for text in policy or ()]
    check_batch_size(batch_size)
    check_answers(output, overwrite=overwrite, resume=resume)
    others = _named(compare or ())
    questions = task_of(task, prompts, grader, max_new_tokens)
    how: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map}
    how["trust_remote_code"] = trust_remote_code
    rows = evaluate(
        original=None if original is None else Model.load(options.model_path(original, "base"), **how),
        model=Model.load(options.model_path(model), base=base, **how),
        others={name: Model.load(options.model_path(path), **how) for name, path in others.items()},
        task=questions,
        policies=policies,
        batch_size=batch_size,
        output=output,
        overwrite=overwrite,
        resume=resume,
        console=options.console_for(json_output),
        **drawing,
    )
    if json_output:
        options.print_json({"provenance": provenance(), "rows": [dataclasses.asdict(row) for row in rows]})


def _named(compare: Sequence[str]) -> dict[str, str]:
    """NAME=MODEL -> the models by name."""
    named: dict[str, str] = {}
    for text in compare:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in named:
            raise UsageError(f"--compare {text!r}: expected NAME=MODEL, each name once, such as lora=runs/lora")
        named[name] = path
    return named
