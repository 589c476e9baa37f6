"""Join rows one after the other, so that blocks also come after long prefixes, at positions that no sample reaches alone.

A sample in a joined row sees the earlier ones, like the turns of one conversation. Its text was not written after them,
so what is taught there is the original's own distribution after this prefix (see `objective` on sampled texts).
"""

from typing import Any

_LONGEST = 4096  # tokens: the cost of a pass grows with their square
_SHARE_OF_BLOCKS = 2  # every second block is kept, because each block attends to everything before it


def longest_join(positions: int | None, k_max: int) -> int:
    """The most tokens of a joined row, so that a block fits after the last. positions: the model's limit, if it has one."""
    return _LONGEST if positions is None else min(_LONGEST, positions - k_max)


def is_joined(step: int, share: float) -> bool:
    """Whether the rows of this step are joined. `share` of all steps are, spread evenly."""
    return int((step + 1) * share + 1e-9) > int(step * share + 1e-9)


def join(rows: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """Join items of the stream into groups, each group one row. All groups have the same number of items: the largest that
    divides the number of all items and keeps every group within `room` tokens. If not even two fit, the items stay as
    they are."""
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
