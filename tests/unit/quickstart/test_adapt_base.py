"""The recipes of the embedded adapters, which the demo runs on machines that we do not know."""

import pytest

from multitoken.config import make_config
from multitoken.quickstart import adapt_base
from multitoken.quickstart.demo import demo_recipe


@pytest.mark.parametrize(("gains", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_type_is_the_one_that_the_machine_is_fast_in(gains: bool, dtype: str, monkeypatch) -> None:
    """On a CPU without instructions for bfloat16, a demo of four minutes trained for only five steps."""
    monkeypatch.setattr(adapt_base, "cpu_gains_by_bf16", lambda: gains)
    for options in (*map(adapt_base.recipe, adapt_base.RECIPES), demo_recipe()):
        assert make_config(options, model="m", data="d", output="o").dtype == dtype
