"""`multitoken chat`: a conversation in the terminal. Each forward pass has its own colour."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.segment import Segment, Segments

from multitoken.decoding.policies import NextToken, Policy, varied, with_trained_k
from multitoken.decoding.records import Chunk
from multitoken.errors import MultitokenError, UsageError, nearest
from multitoken.models.generation import Generation
from multitoken.models.model import Model
from multitoken.models.prompts import Message

_COLOURS = ("cyan", "yellow", "green", "magenta")
_HELP = """\
/policy NAME        exact, confadapt, static or next-token; without NAME: show the current policy
/threshold NUMBER   confidence from 0 to 1 that a token must reach
/k NUMBER           most tokens per step
/branches NUMBER    further blocks per step, after drafts that may be rejected (exact)
/compare            answer the last question again, token by token and with the current policy
/history            show the conversation so far
/clear              start a new conversation
/quit               leave (also Ctrl-D, or Ctrl-C at the prompt); during an answer Ctrl-C stops the answer"""


class Chat:
    """A conversation. read: asks for a line and returns it; raises `EOFError` at the end of the input."""

    def __init__(
        self,
        model: Model,
        console: Console,
        *,
        policy: Policy | None = None,
        max_new_tokens: int = 512,
        read: Callable[[str], str] = input,
    ) -> None:
        self._model = model
        self._console = console
        self._read = read
        self._max_new_tokens = max_new_tokens
        self._remembers = model.tokenizer.chat_template is not None
        self.policy = with_trained_k(policy or model.default_policy, model.decoder.trained_k)
        self.messages: list[Message] = []

    def run(self) -> None:
        """Run until the user leaves."""
        with contextlib.suppress(ImportError):  # Windows
            import readline  # noqa: F401  for arrow keys and line history
        self._say(f"{self._model.name}, {_words(self.policy)}. /help lists the commands.")
        if not self._remembers:
            self._say("This model has no chat template: it continues each line as plain text.")
        while True:
            try:
                line = self._read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._command(line) if line.startswith("/") else line and self._ask(line)
            except MultitokenError as error:
                self._console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)

    def _command(self, line: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._say(_HELP),
            "/policy": lambda given: self._set(policy=given) if given else self._say(_words(self.policy)),
            "/threshold": lambda given: self._set(threshold=_number(given, float)),
            "/k": lambda given: self._set(k=_number(given, int)),
            "/branches": lambda given: self._set(branches=_number(given, int)),
            "/compare": lambda _: self._compare(),
            "/history": lambda _: self._say(
                "\n".join(f"{m['role']}: {m['content']}" for m in self.messages) or "nothing yet"
            ),
            "/clear": lambda _: self.messages.clear(),
        }
        name, _, given = line.partition(" ")
        if name not in commands:
            raise UsageError(f"there is no command {name}{nearest(name, [*commands, '/quit'])}")
        commands[name](given.strip())

    def _set(self, *, policy: str | None = None, k: int | None = None, **more: Any) -> None:
        """A new policy gets the k that the model was trained with, unless one is given."""
        trained_k = self._model.decoder.trained_k
        if policy == "static" and self.policy.name != "static" and k is None:
            k = trained_k
        self.policy = with_trained_k(varied(self.policy, policy, k=k, **more), trained_k)
        self._say(_words(self.policy))

    def _ask(self, question: str) -> None:
        """Answer the question and remember both. An answer that fails is not remembered. One that is stopped is
        remembered as far as it got."""
        if not self._remembers:
            self._answer(question, self.policy)
            self.messages = [{"role": "user", "content": question}]
            return
        asked = [*self.messages, {"role": "user", "content": question}]
        answer = self._answer(asked, self.policy)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]

    def _compare(self) -> None:
        last = next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i]["role"] == "user"), None)
        if last is None:
            raise UsageError("there is no question yet; ask one, then compare")
        prompt = self.messages[: last + 1] if self._remembers else self.messages[last]["content"]
        found = []
        for policy in (NextToken(), self.policy):
            self._say(f"{_words(policy)}:")
            found.append(self._answer(prompt, policy))
        plain, ours = found
        same = "the same text" if plain.token_ids == ours.token_ids else "a different text"
        self._say(f"{plain.seconds / ours.seconds:.1f} times as fast, {same}")

    def _answer(self, prompt: str | list[Message], policy: Policy) -> Generation:
        chunks: list[Chunk] = []
        begun = time.perf_counter()
        stream = self._model.stream(prompt, policy=policy, max_new_tokens=self._room(prompt))
        with contextlib.suppress(KeyboardInterrupt):
            for chunk in self._shown(stream):
                chunks.append(chunk)
        answer = Generation.of(chunks, time.perf_counter() - begun)
        self._console.print()
        self._say(
            f"{answer.passes_said}, {len(answer.token_ids) / answer.seconds:.0f} tokens per second"
            if chunks
            else "stopped"
        )
        return answer

    def _room(self, prompt: str | list[Message]) -> int:
        """How many new tokens fit after the prompt. At least 1: `generate` reports a prompt that leaves no room."""
        positions = self._model.decoder.max_positions
        if positions is None:
            return self._max_new_tokens
        return max(1, min(self._max_new_tokens, positions - len(self._model.encode(prompt))))

    def _shown(self, stream: Iterator[Chunk]) -> Iterator[Chunk]:
        for i, chunk in enumerate(stream):
            show(chunk, i, self._console)
            yield chunk

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, emoji=False, highlight=False, soft_wrap=True)


def show(chunk: Chunk, number: int, console: Console) -> None:
    """Write the text of a forward pass exactly as the model wrote it. `Console.print` of a string would replace tabs
    and ":key:"."""
    console.print(Segments([Segment(chunk.text)]), style=_COLOURS[number % len(_COLOURS)], end="", soft_wrap=True)


def _words(policy: Policy) -> str:
    options = {key: value for key, value in asdict(policy).items() if value is not None}
    return " ".join([policy.name, *(f"{key} {value}" for key, value in options.items())])


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"found {text!r}; expected a number, such as /threshold 0.7 or /k 4") from None
