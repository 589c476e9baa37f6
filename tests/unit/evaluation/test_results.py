import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from multitoken.evaluation.results import markdown_table, results_table, write_results
from multitoken.evaluation.rows import Row

# The contract of results.json: other people's scripts read these fields.
PROMISED = {
    "task", "model", "policy", "threshold", "k", "prompts", "accuracy", "identical_to_original", "tokens_per_step",
    "tokens_per_second", "forward_passes",
}  # fmt: skip


def test_results_json_holds_what_was_promised(make_row: Callable[..., Row], tmp_path: Path) -> None:
    """Guards against a renamed field, and against an interval or a missing value that the file changes."""
    rows = [make_row(), make_row(policy="exact", threshold=0.5, k=16, accuracy=None, speedup_interval=None)]
    write_results(tmp_path / "results.json", rows, {"command": "multitoken demo"})
    read = json.loads((tmp_path / "results.json").read_text())
    assert list(read) == ["provenance", "rows"]
    assert read["provenance"] == {"command": "multitoken demo"}
    assert all(set(row) >= PROMISED for row in read["rows"])
    assert read["rows"][0]["accuracy_interval"] == [0.938, 0.96]
    assert read["rows"][1] | {"threshold": 0.5, "accuracy": None, "accuracy_interval": None} == read["rows"][1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_is_whole(make_row: Callable[..., Row], width: int) -> None:
    """Guards against columns cut with "…" in an ordinary 80 column terminal, and labels taken for markup."""
    rows = [make_row(), make_row(model="adapted", policy="confadapt", label="[red]0.99", own_ties=2)]
    console = Console(width=width, record=True, file=StringIO())
    console.print(results_table(rows))
    printed = console.export_text()
    assert "…" not in printed
    for part in ("sums, 1,500 prompts", "[red]0.99", "95.0%", "(93.8–96.0)", "1500", "tied", "1.00", "180", "(1.00×)"):
        assert part in printed


def test_the_title_is_the_name_as_it_is(make_row: Callable[..., Row]) -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(results_table([make_row(task="qa[v2] :key:")]))
    assert "qa[v2] :key:, 1,500 prompts" in console.export_text()


def test_the_markdown_table(make_row: Callable[..., Row]) -> None:
    """Guards against a table that does not render: a row with another number of cells, or a `|` in a label that starts
    a column."""
    rows = [make_row(), make_row(model="adapted", label="a|b", accuracy=None, ties=1)]
    assert markdown_table(rows) == (
        "| model | policy | accuracy (95%) | identical to original | identical to own k=1 | tokens per step |"
        " tokens per second |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| original | next-token | 95.0% (93.8–96.0) | 1500 | 1500 | 1.00 | 180 (1.00×) |\n"
        "| adapted | a\\|b | – | 1500 + 1 tied | 1500 | 1.00 | 180 (1.00×) |\n"
    )


def test_several_tasks_name_themselves(make_row: Callable[..., Row]) -> None:
    """Guards against rows of two tasks that look like two results of one."""
    lines = markdown_table([make_row(), make_row(task="stories", prompts=60)]).splitlines()
    assert lines[0].startswith("| task | model |")
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert lines[3].startswith("| stories (60) | original |")
