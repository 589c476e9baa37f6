"""A picture of the results of `benchmarks.sampling`: tokens per step by task and temperature, one bar for each model.

    python -m benchmarks.sampling --model before=DIR --model "with the head=DIR" --pairs 0 > sampling.jsonl
    python -m benchmarks.drafts_picture sampling.jsonl --output docs/drafts.png

Several files, from several runs, can go into one picture. Only the last line of each file is read.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#9aa5b1", "#0072B2", "#D55E00", "#009E73")


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """One panel for each task, with the intervals as whiskers."""
    tasks = list(dict.fromkeys(r["task"] for r in results))
    labels = list(dict.fromkeys(r["model"] for r in results))
    figure = Figure(figsize=(2.4 * len(tasks) + 0.8, 3.2), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        temperatures = sorted({r["temperature"] for r in results if r["task"] == task})
        for number, label in enumerate(labels):
            mine = {r["temperature"]: r for r in results if (r["task"], r["model"]) == (task, label)}
            width = 0.8 / len(labels)
            for place, temperature in enumerate(temperatures):
                if (r := mine.get(temperature)) is None:
                    continue
                value, (low, high) = r["tokens_per_step"], r["tokens_per_step_interval"] or (r["tokens_per_step"],) * 2
                axes.bar(
                    place + (number - (len(labels) - 1) / 2) * width,
                    value,
                    width,
                    yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                    color=COLOURS[number % len(COLOURS)],
                    label=label if not place else None,
                    ecolor="#1f2328",
                )
        axes.axhline(1, color="#1f2328", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("temperature")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("tokens per step, Exact")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("docs/drafts.png"))
    a = parser.parse_args()
    found = [json.loads(file.read_text().splitlines()[-1])["results"] for file in a.files]
    picture([result for results in found for result in results], a.output)


if __name__ == "__main__":
    main()
