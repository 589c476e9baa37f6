"""A picture of the speed-up by number of requests at once: one panel for each domain, one curve for each method."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "D"), ("#56B4E9", "P"))
Point = tuple[int, float, tuple[float, float]]
"""(requests at once, ratio, its interval)"""


def speed_picture(domains: dict[str, dict[str, list[Point]]], ylabel: str, path: Path) -> None:
    """domains: for each domain, the points of each method. A method has the same colour and marker in all panels."""
    methods = list(dict.fromkeys(method for curves in domains.values() for method in curves))
    figure = Figure(figsize=(1 + 3.2 * max(1.4, len(domains)), 3.4), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for axes, (domain, curves) in zip(panels, domains.items(), strict=True):
        _draw_panel(axes, domain, {m: (*STYLES[methods.index(m) % len(STYLES)], curves[m]) for m in curves})
    panels[0].set_ylim(bottom=0)  # of all panels, after their curves are drawn
    panels[0].set_ylabel(ylabel)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def _draw_panel(axes: Any, domain: str, curves: dict[str, tuple[str, str, list[Point]]]) -> None:
    axes.axhline(1, color="#1f2328", linestyle="--", linewidth=1)
    for i, (label, (color, marker, points)) in enumerate(curves.items()):
        aside = 2 ** (0.08 * (i - (len(curves) - 1) / 2))  # so that intervals do not overlap
        at, values = [n * aside for n, _, _ in points], [ratio for _, ratio, _ in points]
        bars = [[v - low for _, v, (low, _) in points], [high - v for _, v, (_, high) in points]]
        axes.errorbar(at, values, yerr=bars, color=color, marker=marker, capsize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.set_title(domain, fontsize=10)
    axes.set_xlabel("requests at once")
    axes.grid(axis="y", color="#e6e8eb")
    axes.spines[["top", "right"]].set_visible(False)
