"""Do the harness's own filters find every right answer? `python -m benchmarks.harness_gold --data FOLDER`.

FOLDER holds GSM8K as its authors publish it (`train.jsonl` and `test.jsonl`, https://github.com/openai/grade-school-math). The harness's own
`gsm8k` task runs over these files with a model that answers each question with its gold answer. A score other than 1 would mean that tasks,
prompts or answers are passed on wrongly, and every model's score would have this error. Takes half a minute, without a network.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

TASK = "gsm8k-local"


class Gold(LM):
    """Answers each question with its gold answer."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [request.doc["answer"] for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError("gsm8k asks for no likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError("gsm8k asks for no likelihoods")


def local_gsm8k(data: Path, folder: Path) -> TaskManager:
    """The harness's `gsm8k` over local files, written to `folder` as the task `TASK`."""
    own = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "test")}
    task = {
        "include": str(own),
        "task": TASK,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    (folder / "local.yaml").write_text(json.dumps(task))  # JSON is YAML
    return TaskManager(include_path=str(folder), include_defaults=False)


def scores(data: Path, model: LM) -> dict[str, float]:
    """For each filter, the share of answers that the harness counts as right."""
    run: Any = lm_eval.simple_evaluate
    with tempfile.TemporaryDirectory() as folder:
        results = run(model=model, tasks=[TASK], task_manager=local_gsm8k(data, Path(folder)), bootstrap_iters=0)
    found = results["results"][TASK]
    return {name: found[f"exact_match,{name}"] for name in ("strict-match", "flexible-extract")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    a = parser.parse_args()
    questions = len((a.data / "test.jsonl").read_text().splitlines())
    for name, score in scores(a.data, Gold()).items():
        print(f"{name}: {round(score * questions):,} of {questions:,}")


if __name__ == "__main__":
    main()
