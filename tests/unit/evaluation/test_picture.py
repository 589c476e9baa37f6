from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from multitoken.evaluation import picture
from multitoken.evaluation.picture import tradeoff_picture
from multitoken.evaluation.rows import Row

MakeRow = Callable[..., Row]


def graded(make_row: MakeRow) -> list[Row]:
    """Two lines that almost overlap, with points closer together than their labels are wide."""
    points = [
        ("exact", 0.9, 4.4, 0.95),
        ("exact", 0.5, 4.5, 0.95),
        ("confadapt", 0.99, 4.3, 0.945),
        ("confadapt", 0.9, 4.5, 0.945),
        ("confadapt", 0.6, 6.0, 0.8),
    ]
    lines = [
        make_row(model="adapted", policy=policy, threshold=threshold, k=16, tokens_per_step=speed, accuracy=accuracy)
        for policy, threshold, speed, accuracy in points
    ]
    return [make_row(), make_row(model="adapted"), *lines]


def drawn(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    picture._draw_tradeoff(figure, rows)
    figure.draw_without_rendering()
    return figure


def test_graded_rows_make_a_png_of_the_promised_size(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against an empty or half-written file, and against a temporary file left behind."""
    tradeoff_picture(graded(make_row), tmp_path / "tradeoff.png")
    image = imread(tmp_path / "tradeoff.png")
    assert image.shape[:2] == (1000, 1600)
    assert image.min() < 0.2 < 0.9 < image.max()
    assert [path.name for path in tmp_path.iterdir()] == ["tradeoff.png"]


def test_every_policy_has_a_line_and_every_threshold_a_label(make_row: MakeRow) -> None:
    """Guards against a model or policy that is measured but not drawn, or drawn with the values of another policy."""
    axes = drawn(graded(make_row)).axes[0]
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines() if line.get_label()[0] != "_"}
    assert lines == {
        "original, next token": [1.0],
        "adapted, next token": [1.0],
        "Exact": [4.4, 4.5],
        "ConfAdapt": [4.3, 4.5, 6.0],
    }
    labels = sorted(text.get_text() for text in axes.texts)
    assert labels == ["0.5", "0.6", "0.9", "0.9", "0.99"]


def test_no_two_lines_look_alike(make_row: MakeRow) -> None:
    """Four models under two policies: eight lines, each with a colour and marker of its own."""
    rows = [replace(row, model=model) for model in ("adapted", "b", "c", "d") for row in graded(make_row)]
    looks = [(color, marker) for _, color, marker, _ in picture._lines(rows)]
    assert len(looks) == len(set(looks)) == 8


def test_labels_do_not_overlap(make_row: MakeRow) -> None:
    """Guards against numbers printed over each other where two lines meet, or outside the picture."""
    axes = drawn(graded(make_row)).axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes)


def test_noise_does_not_look_like_a_cliff(make_row: MakeRow) -> None:
    """Guards against axes that zoom into half a point of accuracy."""
    low, high = drawn([make_row(), make_row(model="adapted", accuracy=0.949)]).axes[0].get_ylim()
    assert high - low >= 10 - 1e-9


def test_ungraded_rows_make_bars(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against an error, or an empty trade-off, for tasks without right answers."""
    rows = [make_row(accuracy=None), make_row(accuracy=None, model="adapted", policy="exact", tokens_per_step=5.0)]
    tradeoff_picture(rows, tmp_path / "speed.png")
    assert imread(tmp_path / "speed.png").shape[:2] == (1000, 1600)


@pytest.mark.parametrize("accuracy", [0.9, None])
def test_dollar_signs_are_no_formula(make_row: MakeRow, tmp_path: Path, accuracy: float | None) -> None:
    """Guards against a measurement of hours that ends in an error because of the name of its file."""
    rows = [make_row(task="cost_$5_and_$6^", accuracy=accuracy), make_row(task="cost_$5_and_$6^", model="$^$")]
    tradeoff_picture(rows, tmp_path / "picture.png")


def test_rows_of_two_tasks_are_refused(make_row: MakeRow, tmp_path: Path) -> None:
    """Guards against one line through the results of two tasks."""
    with pytest.raises(ValueError, match="rows of 2 tasks"):
        tradeoff_picture([make_row(), make_row(task="stories")], tmp_path / "x.png")
