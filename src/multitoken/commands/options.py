"""What several commands take, and how they speak."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from multitoken.processes import Processes

if TYPE_CHECKING:
    from multitoken.decoding import Policy
    from multitoken.models.model import Model

POLICY_HELP = "next-token, static, confadapt or exact"
ModelArgument = Annotated[str, typer.Argument(help="A folder or Hub name, adapted or not; 'demo' is the embedded one.")]
PolicyOption = Annotated[
    str | None, typer.Option(help=f"{POLICY_HELP}. If not given: as the model says (exact, where it is adapted).")
]
ThresholdOption = Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")]
BranchesOption = Annotated[
    int | None,
    typer.Option(min=0, help="Further blocks a step, behind drafts that may be refused (exact): fewer, larger passes."),
]
KOption = Annotated[int | None, typer.Option(help="Most tokens a step; at most what the model was trained for.")]
BaseOption = Annotated[
    str | None, typer.Option(help="Where the model of a gated adapter lies, if not where the adapter says.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu.")
]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the model's own; float32 on a CPU), float32, bfloat16 or float16.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="auto: spread the model over all devices and memory (accelerate).")
]
PromptsOption = Annotated[int | None, typer.Option(help="How many questions (embedded tasks: 100 if not given).")]
GraderOption = Annotated[
    str | None,
    typer.Option(help="last-number, exact, contains, regex, rouge-l, none, or your own MODULE:FUNCTION (JSONL files)."),
]
AnswerLengthOption = Annotated[int, typer.Option(help="Most tokens of an answer.")]
TrustFlag = Annotated[bool, typer.Option(help="Run the modelling code that comes with the checkpoint.")]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line; the rest goes to stderr.")
]


def console_for(json_output: bool = False) -> Console:
    """Standard output; standard error where JSON is to be the last line of the output. Of several processes the first one speaks."""
    return Console(stderr=json_output, quiet=not Processes.here().first)


def print_json(value: dict[str, Any]) -> None:
    if Processes.here().first:
        print(json.dumps(value, ensure_ascii=False), flush=True)


def model_path(name: str, embedded: str = "gated") -> str:
    """A model's folder or name; "demo" stands for the embedded checkpoint."""
    if name != "demo":
        return name
    from multitoken.quickstart.embedded import checkpoint

    return str(checkpoint(embedded))


def given_policy(name: str | None, threshold: float | None, k: int | None) -> "Policy | None":
    """What the options say where no model is loaded, Exact if they name no policy; None: they say nothing."""
    from multitoken.decoding.policies import Exact, varied

    is_given = name is not None or threshold is not None or k is not None
    return varied(Exact(), name, threshold=threshold, k=k) if is_given else None


def chosen_policy(
    model: "Model", name: str | None, threshold: float | None, k: int | None, branches: int | None = None
) -> "Policy":
    """The model's default policy, with what the options say in its place."""
    from multitoken.decoding.policies import varied

    return varied(model.default_policy, name, threshold=threshold, k=k, branches=branches)
