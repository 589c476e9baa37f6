"""Marks the fast tests. `pytest -m fast` takes about two minutes."""

from pathlib import Path

import pytest

_FAST = Path(__file__).parent / "unit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of single rules as fast, except those that train and those that are marked slow."""
    for item in items:
        is_rule = _FAST in item.path.parents and _FAST / "training" not in item.path.parents
        if is_rule and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)
