"""Which labels a run learns from, depending on how the responses were made."""

from pathlib import Path

import pytest

from multitoken.config import make_config
from multitoken.models import placement
from multitoken.training import setup
from multitoken.training.dataset import DataReport
from multitoken.training.setup import _objective


@pytest.mark.parametrize(
    ("options", "written", "labels"),
    [
        ({}, 10, "data"),
        ({"responses": "greedy"}, 10, "data"),
        ({"responses": "greedy", "loss_until": "first-disagreement", "labels": "online"}, 10, "data"),
        ({"responses": "greedy", "loss_until": "first-disagreement", "join_share": 0.5}, 10, "online"),
        ({"loss_until": "first-disagreement"}, 10, "online"),
        ({"responses": "sampled", "loss_until": "first-disagreement"}, 10, "online"),
        ({"labels": "online"}, 10, "online"),
        ({}, 9, "data"),
        ({"loss_until": "first-disagreement"}, 9, "online"),
        ({"teacher": "soft"}, 10, "online"),
    ],
)
def test_labels(options: dict[str, str], written: int, labels: str) -> None:
    """Text that the teacher wrote can replace a pass of the teacher. A sampled token is one of many possible ones: a
    loss that ends where a proposal differs from it would end almost at once."""
    config = make_config(model="m", data="d", output=Path("o"), **options)
    report = DataReport(10, written, unfinished=0, cut=0, too_short=0, no_room=0, last_turn_only=0)
    objective = _objective(config, report)
    assert objective.labels == labels
    assert objective.foreign == (written < 10 and labels == "data"), "others' words are no labels by themselves"


def test_a_cpu_that_is_slow_in_bfloat16_is_named(monkeypatch, caplog, tmp_path) -> None:
    """Without instructions for bfloat16, a step takes twenty times as long, and nothing else tells the user why."""
    config = make_config(model="m", data="d", output=tmp_path / "o", device="cpu", dtype="bfloat16")
    for gains, said in ((True, False), (False, True)):
        monkeypatch.setattr(placement, "cpu_gains_by_bf16", lambda gains=gains: gains)
        setup.training_arguments(config, tmp_path)
        assert ("more slowly in bfloat16" in caplog.text) == said
