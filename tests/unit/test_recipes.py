"""The recipes in recipes/: adapt accepts each as it is, and the docs mention each."""

from pathlib import Path

import pytest

from multitoken.config import load_recipe, make_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(path: Path) -> None:
    """Guards against a renamed option, which would stop a run of days in its first minute."""
    config = make_config(load_recipe(path), output="out")
    assert config.model and config.data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_stands_in_the_docs(path: Path) -> None:
    assert f"recipes/{path.name}" in (ROOT / "docs" / "real-models.md").read_text()


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 5
