"""Which questions a report shows."""

from pathlib import Path

from multitoken.decoding.policies import ConfAdapt, Exact
from multitoken.evaluation.graders import grader_named
from multitoken.evaluation.journal import Journal
from multitoken.evaluation.run import evaluate
from multitoken.evaluation.samples import samples_of
from multitoken.evaluation.tasks import Question, Task
from tests.unit.evaluation.scripted import ScriptedModel

PROMPTS = ("a", "bb", "ccc", "dddd", "eeeee")
PLAIN = {("next-token", prompt): [[3], [4], [2]] for prompt in PROMPTS}
SCRIPT = (
    PLAIN
    | {("exact", prompt): [[3], [4, 2]] for prompt in PROMPTS}
    | {("confadapt", prompt): [[3, 8, 2]] if prompt == "dddd" else [[3, 4, 2]] for prompt in PROMPTS}
)
POLICIES = {"Exact 0.5": Exact(), "ConfAdapt 0.9": ConfAdapt(), "ConfAdapt 0.8": ConfAdapt(0.8)}


def test_answers_that_differ_are_chosen_first(tmp_path: Path) -> None:
    """Guards against a report whose examples are all identical while its table says that answers differ."""
    task = Task("sums", tuple(Question(prompt, "") for prompt in PROMPTS), grader_named("none"), 20)
    models = {"original": ScriptedModel(PLAIN), "adapted": ScriptedModel(SCRIPT, k=4)}
    journal = Journal(tmp_path, {"x": 1})
    evaluate(models, task, POLICIES, journal=journal)
    entries = samples_of(models, task, POLICIES, journal)
    assert list(dict.fromkeys(entry.prompt for entry in entries)) == ["a", "bb", "dddd"]
    assert [entry.policy_label for entry in entries[:3]] == [
        "original, next-token",
        "adapted, Exact 0.5",
        "adapted, ConfAdapt 0.9",
    ]
    assert [list(entry.generation.token_ids) for entry in entries[-3:]] == [[3, 4, 2], [3, 4, 2], [3, 8, 2]]


def test_chats_are_shown_as_text(tmp_path: Path) -> None:
    class Chat(ScriptedModel):
        def encode(self, prompt):
            return super().encode(prompt[0]["content"])

        def generate(self, prompt, **options):
            return super().generate(prompt[0]["content"], **options)

    task = Task("chat", (Question([{"role": "user", "content": "a"}], ""),), grader_named("none"), 20)
    models = {"adapted": Chat(SCRIPT, k=4)}
    entries = samples_of(models, task, {"Exact 0.5": Exact()}, Journal(tmp_path, {"x": 1}))
    assert [entry.prompt for entry in entries] == ["user: a", "user: a"]
