"""`mt.evaluate` and `mt.calibrate`: what they take from their arguments."""

from pathlib import Path
from typing import Any, cast

import pytest

from multitoken.api import calibrate, evaluate, task_of
from multitoken.errors import UsageError
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.tasks import Question, Task
from tests.unit.evaluation.scripted import ScriptedModel

TASK = Task("letters", (Question("a", "3 2"),), grader_named("exact"), 20)
SCRIPT = {(policy, "a"): [[3], [2]] for policy in ("next-token", "exact", "confadapt", "static")}


@pytest.mark.parametrize(("k", "static"), [(2, [2]), (16, [2, 4])])
def test_the_usual_policies_fit_the_model(k: int, static: list[int]) -> None:
    """A model that was trained with a small k must be measured, not refused because of a policy that nobody asked for."""
    model = cast(Any, ScriptedModel(SCRIPT, k=k))
    rows = evaluate(model, TASK, verbose=False)
    assert [row.k for row in rows if row.policy == "static"] == static


def test_a_folder_may_have_the_name_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate --task letters --output letters --resume` must find the task again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters").mkdir()
    assert task_of("letters", 2, None, 20).grader.name == "none"


@pytest.mark.parametrize("share", [1.0, 0.0, 99])
def test_a_wrong_share_is_named_as_it_was_given(share: float) -> None:
    with pytest.raises(UsageError, match=rf"min_identical is {share}; expected a share between 0 and 1"):
        calibrate(cast(Any, ScriptedModel(SCRIPT, k=4)), TASK, min_identical=share, write=False)
