"""The folders of the embedded checkpoints, and the embedded tasks."""

from importlib import resources
from pathlib import Path

from multitoken.errors import UsageError, nearest
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.tasks import Question, Task

from .corpus import TASKS, examples

_GRADERS = {
    "word-problems": "last-number",
    "held-out-problems": "last-number",
    "counting": "exact",
    "repeating": "exact",
    "held-out-counting": "exact",
    "held-out-repeating": "exact",
    "letters": "none",
}
_MAX_NEW_TOKENS = 320


def checkpoint(name: str) -> Path:
    """The folder of the embedded "base" model or of the "gated" adapter for it."""
    folder = resources.files("multitoken.quickstart").joinpath("checkpoints", name)
    return Path(str(folder))


def embedded_task(name: str, number: int, *, split: str = "test", max_new_tokens: int = _MAX_NEW_TOKENS) -> Task:
    """The first `number` questions of an embedded task. The split "test" is never trained on."""
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}{nearest(name, TASKS)}, or give a JSONL file")
    if number < 1:
        raise UsageError(f"{number} questions asked for; expected at least 1")
    questions = tuple(Question(e.prompt, e.answer) for e in examples(name, split, number))
    return Task(name, questions, grader_named(_GRADERS[name]), max_new_tokens)
