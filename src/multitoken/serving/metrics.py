"""Counters and histograms in Prometheus text format. One writer per metric; readers may see slightly old values."""

import math
from bisect import bisect_left
from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKENS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Counter:
    """A sum for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, what: str, *labels: str) -> None:
        self.name, self.what, self.labels = name, what, labels
        self._sums: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, *values: str) -> None:
        self._sums[values] = self._sums.get(values, 0) + amount

    def lines(self) -> list[str]:
        return [_line(self.name, self.labels, values, total) for values, total in [*self._sums.items()]]


class Gauge:
    """A value that is read on demand."""

    kind = "gauge"

    def __init__(self, name: str, what: str, read: Callable[[], float]) -> None:
        self.name, self.what, self._read = name, what, read

    def lines(self) -> list[str]:
        return [_line(self.name, (), (), self._read())]


class Histogram:
    """How many values were at most as large as each bound, for each combination of labels."""

    kind = "histogram"

    def __init__(self, name: str, what: str, bounds: tuple[float, ...], *labels: str) -> None:
        self.name, self.what, self.labels = name, what, labels
        self._bounds = (*bounds, math.inf)
        self._found: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        if not labels:
            self._of(())

    def observe(self, value: float, *values: str) -> None:
        counts, total = self._of(values)
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def total(self) -> tuple[float, int]:
        """(sum, count) over all labels."""
        found = [*self._found.values()]
        return sum(total[0] for _, total in found), sum(sum(counts) for counts, _ in found)

    def _of(self, values: tuple[str, ...]) -> tuple[list[int], list[float]]:
        return self._found.setdefault(values, ([0] * len(self._bounds), [0.0]))

    def lines(self) -> list[str]:
        lines = []
        for values, (counts, total) in [*self._found.items()]:
            below = 0
            for bound, count in zip(self._bounds, counts, strict=True):
                below += count
                le = "+Inf" if bound == math.inf else f"{bound:g}"
                lines.append(_line(f"{self.name}_bucket", (*self.labels, "le"), (*values, le), below))
            lines.append(_line(f"{self.name}_sum", self.labels, values, total[0]))
            lines.append(_line(f"{self.name}_count", self.labels, values, below))
        return lines


class Metrics:
    """All metrics of the server."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.requests = Counter(
            "multitoken_requests_total", "API requests by endpoint and response status.", "endpoint", "status"
        )
        self.prompt_tokens = Counter("multitoken_prompt_tokens_total", "Prompt tokens of admitted rows.")
        self.tokens = Counter("multitoken_generated_tokens_total", "Tokens written, EOS included.", "policy")
        self.passes = Counter("multitoken_forward_passes_total", "Forward passes, counted for each row.", "policy")
        self.accepted = Histogram(
            "multitoken_tokens_per_step", "Tokens that a row accepts in a step after its prefill.", TOKENS, "policy"
        )
        self.step = Histogram("multitoken_engine_step_seconds", "Duration of an engine step, all rows together.", STEPS)
        self.first = Histogram(
            "multitoken_time_to_first_token_seconds", "Time from admission to the first token.", SECONDS
        )
        self.whole = Histogram("multitoken_row_seconds", "Time from admission to the last token of a row.", SECONDS)
        self.failures = Counter("multitoken_failed_rows_total", "Rows that ended with an error.")
        self._all = (
            self.requests,
            Gauge("multitoken_rows_running", "Rows in the engine's batch.", running),
            Gauge("multitoken_rows_waiting", "Rows that wait for a place in the batch.", waiting),
            self.prompt_tokens,
            self.tokens,
            self.passes,
            self.accepted,
            self.step,
            self.first,
            self.whole,
            self.failures,
        )

    def text(self) -> str:
        lines = []
        for metric in self._all:
            lines += [f"# HELP {metric.name} {metric.what}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _line(name: str, labels: tuple[str, ...], values: tuple[str, ...], number: float) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {number:.12g}" if pairs else f"{name} {number:.12g}"
