"""An interrupted measurement can be resumed, and no question is answered twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from multitoken.decoding.policies import Exact
from multitoken.errors import OutputError, UsageError
from multitoken.evaluation import answers
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.journal import NAME, Journal, journal_of, prepare_output
from multitoken.evaluation.rows import Outcome
from multitoken.evaluation.run import evaluate
from multitoken.evaluation.tasks import Question, Task
from multitoken.processes import Processes
from tests.unit.evaluation.scripted import ScriptedModel

PROMPTS = ("a", "bb", "ccc", "dddd")
TASK = Task("letters", tuple(Question(p, "3 2") for p in PROMPTS), grader_named("exact"), 20)
SCRIPT = {(policy, p): [[3], [2]] for policy in ("next-token", "exact") for p in PROMPTS}


class Fragile(ScriptedModel):
    """A model that is interrupted after `allowed` answers."""

    allowed = 100

    def generate(self, prompt, **options):
        if len(self.calls) >= self.allowed and not isinstance(prompt, list):
            raise KeyboardInterrupt
        return super().generate(prompt, **options)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupted_measurement_goes_on(tmp_path: Path, batch_size: int) -> None:
    """Guards against losing hours of answers, answering them again, and rows that differ from those of an uninterrupted
    run."""
    whole = evaluate({"adapted": ScriptedModel(SCRIPT, k=4)}, TASK, {"e": Exact()}, batch_size=batch_size)
    dying = Fragile(SCRIPT, k=4)
    dying.allowed = 6
    with pytest.raises(KeyboardInterrupt):
        evaluate({"adapted": dying}, TASK, {"e": Exact()}, batch_size=batch_size, journal=Journal(tmp_path, {"x": 1}))
    kept = len((tmp_path / NAME).read_text().splitlines()) - 1
    assert kept == 4
    with (tmp_path / NAME).open("a") as file:
        file.write('{"run": "adapted: e", "question": 3, "tok')  # killed while it was writing
    second = ScriptedModel(SCRIPT, k=4)
    journal = Journal(tmp_path, {"x": 1})
    assert evaluate({"adapted": second}, TASK, {"e": Exact()}, batch_size=batch_size, journal=journal) == whole
    assert len([c for c in second.calls if c[2] == 20]) == 8 - kept
    third = ScriptedModel(SCRIPT, k=4)
    again = evaluate(
        {"adapted": third}, TASK, {"e": Exact()}, batch_size=batch_size, journal=Journal(tmp_path, {"x": 1})
    )
    assert again == whole and not third.calls


def test_answers_of_another_measurement_are_not_taken(tmp_path: Path) -> None:
    Journal(tmp_path, {"task": "sums", "batch_size": 1})
    with pytest.raises(UsageError, match="another measurement: task is 'sums' there and 'letters' now"):
        Journal(tmp_path, {"task": "letters", "batch_size": 1})


def test_answers_of_another_dtype_are_not_taken(tmp_path: Path) -> None:
    """The answers of a 16-bit model must not become rows of the float32 model that resumes them."""

    def models(dtype: torch.dtype) -> Any:
        return {"adapted": SimpleNamespace(name="m", hf=SimpleNamespace(dtype=dtype))}

    journal_of(tmp_path, TASK, models(torch.bfloat16), batch_size=1)
    with pytest.raises(UsageError, match=r"'bfloat16'.* there and .*'float32'.* now"):
        journal_of(tmp_path, TASK, models(torch.float32), batch_size=1)


def test_a_merged_process_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration asks twice. After the first half, the files of all processes are merged. If the second half is
    interrupted, what the other processes wrote since then must be readable."""
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, value])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = Journal(tmp_path, {"x": 1})
    monkeypatch.setenv("RANK", "1")
    second = Journal(tmp_path, {"x": 1})
    outcome = Outcome((3, 2), 1, 2, 1.0, True, 0)
    second.add("plain", [0], [outcome])
    first.complete({("plain", 0): outcome})
    second.complete({("plain", 0): outcome})
    second.add("plain", [1], [outcome])
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert set(Journal(tmp_path, {"x": 1}).outcomes()) == {("plain", 0), ("plain", 1)}


def test_another_number_of_processes_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of processes changes the batches, so the original's answers and ours may have been timed in different
    ones."""
    dying = Fragile(SCRIPT, k=4)
    dying.allowed = 6
    with pytest.raises(KeyboardInterrupt):
        evaluate({"adapted": dying}, TASK, {"e": Exact()}, batch_size=3, journal=Journal(tmp_path, {}))
    monkeypatch.setattr(answers, "_PART", 1)  # smaller parts, as with more processes
    plain, exact = evaluate(
        {"adapted": ScriptedModel(SCRIPT, k=4)}, TASK, {"e": Exact()}, batch_size=2, journal=Journal(tmp_path, {})
    )
    assert (plain.speedup, exact.speedup) == (1.0, 0.5)  # four answers at the same time, against two


def test_an_output_folder_is_never_mixed(tmp_path: Path) -> None:
    """Guards against old answers next to new numbers, and against replacing files that the user did not ask to
    replace."""
    folder = tmp_path / "out"
    with pytest.raises(UsageError, match=r"nothing to resume: .*out has no answers\.jsonl"):
        prepare_output(folder, overwrite=False, resume=True)
    prepare_output(folder, overwrite=False, resume=False)
    Journal(folder, {})
    with pytest.raises(OutputError, match="continue it with --resume"):
        prepare_output(folder, overwrite=False, resume=False)
    prepare_output(folder, overwrite=False, resume=True)
    assert (folder / NAME).exists()
    prepare_output(folder, overwrite=True, resume=False)
    assert not (folder / NAME).exists()
    (folder / "results.json").write_text("{}")
    with pytest.raises((OutputError, UsageError)):
        prepare_output(folder, overwrite=False, resume=False)
    with pytest.raises(UsageError, match="exclude each other"):
        prepare_output(folder, overwrite=True, resume=True)
