"""From models, a task and policies to a folder with numbers, a picture and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from multitoken.checkpoints.atomic import disk_errors
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding.policies import ConfAdapt, Exact, Policy, StaticK, make_policy
from multitoken.decoding.sampling import Sampling
from multitoken.errors import UsageError
from multitoken.progress import counting_bar

from .identity import HALF
from .journal import Journal
from .picture import tradeoff_picture
from .protocols import ModelLike
from .report import RaceEntry, write_report
from .results import results_table, write_results
from .rows import Row
from .run import branches_said, evaluate
from .tasks import Task

FILES = ("results.json", "tradeoff.png", "report.html")
DEFAULT_POLICIES: tuple[Policy, ...] = (
    Exact(0.5),
    *(ConfAdapt(threshold) for threshold in (0.99, 0.95, 0.9, 0.8, 0.6)),
    StaticK(2),
    StaticK(4),
)


def label_of(policy: Policy) -> str:
    """A policy's name for people: "Exact 0.5", "Exact 0.3, 4 branches", "ConfAdapt 0.9, k=8", "static 3"."""
    if isinstance(policy, Exact | ConfAdapt):
        k = f", k={policy.k}" if policy.k is not None else ""
        return f"{type(policy).__name__} {policy.threshold:g}{k}{branches_said(policy)}"
    return f"static {policy.k}" if isinstance(policy, StaticK) else "next token"


def parse_policy(text: str) -> Policy:
    """ "exact:0.5", "exact:0.3:4" (with 4 branches), "confadapt:0.9", "static:3" or a bare name -> the policy. Raises `UsageError`."""
    name, colon, said = text.partition(":")
    number, more, branches = said.partition(":")
    if not colon:
        return make_policy(name)
    try:
        if name == StaticK.name:
            return make_policy(name, k=int(said))
        return make_policy(name, threshold=float(number), branches=int(branches) if more else None)
    except ValueError as error:  # a DecodingError has the better message
        reason = str(error) if "expected" in str(error) or "has no" in str(error) else f"{said!r} is not a number"
        raise UsageError(
            f"policy {text!r}: {reason}; write exact:0.5, exact:0.3:4, confadapt:0.9, static:3 or next-token"
        ) from error


def measure(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Sequence[Policy],
    console: Console,
    sampling: Sampling | None = None,
    *,
    batch_size: int = 1,
    journal: Journal | None = None,
) -> list[Row]:
    """`evaluate` with a bar and the table afterwards."""
    with counting_bar(console, f"answering {task.name}") as progress:
        rows = evaluate(
            models,
            task,
            {label_of(policy): policy for policy in policies},
            sampling=sampling,
            batch_size=batch_size,
            journal=journal,
            progress=progress,
        )
    console.print(results_table(rows))
    return rows


def of_type(models: Mapping[str, ModelLike]) -> str:
    """What a reader of the numbers must know about a 16-bit type, as the end of a sentence; "" for float32."""
    dtype = next(iter(models.values())).hf.dtype
    if dtype not in HALF:
        return ""
    return f", in {str(dtype).removeprefix('torch.')}, where a tie is a difference within the rounding of the type"


def publish(
    output: Path,
    rows: Sequence[Row],
    console: Console,
    *,
    title: str,
    summary: str,
    race: Sequence[RaceEntry] = (),
    **facts: Any,
) -> dict[str, Any]:
    """Write `FILES` into the folder, each atomically, and print their paths. Returns the provenance."""
    record = provenance(**facts)
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        write_results(output / FILES[0], rows, record)
        tradeoff_picture(rows, output / FILES[1])
        write_report(
            output / FILES[2],
            title=title,
            summary=summary,
            rows=rows,
            provenance=record,
            picture=output / FILES[1],
            race=race,
        )
    for name in FILES:
        console.print(f"  {output / name}", markup=False, emoji=False, soft_wrap=True)
    return record
