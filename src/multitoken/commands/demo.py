"""`multitoken demo`."""

from pathlib import Path
from typing import Annotated

import typer

from multitoken.errors import UsageError

from .options import console_for


def demo_command(
    fast: Annotated[
        bool, typer.Option("--fast", help="Use the embedded adapter instead of training one: takes under a minute.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for the report, the plot and the numbers. An earlier demo in it is replaced.")
    ] = Path("demo-output"),
    minutes: Annotated[float | None, typer.Option(help="Minutes of training.")] = None,
    questions: Annotated[int | None, typer.Option(help="Number of questions for each model and policy.")] = None,
) -> None:
    """Watch an ordinary model become a multi-token model, with measured numbers and a plot."""
    from multitoken.quickstart.demo import QUESTIONS_OF_A_FAST_ONE, DemoOptions, run_demo

    if fast and minutes is not None:
        raise UsageError("--minutes: not possible with --fast, which does not train; leave one of them out")
    if fast and questions is None:
        questions = QUESTIONS_OF_A_FAST_ONE
    given = {"minutes": minutes, "questions": questions}
    run_demo(DemoOptions(output, fast, **{key: v for key, v in given.items() if v is not None}), console_for())
    console_for().print(
        f"See it in a browser:  multitoken serve {'demo' if fast else output / 'adapted'}", soft_wrap=True
    )
