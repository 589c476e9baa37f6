"""The terminal chat, with a scripted user."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

import multitoken as mt
from multitoken.decoding.records import Chunk
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint
from multitoken.serving.terminal import Chat
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def gated() -> Model:
    return mt.load(checkpoint("gated"))


def talk(model: Model, *lines: str, **options) -> tuple[str, Chat]:
    """What is on the screen after these lines of input, and the chat."""
    screen, left = io.StringIO(), iter(lines)

    def read(prompt: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat(model, Console(file=screen, width=500), max_new_tokens=40, read=read, **options)
    chat.run()
    return screen.getvalue(), chat


def test_it_answers_and_remembers(gated: Model) -> None:
    question = "Count from 357 to 361."
    answer = gated.generate(question, policy=mt.NextToken(), max_new_tokens=40).text
    screen, chat = talk(gated, question, "", "/history")
    assert screen.count(answer) == 2 and "forward passes" in screen
    assert chat.messages == [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    screen, chat = talk(gated, question, "/clear", question)
    assert len(chat.messages) == 2


def test_policies_change_on_the_way(gated: Model) -> None:
    """A threshold belongs to its policy. A value that is refused changes nothing."""
    screen, chat = talk(gated, "/threshold 0.7", "/k 4", "/policy")
    assert chat.policy == mt.Exact(0.7, 4) and "exact threshold 0.7 k 4" in screen
    _, chat = talk(gated, "/threshold 0.7", "/policy confadapt")
    assert chat.policy == mt.ConfAdapt(0.9, 16)
    for line, says in (
        ("/threshold high", "expected a number"),
        ("/threshold 7", "threshold is 7"),
        ("/k 99", "trained for k up to 16"),
        ("/polcy exact", "did you mean '/policy'"),
        ("/policy fast", "expected one of"),
        ("/compare", "no question yet"),
    ):
        screen, chat = talk(gated, line)
        assert says in screen and chat.policy == mt.Exact(0.6, 16)  # what the checkpoint stores


def test_text_is_shown_as_the_model_wrote_it(gated: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against emoji in the place of ":key:", and spaces in the place of tabs."""
    text = "d[a:key:b]\n\tx :smile: [bold]y[/bold]"
    chunk = Chunk(0, (5,), (1.0,), text=text, finish="eos")
    monkeypatch.setattr(Model, "stream", lambda *args, **options: iter([chunk]))
    screen, _ = talk(gated, "Go.", "/history")
    assert f"{text}\n" in screen and "assistant: d[a:key:b]" in screen and screen.count(":smile:") == 2


def test_compare_runs_both_ways(gated: Model) -> None:
    screen, _ = talk(gated, "Count from 357 to 361.", "/compare", "/quit", "never read")
    assert "times as fast, the same text" in screen and "next-token:" in screen and "never" not in screen


def test_ctrl_c_stops_the_answer_and_not_the_chat(gated: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Model.stream

    def interrupted(self, *args, **options) -> Iterator:
        for i, chunk in enumerate(stream(self, *args, **options)):
            if i == 2:
                raise KeyboardInterrupt
            yield chunk

    monkeypatch.setattr(Model, "stream", interrupted)
    screen, chat = talk(gated, "Count from 357 to 361.", "/history")
    assert "in 2 forward passes" in screen and "assistant: " in screen and len(chat.messages) == 2


def test_what_does_not_fit_is_said_and_forgotten(gated: Model) -> None:
    screen, chat = talk(gated, "word " * 3000)
    assert "2048 positions" in screen and chat.messages == []


def test_a_model_without_a_template_continues_texts() -> None:
    tokenizer = tiny_tokenizer(60)
    screen, chat = talk(Model(tiny_llama(tokenizer), tokenizer), "w5 w6", "w7", "/compare")
    assert "no chat template" in screen and "next-token" in screen and len(chat.messages) == 1
