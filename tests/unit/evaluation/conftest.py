"""Result rows with plausible numbers."""

from collections.abc import Callable
from typing import Any

import pytest

from multitoken.evaluation.rows import Row
from multitoken.evaluation.statistics import Interval


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """Builds a row of the original model. Keyword arguments replace its values."""

    def make(**changes: Any) -> Row:
        usual: dict[str, Any] = {
            "task": "sums",
            "model": "original",
            "policy": "next-token",
            "threshold": None,
            "k": 1,
            "prompts": 1500,
            "accuracy": 0.95,
            "identical_to_original": 1500,
            "tokens_per_step": 1.0,
            "tokens_per_second": 180.0,
            "forward_passes": 90_000,
            "label": changes.get("policy", "next-token"),
            "tokens": 90_000,
            "seconds": 500.0,
            "ties": 0,
            "identical_to_own_next_token": 1500,
            "own_ties": 0,
            "accuracy_interval": Interval(0.938, 0.96),
            "accuracy_change": 0.0,
            "accuracy_change_interval": Interval(-0.01, 0.01),
            "speedup": 1.0,
            "speedup_interval": Interval(0.98, 1.02),
        }
        if "accuracy" in changes and changes["accuracy"] is None:
            usual |= dict.fromkeys(("accuracy_interval", "accuracy_change", "accuracy_change_interval"))
        return Row(**(usual | changes))

    return make
