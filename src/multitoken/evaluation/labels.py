"""Labels next to the points of a picture, each where it hides nothing."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from .rows import Row

# Offsets from a point, in typographic points, the preferred first. Error bars run straight up and down.
_NEAR = ((6, 8), (-6, 8), (6, -8), (-6, -8), (0, 14), (0, -14), (9, 0), (-9, 0))
_OFFSETS = (*_NEAR, *((2 * dx, 2 * dy) for dx, dy in _NEAR))


def position(row: Row) -> tuple[float, float]:
    """Where a graded row is in the picture: tokens per step, accuracy in percent."""
    return row.tokens_per_step, 100 * (row.accuracy or 0.0)


def place_labels(axes: Axes, points: Sequence[tuple[Row, str, str]], legend: Bbox) -> None:
    """Write each (row, words, colour) next to its point, at the first place where it hides nothing, or else the least bad.

    Call it when the axes' limits and the legend are final: everything is compared in pixels.
    """
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.get_lines()]
    half = 5.5 * axes.figure.dpi / 72  # half a marker
    boxes = [legend]
    for row, _, _ in points:
        x, y = axes.transData.transform(position(row))
        boxes.append(Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half))
    inside = axes.get_window_extent()

    def badness(box: Bbox) -> int:
        """How much a label hides. A hidden marker, label or legend counts more than a crossed line."""
        outside = not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        return 10 * (outside + sum(box.overlaps(other) for other in boxes)) + crossed

    for row, words, color in points:
        tries = [_label(axes, position(row), words, color, offset) for offset in _OFFSETS]
        best = min(tries, key=lambda label: badness(label.get_window_extent()))  # the first of equals
        for label in tries:
            if label is not best:
                label.remove()
        boxes.append(best.get_window_extent())


def _label(axes: Axes, point: tuple[float, float], words: str, color: str, offset: tuple[float, float]) -> Any:
    return axes.annotate(
        words,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right" if offset[0] < 0 else "center",
        va="center",
        fontsize=10,
        color=color,
        zorder=15,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
