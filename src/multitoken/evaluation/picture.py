"""The trade-off as a picture: what each policy gains in speed and costs in accuracy, compared with the original model.

It is drawn on a `Figure` of its own, without pyplot's global state, and is readable at 800 pixels. It uses Okabe and Ito's
colours and a marker for each policy, so that no meaning depends on colour alone.
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from multitoken.checkpoints.atomic import disk_errors

from .labels import place_labels, position
from .rows import Row
from .statistics import Interval

# Colour, marker and the usual name.
_STYLES = {
    "exact": ("#0072B2", "o", "Exact"),
    "confadapt": ("#D55E00", "s", "ConfAdapt"),
    "static": ("#009E73", "^", "Static k"),
}
# Of further lines. Three colours and four markers make twelve pairs before one comes again.
_OTHER_COLOURS, _OTHER_MARKERS = ("#CC79A7", "#E69F00", "#56B4E9"), "DvPX"
_INK, _QUIET, _GRID = "#1f2328", "#656d76", "#e6e8eb"


def tradeoff_picture(rows: Sequence[Row], path: str | Path) -> None:
    """Draw the rows of one task into a PNG, 1600 by 1000 pixels.

    Graded rows: accuracy over tokens per step, one line per policy, the original as a dashed reference line with its 95%
    band. Ungraded rows: bars of tokens per step and tokens per second. Raises `ValueError` if the rows are not of one task.
    """
    tasks = {row.task for row in rows}
    if len(tasks) != 1:
        raise ValueError(f"rows of {len(tasks)} tasks {sorted(tasks)}; expected those of one task")
    with rc_context({"text.parse_math": False}):  # dollar signs in a name are no formula
        figure = Figure(figsize=(8, 5), dpi=200, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        if any(row.accuracy is not None for row in rows):
            _draw_tradeoff(figure, [row for row in rows if row.accuracy is not None])
        else:
            _draw_speeds(figure, rows)
        _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    """Save the whole picture or nothing. Raises `OutputError` for a full disk or a path that cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            figure.savefig(temporary, format="png")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _draw_tradeoff(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.add_subplot()
    baselines = [row for row in rows if row.policy == "next-token"]
    original = next((row for row in baselines if row.model == "original"), baselines[0] if baselines else None)
    if original is not None:
        _draw_reference(axes, original)
        _draw_points(axes, [original], _INK, "D", f"{original.model}, next token", zorder=11)
    for row in baselines:
        if row is not original:
            # Larger and hollow, so that both are visible where they coincide.
            _draw_points(axes, [row], _INK, "D", f"{row.model}, next token", zorder=10, hollow=True)
    points: list[tuple[Row, str, str]] = []  # row, what to write next to it, colour
    for name, color, marker, line in _lines(rows):
        _draw_points(axes, line, color, marker, name, zorder=5)
        points += [(row, f"{row.threshold:g}" if row.threshold is not None else f"k={row.k}", color) for row in line]

    axes.set_xlim(0.6, max(row.tokens_per_step for row in rows) * 1.06 + 0.2)
    axes.set_ylim(*_accuracy_limits(rows))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.set_xlabel("tokens per step (next-token decoding: 1)")
    axes.set_ylabel("correct answers")
    _plain(axes, f"Speed against accuracy: {rows[0].heading}")
    axes.grid(color=_GRID, linewidth=0.8)
    legend = axes.legend(
        title="number: threshold; bar, band: 95%",
        title_fontsize=9,
        alignment="left",
        fontsize=10,
        labelcolor=_INK,
        edgecolor=_GRID,
        framealpha=0.92,
        borderpad=0.7,
    )
    legend.set_zorder(20)
    figure.draw_without_rendering()  # this places the legend where it hides least, so that the labels can avoid it
    place_labels(axes, points, legend.get_window_extent())


def _lines(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Row]]]:
    """(name, colour, marker, rows from slow to fast) of each model and policy except next-token decoding."""
    keys = list(dict.fromkeys((row.model, row.policy) for row in rows if row.policy != "next-token"))
    several_models = len({model for model, _ in keys}) > 1
    others = zip(cycle(_OTHER_COLOURS), cycle(_OTHER_MARKERS), strict=True)
    used: set[str] = set()
    lines = []
    for model, policy in keys:
        color, marker, name = _STYLES.get(policy, ("", "", policy))
        if not color or policy in used:
            color, marker = next(others)
        used.add(policy)
        line = sorted(
            (row for row in rows if (row.model, row.policy) == (model, policy)), key=lambda row: row.tokens_per_step
        )
        lines.append((f"{name}, {model}" if several_models else name, color, marker, line))
    return lines


def _draw_reference(axes: Axes, original: Row) -> None:
    level = 100 * (original.accuracy or 0.0)
    axes.axhline(level, color=_INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    if original.accuracy_interval is not None:
        low, high = original.accuracy_interval
        axes.axhspan(100 * low, 100 * high, color=_INK, alpha=0.07, linewidth=0, zorder=1)


def _draw_points(
    axes: Axes, rows: Sequence[Row], color: str, marker: str, name: str, *, zorder: int, hollow: bool = False
) -> None:
    x, y = zip(*map(position, rows), strict=True)
    below_and_above = list(zip(*map(_reach, rows), strict=True))
    axes.errorbar(x, y, yerr=below_and_above, fmt="none", ecolor=color, elinewidth=1.1, alpha=0.5, zorder=3)
    axes.plot(
        x,
        y,
        color=color,
        linestyle="-" if len(rows) > 1 else "none",
        linewidth=1.8,
        marker=marker,
        markersize=10.5 if hollow else 7.5,
        markerfacecolor="white" if hollow else color,
        markeredgecolor=color if hollow else "white",
        markeredgewidth=1.4 if hollow else 0.8,
        label=name,
        zorder=zorder,
    )


def _reach(row: Row) -> tuple[float, float]:
    """How far the interval reaches below and above the accuracy, in points."""
    accuracy, interval = row.accuracy or 0.0, row.accuracy_interval
    low, high = interval if interval is not None else Interval(accuracy, accuracy)
    return 100 * max(0.0, accuracy - low), 100 * max(0.0, high - accuracy)


def _accuracy_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits with room for every interval, at least ten points apart, so that noise does not look like a cliff."""
    ends = [(position(row)[1], *_reach(row)) for row in rows]
    low = min(y - below for y, below, _ in ends)
    high = max(y + above for y, _, above in ends)
    spare = max(1.5, 0.08 * (high - low), (10 - (high - low)) / 2)
    return max(-1.5, low - spare), min(101.5, high + spare)


def _draw_speeds(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{row.model}, {row.label}" for row in rows]
    styles = {policy: color for policy, (color, _, _) in _STYLES.items()}
    colors = [styles.get(row.policy, _QUIET) for row in rows]
    for axes, title, values, written in (
        (left, "Tokens per step", [row.tokens_per_step for row in rows], "{:.2f}"),
        (right, "Tokens per second", [row.tokens_per_second for row in rows], "{:.0f}"),
    ):
        bars = axes.barh(names, values, color=colors, height=0.66)
        axes.bar_label(bars, [written.format(value) for value in values], padding=4, fontsize=10, color=_INK)
        axes.set_xlim(0, 1.18 * max(values))
        _plain(axes, title)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
    left.invert_yaxis()
    figure.suptitle(rows[0].heading, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=_INK)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", color=_INK, pad=12)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd1")
    axes.tick_params(colors=_QUIET, labelsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, fontsize=11)
