"""Rows joined one behind the other, so that blocks also stand behind long prefixes, at positions that no sample reaches alone.

A sample in such a row sees the earlier ones, as the turns of one conversation. Its text was not written behind them: what is
taught there is the original's own distribution behind this prefix (see `objective` on sampled texts).
"""

from typing import Any

_LONGEST = 4096  # tokens: a pass pays for the square of them
_SHARE_OF_BLOCKS = 2  # every second block is kept: they too see all that stands in front of them


def longest_join(positions: int | None, k_max: int) -> int:
    """Tokens that a joined row may hold, so that a block fits behind the last. positions: of the model, if it has a limit."""
    return _LONGEST if positions is None else min(_LONGEST, positions - k_max)


def is_joined(step: int, share: float) -> bool:
    """Whether the rows of a step are joined, in a share of all steps that is spread evenly."""
    return int((step + 1) * share + 1e-9) > int(step * share + 1e-9)


def join(rows: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """Items of the stream in groups of as many as divide their number and fit in `room` tokens, each group one row; the items
    themselves where not even two fit."""
    for size in range(len(rows), 1, -1):
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        if len(rows) % size == 0 and all(sum(len(row["ids"]) for row in group) <= room for group in groups):
            return [_in_line(group) for group in groups]
    return rows


def _in_line(group: list[dict[str, Any]]) -> dict[str, Any]:
    line: dict[str, Any] = {name: [] for name in ("ids", "places", "anchors", "ends", "ks", "sampled")}
    for row in group:
        start = len(line["ids"])
        line["ids"] += row["ids"]
        line["places"] += [start + place for place in row["places"]]
        for name in ("anchors", "ends"):
            line[name] += [start + place for place in row[name][::_SHARE_OF_BLOCKS]]
        line["ks"] += row["ks"][::_SHARE_OF_BLOCKS]
        line["sampled"] += [1 if start else drawn for drawn in row["sampled"][::_SHARE_OF_BLOCKS]]
    return line | {"lengths": [len(line["ids"])]}
