"""The model class for the harness. Under next-token it gives the answers of the harness's own `hf` model, and under
Exact the same ones in fewer passes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from benchmarks.harness_gold import Gold, scores  # noqa: E402
from multitoken.checkpoints.export import export  # noqa: E402
from multitoken.errors import UsageError  # noqa: E402
from multitoken.evaluation.harness import MultitokenLM  # noqa: E402
from multitoken.quickstart.embedded import checkpoint, embedded_task  # noqa: E402
from tests.e2e.command import run as command  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning"),  # warnings of the harness and its libraries
    pytest.mark.slow,
]

GENERATE = """
task: sums-local
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
generation_kwargs: {until: ["\\n\\n"], do_sample: false, temperature: 0.0, max_gen_toks: 160}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "Answer: ([0-9]+)"}, {function: take_first}]
"""
CHOOSE = """
task: choose-local
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: ["1", "25", "Answer"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    questions = embedded_task("word-problems", 6).questions
    rows.write_text("".join(json.dumps({"question": q.prompt, "answer": q.answer}) + "\n" for q in questions))
    for name, text in {"generate": GENERATE, "choose": CHOOSE}.items():
        (folder / f"{name}.yaml").write_text(text % rows)
    return folder


@pytest.fixture(scope="module")
def tasks(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


def run(model: Any, tasks: TaskManager, *names: str) -> tuple[dict[str, Any], dict[str, list]]:
    results = lm_eval.simple_evaluate(
        model=model, tasks=list(names), task_manager=tasks, apply_chat_template=True, bootstrap_iters=0
    )
    assert results is not None
    return results, {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}


@pytest.fixture(scope="module")
def reference(tasks: TaskManager) -> tuple[dict[str, Any], dict[str, list]]:
    plain = HFLM(pretrained=str(checkpoint("base")), dtype="float32", device="cpu", batch_size=4)
    return run(plain, tasks, "sums-local", "choose-local")


def test_next_token_answers_and_scores_what_hf_does(tasks: TaskManager, reference: tuple) -> None:
    ours = MultitokenLM(str(checkpoint("base")), device="cpu", dtype="float32", batch_size=4)
    results, responses = run(ours, tasks, "sums-local", "choose-local")
    assert responses["sums-local"] == reference[1]["sums-local"]
    assert responses["choose-local"] == reference[1]["choose-local"]
    assert results["results"] == reference[0]["results"]
    assert results["config"]["multitoken"]["tasks"]["sums-local"]["tokens_per_step"] == 1.0


def test_exact_answers_the_same_in_fewer_passes(tasks: TaskManager, reference: tuple) -> None:
    ours = MultitokenLM(str(checkpoint("gated")), policy="exact", threshold=0.7, device="cpu", dtype="float32")
    results, responses = run(ours, tasks, "sums-local")
    assert responses["sums-local"] == reference[1]["sums-local"]
    said = results["config"]["multitoken"]
    assert (said["policy"], said["threshold"], said["k"]) == ("exact", 0.7, 16)
    assert said["tasks"]["sums-local"]["answers"] == 6
    assert said["tasks"]["sums-local"]["tokens_per_step"] > 3


def test_the_command_is_the_harness_s_own_with_our_model(folder: Path, reference: tuple, tmp_path: Path) -> None:
    model = f"pretrained={checkpoint('gated')},policy=exact,threshold=0.7,dtype=float32"
    arguments = ["--model_args", model, "--tasks", "sums-local", "--include_path", folder]
    arguments += ["--device", "cpu", "--apply_chat_template", "--output_path", tmp_path, "--log_samples"]
    assert command("lm-eval", *arguments) == 0
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert (results["config"]["model"], str(results["config"]["batch_size"])) == ("multitoken", "32")
    assert results["config"]["multitoken"]["tasks"]["sums-local"]["tokens_per_step"] > 3
    samples = next(tmp_path.rglob("samples_sums-local_*.jsonl")).read_text().splitlines()
    assert [row["resps"] for row in map(json.loads, samples)] == reference[1]["sums-local"]


def test_help_and_missing_tasks_say_what_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("lm-eval", "--help") == 0
    said = capsys.readouterr().out
    assert said.index("--model_args of multitoken: pretrained, policy") < said.index("usage: lm-eval")
    for more in ([], ["--tasks", "no-such-task"]):
        assert command("lm-eval", "--model_args", f"pretrained={checkpoint('gated')}", *more) == 2
        said = capsys.readouterr().err
        assert "Unexpected" not in said and "`multitoken lm-eval ls tasks` lists the tasks" in said


def test_a_task_that_asks_for_samples_gets_them() -> None:
    """Guards against greedy answers to a task whose `generation_kwargs` say `do_sample: true` and no temperature."""
    model: Any = SimpleNamespace(_seed=3, _spent={})
    assert MultitokenLM._sampling(model, {"do_sample": True}) == {"temperature": 1.0, "seed": 3}
    assert MultitokenLM._sampling(model, {"do_sample": True, "temperature": 0.0}) == {}
    assert MultitokenLM._sampling(model, {}) == {}


def test_an_unknown_argument_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no argument 'quantise' here; did you mean 'quantize'"):
        MultitokenLM(str(tmp_path / "nothing"), quantise="int8")


def test_the_harness_s_own_hf_model_decodes_an_export(tasks: TaskManager, reference: tuple, tmp_path: Path) -> None:
    """Guards against an export that only this project's model class can evaluate. It must work with `--model hf` and
    `trust_remote_code=True`."""
    export(checkpoint("gated"), tmp_path / "exported")
    model = HFLM(
        pretrained=str(tmp_path / "exported"), trust_remote_code=True, dtype="float32", device="cpu", batch_size=4
    )
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    _, responses = run(model, tasks, "sums-local")
    assert responses["sums-local"] == reference[1]["sums-local"]
    assert len(passes) < 80  # next-token decoding takes more than 200


def test_gold_answers_are_right_by_the_harness_s_own_filters(tmp_path: Path) -> None:
    """Guards against losing part of an answer before it reaches the harness's filters, or changing its text.
    benchmarks/harness_gold.py does the same with all of GSM8K."""
    solved = "He has {0} * 2 = <<{0}*2={1}>>{1} apples.\nThat is ${1},000 or so.\n#### {1}"
    rows = [{"question": f"Number {n}?", "answer": solved.format(n, 2 * n)} for n in range(8)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scores(tmp_path, Gold()) == {"strict-match": 1.0, "flexible-extract": 1.0}
