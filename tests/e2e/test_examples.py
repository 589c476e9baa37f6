"""The scripts in examples/, run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "own_data.py": "tokens per step after",
    "chat.py": "12, 13, 14",
    "batch_sampling.py": "same text: True",
    "own_policy.py": "fastest: 0.",
    "plain_transformers.py": "12, 13, 14",
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name: str) -> None:
    """What a newcomer copies first must work without changes."""
    arguments = [] if name != "own_data.py" else ["", "0.1"]
    if arguments:
        from multitoken.quickstart.embedded import checkpoint

        arguments[0] = str(checkpoint("base"))
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("|", "")
    assert EXAMPLES[name] in shown and "False" not in shown


def test_every_example_is_tested() -> None:
    """A script that nobody runs breaks unnoticed."""
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
