"""The report: one self-contained HTML page with the numbers, the picture, the race and the provenance.

The page makes no request and runs no script: everything that a prompt or a model wrote is escaped, and the page's own
security policy forbids the rest. The replay of the race is plain CSS.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from multitoken.checkpoints.atomic import write_text
from multitoken.decoding.policies import ConfAdapt, Exact

from .protocols import ChunkLike, GenerationLike
from .results import COLUMNS, have_several_tasks, percent, table_cells
from .rows import Row

_COLORS = 6  # .c0 to .c5 in the template
_REPLAY_SECONDS = 6.0  # how long the slowest lane of a race takes to replay


@dataclass(frozen=True)
class Headline:
    """A number in large type, what it is in words, and a note that qualifies it."""

    value: str
    words: str
    note: str = ""


@dataclass(frozen=True)
class RaceEntry:
    """One answer to a prompt under one policy. Entries with equal prompts appear side by side."""

    prompt: str
    policy_label: str
    generation: GenerationLike


def write_report(
    path: str | Path,
    *,
    title: str,
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
    summary: str = "",
    headlines: Sequence[Headline] | None = None,
    picture: str | Path | None = None,
    race: Sequence[RaceEntry] = (),
) -> None:
    """Write the page, atomically. `headlines` None: `headlines_of(rows)`; `picture` is a PNG file to embed.

    Raises `OutputError` where the page cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("multitoken.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = environment.from_string(source)
    page = template.render(
        title=title,
        summary=summary,
        headlines=headlines_of(rows) if headlines is None else headlines,
        picture=base64.b64encode(Path(picture).read_bytes()).decode("ascii") if picture is not None else "",
        columns=COLUMNS,
        tables=_tables(rows),
        lengths=_lengths(rows),
        drifts=_drifts(rows),
        races=_races(race),
        provenance={key: _written(value) for key, value in provenance.items()},
    )
    write_text(path, page)


def headlines_of(rows: Sequence[Row]) -> list[Headline]:
    """What a user gets without setting anything: Exact's speed and identity, ConfAdapt's speed and accuracy.

    Each is at its default threshold, so that nothing is picked for its result. If that was not measured, the nearest
    threshold is used. Without such rows there is no headline.
    """
    headlines: list[Headline] = []
    if exact := _default(rows, Exact.name, Exact().threshold):
        headlines += [_speed(exact), _sameness(exact)]
    if confadapt := _default(rows, ConfAdapt.name, ConfAdapt().threshold):
        headlines += [_speed(confadapt), *_accuracy(confadapt)]
    return headlines


def _default(rows: Sequence[Row], policy: str, threshold: float) -> Row | None:
    """The row with the nearest threshold, from the first task, because the report starts with that task."""
    mine = [row for row in rows if row.policy == policy and row.task == rows[0].task]
    return min(mine, key=lambda row: abs((row.threshold or 0.0) - threshold), default=None)


def _speed(row: Row) -> Headline:
    between = (
        f" (95%: {row.speedup_interval.low:.2f} to {row.speedup_interval.high:.2f})" if row.speedup_interval else ""
    )
    note = f"{row.speedup:.2f}× the original's tokens per second{between}"
    return Headline(f"{row.tokens_per_step:.2f}", f"tokens per step, {row.label}", note)


def _sameness(row: Row) -> Headline:
    apart = row.prompts - row.identical_to_own_next_token - row.own_ties
    return Headline(
        f"{row.identical_to_own_next_token:,} of {row.prompts:,}",
        f"outputs identical to next-token decoding of the same weights{' and seeds' if row.sampling else ''}",
        f"{row.own_ties} tied, {apart} different",
    )


def _accuracy(row: Row) -> list[Headline]:
    if row.accuracy is None or row.accuracy_change is None or row.accuracy_change_interval is None:
        return []
    low, high = row.accuracy_change_interval
    note = f"{100 * row.accuracy_change:+.1f} points against the original (95%: {100 * low:+.1f} to {100 * high:+.1f})"
    return [Headline(percent(row.accuracy), f"correct answers, {row.label}", note.replace("-", "−"))]


def _tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table per task. The first row of a further model has a heavier rule above it."""
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        before = [None, *(row.model for row in mine[:-1])]
        lines = [
            {"first": last not in (None, row.model), "cells": table_cells(row)}
            for last, row in zip(before, mine, strict=True)
        ]
        tables.append({"caption": mine[0].heading, "rows": lines})
    return tables


def _lengths(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each row that writes several tokens per step: the shares of all tokens that steps of one, two, three ... tokens
    wrote."""
    bars, several = [], have_several_tasks(rows)
    for row in rows:
        if len(row.steps_by_length) < 2:
            continue
        steps = sum(row.steps_by_length)
        tokens = sum(n * count for n, count in enumerate(row.steps_by_length, 1))
        parts = [
            {
                "share": f"{100 * n * count / tokens:.2f}",
                "hue": round(20 + 200 * (n - 1) / (len(row.steps_by_length) - 1)),
                "tip": f"steps of {n} token{'s' if n > 1 else ''}: {count / steps:.1%} of the steps, "
                f"{n * count / tokens:.1%} of the tokens",
                "n": n if n * count >= 0.04 * tokens else "",
            }
            for n, count in enumerate(row.steps_by_length, 1)
            if count
        ]
        name = f"{row.task}: {row.model}, {row.label}" if several else f"{row.model}, {row.label}"
        bars.append({"name": name, "rate": f"{row.tokens_per_step:.2f}", "parts": parts})
    return bars


def _drifts(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What may change in the form of the answers without being wrong: their length, and how often they repeat themselves."""
    return [
        (
            row.model,
            row.label,
            f"{row.tokens / row.prompts:.1f} ({100 * (row.tokens / row.original_tokens - 1):+.1f}%)".replace("-", "−"),
            f"{100 * row.repetition:.1f}% ({100 * (row.repetition - row.original_repetition):+.1f})".replace("-", "−"),
        )
        for row in rows
        if row.original_tokens
    ]


def _races(entries: Sequence[RaceEntry]) -> list[dict[str, Any]]:
    races = []
    for prompt in dict.fromkeys(entry.prompt for entry in entries):
        lanes = [entry for entry in entries if entry.prompt == prompt]
        slowest = max(lane.generation.seconds for lane in lanes)
        stretch = _REPLAY_SECONDS / slowest
        pace = f"{stretch:.1f} times slower" if stretch >= 1 else f"{1 / stretch:.1f} times faster"
        races.append(
            {
                "prompt": prompt,
                "pace": f"{pace} than measured",
                "lanes": [_lane(lane, slowest, stretch, lanes[0].generation.token_ids) for lane in lanes],
            }
        )
    return races


def _lane(entry: RaceEntry, slowest: float, stretch: float, first: Sequence[int]) -> dict[str, Any]:
    """One lane for the template. first: the tokens of the first lane, with which the others are compared."""
    generation = entry.generation
    same = _shared(generation.token_ids, first)
    ends = accumulate(len(chunk.token_ids) for chunk in generation.chunks)
    # Only the whole answer was timed, so the forward passes are assumed to be equally long.
    pace = generation.seconds * stretch / len(generation.chunks)
    facts = (
        f"{generation.tokens_per_step:.2f} tokens per step · {len(generation.token_ids)} tokens in "
        f"{generation.forward_passes} forward passes · {generation.seconds:.2f} s"
    )
    if tuple(generation.token_ids) != tuple(first):
        facts += f" · differs from token {same + 1} on"
    return {
        "label": entry.policy_label,
        "facts": facts,
        "share": f"{generation.seconds / slowest:.3f}",
        "last": f"{generation.seconds * stretch:.3f}",
        "chunks": [
            _chunk(chunk, i, pace) | {"other": end > same}
            for i, (chunk, end) in enumerate(zip(generation.chunks, ends, strict=True))
        ],
    }


def _shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many leading tokens are the same in both."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def _chunk(chunk: ChunkLike, i: int, pace: float) -> dict[str, Any]:
    number = len(chunk.token_ids)
    sure = ", ".join(f"{100 * confidence:.1f}%" for confidence in chunk.confidences)
    where = "prefill" if i == 0 else f"step {i}"
    return {
        "text": chunk.text or "▫",  # an end of text or part of a character has no text, but the pass is shown
        "color": i % _COLORS,
        "sure": f"{min(chunk.confidences, default=1.0):.2f}",
        "at": f"{(i + 1) * pace:.3f}",
        "tip": f"{where}: {number} token{'s' if number != 1 else ''}, confidence {sure}",
    }


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
