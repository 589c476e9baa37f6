"""The rows as a file, as a table in the terminal and as a table in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from multitoken.checkpoints.atomic import write_json

from .rows import Row
from .statistics import Interval

COLUMNS = (
    "model",
    "policy",
    "accuracy (95%)",
    "identical to original",
    "identical to own k=1",
    "tokens per step",
    "tokens per second",
)


def write_results(path: str | Path, rows: Sequence[Row], provenance: Mapping[str, Any]) -> None:
    """Write `{"provenance": {...}, "rows": [...]}`, atomically. Raises `OutputError` if it cannot be written."""
    write_json(path, {"provenance": dict(provenance), "rows": [asdict(row) for row in rows]})


def results_table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """The table for the terminal. Numbers are right-aligned; a rule separates one model from the next."""
    several = have_several_tasks(rows)
    words = title or _title(rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(words, "bold") if words else None,  # Text: brackets in a name are not markup
        title_justify="left",
    )
    cells = [table_cells(row, several_tasks=several) for row in rows]
    for i, column in enumerate(table_columns(rows)):
        is_name = i < 2 + several
        # Headings break between words before cells do. In a narrow terminal cells do too, but never within a word.
        longest_word = max(len(word) for line in (column, *(c[i] for c in cells)) for word in line.split())
        longest_cell = max((len(c[i]) for c in cells), default=0)
        table.add_column(
            column,
            justify="left" if is_name else "right",
            no_wrap=is_name,
            min_width=longest_word,
            max_width=max(longest_word, longest_cell),
        )
    for i, row in enumerate(rows):
        last_of_model = i + 1 < len(rows) and rows[i + 1].model != row.model
        table.add_row(*map(Text, cells[i]), end_section=last_of_model)  # Text again: labels may have brackets too
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The same cells in Markdown, for the README and the docs."""
    several = have_several_tasks(rows)
    columns = table_columns(rows)
    lines = [_line(columns), _line("---" if i < 2 + several else "---:" for i in range(len(columns)))]
    lines += [_line(table_cells(row, several_tasks=several)) for row in rows]
    return "\n".join(lines) + "\n"


def table_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    return ("task", *COLUMNS) if have_several_tasks(rows) else COLUMNS


def table_cells(row: Row, *, several_tasks: bool = False) -> tuple[str, ...]:
    """One row as text, in the order of `table_columns`."""
    cells = (
        row.model,
        row.label,
        "–" if row.accuracy is None else percent(row.accuracy, row.accuracy_interval),
        _count(row.identical_to_original, row.ties),
        _count(row.identical_to_own_next_token, row.own_ties),
        f"{row.tokens_per_step:.2f}",
        f"{row.tokens_per_second:.0f} ({row.speedup:.2f}×)",
    )
    return (f"{row.task} ({row.prompts:,})", *cells) if several_tasks else cells


def percent(share: float, interval: Interval | None = None) -> str:
    """ "95.7%", or "95.7% (94.6–96.6)" with its interval."""
    written = f"{100 * share:.1f}%"
    return written if interval is None else f"{written} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def _count(identical: int, ties: int) -> str:
    return f"{identical} + {ties} tied" if ties else str(identical)


def _title(rows: Sequence[Row]) -> str | None:
    return rows[0].heading if rows and not have_several_tasks(rows) else None


def have_several_tasks(rows: Sequence[Row]) -> bool:
    return len({row.task for row in rows}) > 1


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
