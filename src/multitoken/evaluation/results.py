"""The rows as a file, as a table in the terminal and as a table in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from .rows import Row
from .statistics import Interval

COLUMNS = ("model", "policy", "accuracy", "identical to original", "identical to own k=1", "tokens/step", "tokens/s")


def write_results(path: str | Path, rows: Sequence[Row], provenance: Mapping[str, Any]) -> None:
    """`{"provenance": {...}, "rows": [...]}`, written atomically. Raises `OutputError` where it cannot be."""
    from multitoken.checkpoints.atomic import write_json

    write_json(Path(path), {"provenance": dict(provenance), "rows": [asdict(row) for row in rows]})


def results_table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """For the terminal. Numbers stand right; a rule parts one model from the next."""
    table = Table(box=box.SIMPLE_HEAD, title=title or _title(rows), title_justify="left", title_style="bold")
    for i, column in enumerate(table_columns(rows)):
        table.add_column(column, justify="left" if i < 2 else "right")
    for i, row in enumerate(rows):
        last_of_model = i + 1 < len(rows) and rows[i + 1].model != row.model
        table.add_row(*table_cells(row, several_tasks=_several_tasks(rows)), end_section=last_of_model)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """For the README and the docs: the same cells."""
    columns = table_columns(rows)
    lines = [_line(columns), _line("---" if i < 2 else "---:" for i in range(len(columns)))]
    lines += [_line(table_cells(row, several_tasks=_several_tasks(rows))) for row in rows]
    return "\n".join(lines) + "\n"


def table_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    return ("task", *COLUMNS) if _several_tasks(rows) else COLUMNS


def table_cells(row: Row, *, several_tasks: bool = False) -> tuple[str, ...]:
    """One row in words, in the order of `table_columns`."""
    cells = (
        row.model,
        row_label(row),
        _accuracy(row),
        _count(row.identical_to_original, row.ties, row.prompts),
        _count(row.identical_to_own_next_token, row.own_ties, row.prompts),
        f"{row.tokens_per_step:.2f}",
        f"{row.tokens_per_second:.0f} ({row.speedup:.2f}×)",
    )
    return (row.task, *cells) if several_tasks else cells


def row_label(row: Row) -> str:
    """The policy with what sets it: "confadapt 0.9", "static k=3"."""
    if row.threshold is not None:
        return f"{row.policy} {row.threshold:g}"
    return f"{row.policy} k={row.k}" if row.k > 1 else row.policy


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def percent_range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}%"


def _accuracy(row: Row) -> str:
    if row.accuracy is None or row.accuracy_interval is None:
        return "–"
    return f"{percent(row.accuracy)} ({percent_range(row.accuracy_interval)})"


def _count(identical: int, ties: int, prompts: int) -> str:
    tied = f" + {ties} tied" if ties else ""
    return f"{identical}{tied} of {prompts}"


def _title(rows: Sequence[Row]) -> str | None:
    return f"{rows[0].task}, {rows[0].prompts} prompts" if rows and not _several_tasks(rows) else None


def _several_tasks(rows: Sequence[Row]) -> bool:
    return len({row.task for row in rows}) > 1


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
