"""The results of `multitoken evaluate` for a model card: the rows as a table, and the command that measured them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitoken.errors import DataError

RESULTS, PICTURE = "results.json", "tradeoff.png"
_KEYS = (
    "task",
    "prompts",
    "model",
    "label",
    "accuracy",
    "accuracy_interval",
    "tokens_per_step",
    "speedup",
    "identical_to_original",
    "ties",
)
_HEADINGS = ("model", "policy", "accuracy (95%)", "tokens per step", "speed", "identical to original")


@dataclass(frozen=True)
class Measured:
    """An evaluation: its folder, its rows as in `results.json`, and its provenance."""

    folder: Path
    rows: list[dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def table(self) -> str:
        """The rows as Markdown, one table per task."""
        tables = []
        for task in dict.fromkeys(row["task"] for row in self.rows):
            mine = [row for row in self.rows if row["task"] == task]
            lines = [f"{task}, {mine[0]['prompts']:,} prompts{_sampled(mine[0])}:", "", _line(_HEADINGS)]
            lines.append(_line("---" if i < 2 else "---:" for i in range(len(_HEADINGS))))
            tables.append("\n".join([*lines, *(_line(_cells(row)) for row in mine)]))
        return "\n\n".join(tables)


def read_evaluation(folder: str | Path) -> Measured:
    """Read the evaluation in a folder. Raises `DataError` for a folder that `multitoken evaluate` did not write."""
    place = Path(folder)
    for name in (RESULTS, PICTURE):
        if not (place / name).is_file():
            raise DataError(
                f"{folder} has no {name}; expected the folder that `multitoken evaluate ... --output {folder}` writes"
            )
    try:
        found = json.loads((place / RESULTS).read_text(encoding="utf-8"))
        rows, provenance = found["rows"], found["provenance"]
        missing = next((f"rows[{i}].{key}" for i, row in enumerate(rows) for key in _KEYS if key not in row), None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{place / RESULTS} cannot be read ({error!r}); evaluate again") from error
    if missing or not rows:
        raise DataError(f"{place / RESULTS} lacks {missing or 'rows'}; evaluate again with this version of multitoken")
    return Measured(place, rows, provenance)


def _sampled(row: dict[str, Any]) -> str:
    """The temperature, top-p and top-k of sampled answers; empty for greedy ones."""
    found = row.get("sampling") or {}
    parts = {"temperature": found.get("temperature"), "top-p": found.get("top_p"), "top-k": found.get("top_k")}
    return "".join(f", {name} {value:g}" for name, value in parts.items() if value is not None)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    accuracy = "–"
    if row["accuracy"] is not None:
        low, high = row["accuracy_interval"]
        accuracy = f"{100 * row['accuracy']:.1f}% ({100 * low:.1f}–{100 * high:.1f})"
    ties = f" + {row['ties']} tied" if row["ties"] else ""
    return (
        row["model"],
        row["label"],
        accuracy,
        f"{row['tokens_per_step']:.2f}",
        f"{row['speedup']:.2f}×",
        f"{row['identical_to_original']:,}{ties}",
    )


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
