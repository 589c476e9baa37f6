"""From how long a model's easy runs are to the tokens per step of its adaptation: a line through measured points.

The points are in `gain_calibration.json`, written by `python -m benchmarks.estimate_calibration`. With L the run length
(see `estimate`) and T the tokens per step that `Exact` reached after adapting:

    log(T - 1) = intercept + slope * log(L),  then T is cut at k

Least squares, the slope at least 0: a model that is surer of its words is never expected to gain less. T is thus from 1
to k, and no estimate promises a loss or more than a block holds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from math import exp, log, sqrt
from random import Random
from statistics import mean

FILE = "gain_calibration.json"


@dataclass(frozen=True)
class Point:
    """An adapted model on some prompts: what its original's own predictions were, and what Exact then reached."""

    name: str
    model: str
    parameters: int
    k: int
    prompts: int
    entropy: float  # nats, mean over the tokens of the original's own responses
    easy_share: float
    run_length: float
    tokens_per_step: float  # under Exact 0.5 of the adapted model


@dataclass(frozen=True)
class Calibration:
    """At least three points, and the line through them."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ValueError(f"{len(self.points)} points: a line with a spread around it needs at least 3")

    @cached_property
    def _x(self) -> list[float]:
        return [log(p.run_length) for p in self.points]

    @cached_property
    def _y(self) -> list[float]:
        return [log(max(p.tokens_per_step - 1, 1e-3)) for p in self.points]

    @cached_property
    def slope(self) -> float:
        return max(0.0, self._covariance / self._spread) if self._spread else 0.0

    @cached_property
    def intercept(self) -> float:
        return mean(self._y) - self.slope * mean(self._x)

    @cached_property
    def residual(self) -> float:
        """Standard deviation of log(T - 1) around the line, two degrees of freedom spent."""
        squares = ((y - self.intercept - self.slope * x) ** 2 for x, y in zip(self._x, self._y, strict=True))
        return sqrt(sum(squares) / self._freedom)

    @property
    def _freedom(self) -> int:
        return len(self.points) - 2

    @cached_property
    def _spread(self) -> float:
        return sum((x - mean(self._x)) ** 2 for x in self._x)

    @cached_property
    def _covariance(self) -> float:
        return sum((x - mean(self._x)) * (y - mean(self._y)) for x, y in zip(self._x, self._y, strict=True))

    def expected(self, run_length: float, k: int) -> float:
        """Tokens per step on the line, from 1 to k; never falls as the run length (at least 1) grows."""
        return min(float(k), 1 + exp(self.intercept + self.slope * log(run_length)))

    def draw(self, run_length: float, k: int, random: Random) -> float:
        """Tokens per step that one further adaptation could reach: a draw from the predictive distribution of the
        regression, Student's t around the line, wider away from the points."""
        x = log(run_length)
        leverage = (x - mean(self._x)) ** 2 / self._spread if self._spread else 0.0
        t = random.gauss() / sqrt(random.gammavariate(self._freedom / 2, 2) / self._freedom)
        scale = self.residual * sqrt(1 + 1 / len(self.points) + leverage)
        logarithm = self.intercept + self.slope * x + scale * t
        return min(float(k), 1 + exp(min(logarithm, log(k))))

    def covers(self, run_length: float) -> bool:
        """Whether the points lie on both sides: elsewhere the line is drawn on beyond them."""
        lengths = [p.run_length for p in self.points]
        return min(lengths) <= run_length <= max(lengths)

    def leave_one_out(self) -> tuple[float, float]:
        """Root mean square error of log(T - 1) at points left out: of the line, and of the others' mean without it."""
        line, flat = [], []
        for i, y in enumerate(self._y):
            others = Calibration(self.points[:i] + self.points[i + 1 :])
            line.append((y - others.intercept - others.slope * self._x[i]) ** 2)
            flat.append((y - mean(others._y)) ** 2)
        return sqrt(mean(line)), sqrt(mean(flat))

    def __str__(self) -> str:
        models = len({p.model for p in self.points})
        largest = max(p.parameters for p in self.points) / 1e6
        return f"{len(self.points)} points of {models} adapted models of at most {largest:.1f} M parameters"


def load_calibration() -> Calibration:
    """The committed one."""
    return read_points(resources.files("multitoken.evaluation").joinpath(FILE).read_text(encoding="utf-8"))


def read_points(text: str) -> Calibration:
    return Calibration(tuple(Point(**point) for point in json.loads(text)["points"]))


def write_points(points: Sequence[Point], provenance: dict) -> str:
    """The text of `gain_calibration.json`."""
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in vars(p).items()} for p in points]
    return json.dumps({"provenance": provenance, "points": rows}, indent=1) + "\n"
