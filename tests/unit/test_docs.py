"""Checks of README and docs: their commands exist, a number is the same on every page, and worked examples work."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from multitoken.cli import app
from multitoken.decoding import policies

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def commands_in(text: str) -> Iterator[str]:
    """Lines of code blocks that call `multitoken`, continued lines joined, without comments."""
    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if line.lstrip("$ ").startswith("multitoken "):
                yield line.lstrip("$ ").split(" #")[0].split(" && ")[0]


WRITTEN = sorted({line for page in PAGES for line in commands_in(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("line", WRITTEN)
def test_a_command_of_the_docs_exists(line: str) -> None:
    """A newcomer types the commands as written. With an option that was renamed, the first minute ends in an error."""
    _, name, *words = shlex.split(line)
    if name in ("--help", "..."):
        return
    assert name in COMMANDS, line
    if COMMANDS[name].context_settings.get("ignore_unknown_options"):
        return  # the harness has options of its own
    known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known | {"--help"}, f"{word} in: {line}"


def test_commands_were_found() -> None:
    assert len(WRITTEN) > 30
    assert len(BENCHMARKS) > 100


def benchmarks_in(text: str) -> Iterator[tuple[str, str]]:
    """(module, option) of the calls of our modules, in code blocks and in sentences; option "" is the call itself."""
    for call in re.split(r"python\s+-m\s+", text.replace("\\\n", " "))[1:]:
        module, _, rest = re.split(r"[`#|)]|multitoken |\n\n", call)[0].partition(" ")
        if re.fullmatch(r"(benchmarks|multitoken\.quickstart)\.\w+", module.strip()):
            for option in ("", *re.findall(r"(?<!\S)--[a-z-]+", rest)):
                yield module.strip(), option


BENCHMARKS = sorted({call for page in PAGES for call in benchmarks_in(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("name", "option"), BENCHMARKS)
def test_a_benchmark_of_the_docs_exists(name: str, option: str) -> None:
    """Every number comes with the command that prints it. The module of the command must exist, and its options must be
    defined in it or in a benchmark module that it imports."""
    room, _, module = name.rpartition(".")
    folder = ROOT / "benchmarks" if room == "benchmarks" else ROOT / "src" / "multitoken" / "quickstart"
    source = (folder / f"{module}.py").read_text(encoding="utf-8")
    shared = [folder / f"{m}.py" for m in re.findall(r"from benchmarks\.(\w+) import", source)]
    texts = [source, *(file.read_text(encoding="utf-8") for file in shared)]
    assert not option or any(f'"{option}"' in text for text in texts), f"python -m {name} has no {option}"


def found(page: str, pattern: str) -> tuple[str, ...]:
    match = re.search(pattern, (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert match, f"{page} does not say {pattern!r}"
    return match.groups()


NUMBER = r"(\d+\.?\d*)"
INTERVAL = rf"\({NUMBER} to {NUMBER}\)"
SAME = {  # a number on two pages: page and pattern of the quote, page and pattern of its source
    "one request against generate": (
        ("README.md", rf"batch 1: {NUMBER} times {INTERVAL} transformers' `generate` under Exact 0\.6"),
        ("docs/embedded-models.md", rf"\| Exact 0\.6 \| \d+ \| {NUMBER} {INTERVAL} \|"),
    ),
    "vLLM, one": (
        ("README.md", rf"In vLLM, on one core, {NUMBER} times\s+plain vLLM with one request"),
        ("docs/vllm.md", rf"\| embedded, word-problems \| {NUMBER} \("),
    ),
    "vLLM, eight": (
        ("README.md", rf"plain vLLM with one request, {NUMBER} times with eight"),
        ("docs/vllm.md", rf"\| embedded, word-problems (?:\|[^|]*){{3}}\| {NUMBER} \("),
    ),
    "ConfAdapt's price": (
        ("README.md", rf"gated, ConfAdapt 0\.9 \| {NUMBER}% [^|]*\| {NUMBER} \|"),
        ("docs/claims.md", rf"{NUMBER} tokens per step and solves {NUMBER}% where"),
    ),
    "peers, the default": (
        ("README.md", rf"\*\*gated, Exact\*\* \(the default\) \| {NUMBER}% \| {NUMBER} \| {NUMBER} \| {NUMBER} \|"),
        ("docs/peers.md", rf"\| gated, Exact \| {NUMBER}% \| {NUMBER} \| {NUMBER} \| \d+ \| {NUMBER} \("),
    ),
    "peers, the paper's": (
        ("README.md", rf"\(the paper's method\) \| {NUMBER}% \| {NUMBER} \| {NUMBER} \| {NUMBER} \|"),
        ("docs/peers.md", rf"\(the paper's method\) \| {NUMBER}% \| {NUMBER} \| {NUMBER} \| \d+ \| {NUMBER} \("),
    ),
    "sampling": (
        ("README.md", rf"temperature 0\.8 it writes {NUMBER} tokens per step"),
        ("docs/embedded-models.md", rf"word-problems \| 93[^|]*\| [^|]*\| {NUMBER} \("),
    ),
    "greedy, with the head": (
        ("docs/drafts.md", rf"Greedy word problems: {NUMBER} tokens per step"),
        ("docs/drafts.md", rf"word-problems \| 0 \| [^|]*\| {NUMBER} \("),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_figure_is_the_same_wherever_it_stands(name: str) -> None:
    """Guards against a page with a new measurement while another still quotes the old number: readers then trust
    neither."""
    (here, as_written), (source, measured) = SAME[name]
    quoted, original = sorted(found(here, as_written)), sorted(found(source, measured))
    assert len(quoted) == len(original)
    for short, long in zip(quoted, original, strict=True):
        digits = len(short.partition(".")[2])
        assert abs(float(short) - float(long)) <= 0.5 * 10**-digits + 1e-9, f"{here}: {short}; {source}: {long}"


def test_the_policy_of_contributing_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example of CONTRIBUTING.md: with one class and one line, the policy can be used by its name."""
    from multitoken.decoding import Decoder
    from tests.parity.families import MASK, SUPPORTED

    (code,) = re.findall(r"^```python\n(@dataclass.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
    names = dict(vars(policies))
    exec(code, names)
    kind = names["Pairs"]
    monkeypatch.setitem(policies.POLICIES, kind.name, kind)
    policy = policies.make_policy("pairs", threshold=0.0)
    decoder = Decoder(SUPPORTED["llama"](), mask_id=MASK, trained_k=4)
    chunks = list(decoder.decode([[1, 5, 9]], policy=policy, max_new_tokens=9))
    assert [len(chunk.token_ids) for chunk in chunks][:4] == [2, 2, 2, 2]
    never = list(decoder.decode([[1, 5, 9]], policy=policies.make_policy("pairs", threshold=1.0), max_new_tokens=5))
    assert [len(chunk.token_ids) for chunk in never] == [1] * 5


def test_the_grader_of_contributing_grades(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example of CONTRIBUTING.md: a function and a line in `GRADERS`."""
    from multitoken.evaluation import graders

    names: dict[str, object] = {}
    (code,) = re.findall(r"^```python\n(def .*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
    exec(code, names)
    monkeypatch.setitem(graders.GRADERS, "first-word", graders.Grader("first-word", names["first_word"]))  # pyright: ignore[reportArgumentType]
    grader = graders.grader_named("first-word")
    assert grader.grade("Paris is it", "paris") is True and grader.grade("It is Paris", "paris") is False
