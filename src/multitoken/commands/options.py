"""Options and output functions that several commands share."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from multitoken.errors import UsageError
from multitoken.processes import Processes

if TYPE_CHECKING:
    from multitoken.decoding import Policy
    from multitoken.models.model import Model

POLICY_HELP = "next-token, static, confadapt or exact, or with their number: static:3, confadapt:0.9, exact:0.5"
ModelArgument = Annotated[str, typer.Argument(help="A folder or Hub name, adapted or not; 'demo' is the embedded one.")]
PolicyOption = Annotated[
    str | None, typer.Option(help=f"{POLICY_HELP}. If not given: the model's default policy (exact, if it is adapted).")
]
ThresholdOption = Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")]
BranchesOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Further blocks per step, after drafts that may be rejected (exact): fewer, larger passes."
    ),
]
KOption = Annotated[
    int | None, typer.Option(help="Maximum number of tokens per step; at most what the model was trained for.")
]
BaseOption = Annotated[
    str | None, typer.Option(help="Where the base model of a gated adapter is, if not where the adapter says.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu.")
]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the model's own; float32 on a CPU), float32, bfloat16 or float16.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="auto: spread the model over all devices and memory (by accelerate).")
]
TemperatureOption = Annotated[float | None, typer.Option(help="Sample at this temperature; greedy if not given, or 0.")]
TopPOption = Annotated[
    float | None, typer.Option(help="Sample among the most likely tokens that together have this probability.")
]
PromptsOption = Annotated[int | None, typer.Option(help="How many questions (embedded tasks: 100 if not given).")]
GraderOption = Annotated[
    str | None,
    typer.Option(help="last-number, exact, contains, regex, rouge-l, none, or your own MODULE:FUNCTION (JSONL files)."),
]
AnswerLengthOption = Annotated[int, typer.Option(help="Maximum number of tokens of an answer.")]
TrustFlag = Annotated[bool, typer.Option(help="Run the modelling code that comes with the checkpoint.")]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout; all else goes to stderr.")
]


def console_for(json_output: bool = False) -> Console:
    """A console on standard output, or on standard error if JSON is printed as well. Of several processes, only the first one
    prints."""
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


def chosen_policy(
    model: "Model", name: str | None, threshold: float | None, k: int | None, branches: int | None = None
) -> "Policy":
    """The model's default policy, changed by the options that are given."""
    from multitoken.decoding.policies import varied

    return varied(model.default_policy, **policy_options(name, threshold, k, branches))


def policy_options(
    name: str | None, threshold: float | None, k: int | None, branches: int | None = None
) -> dict[str, Any]:
    """The options of `varied`. The name may hold them in short: exact:0.5, as in `evaluate`."""
    options = {"name": name, "threshold": threshold, "k": k, "branches": branches}
    if name is None or ":" not in name:
        return options
    from multitoken.decoding.policies import as_options
    from multitoken.evaluation.measure import parse_policy

    for option, value in as_options(parse_policy(name)).items():
        if option == "policy":
            options["name"] = value
        elif value is not None and options[option] is not None:
            raise UsageError(f"--policy {name} already gives the {option}; leave --{option} out")
        elif value is not None:
            options[option] = value
    return options
