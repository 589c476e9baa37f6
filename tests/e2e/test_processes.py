"""`torchrun -m multitoken.cli evaluate`: several processes together give the answers that one gives alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

ARGUMENTS = [
    "evaluate",
    "demo",
    "--task",
    "letters",
    "--prompts",
    "9",
    "--policy",
    "exact",
    "--policy",
    "confadapt:0.9",
]
TIMES = {"seconds", "tokens_per_second", "speedup", "speedup_interval"}


def evaluate(output: Path, processes: int, *more: str) -> list[dict]:
    """The rows, without the measured times."""
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *run, "-m", "multitoken.cli", *ARGUMENTS, "--output", str(output), "--json", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") == 1, "the first process alone speaks"
    rows = json.loads(done.stdout)["rows"]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_two_processes_answer_what_one_does_and_either_goes_on_with_the_others_answers(tmp_path: Path) -> None:
    """If a question were left out or counted twice, or two processes wrote one file at once, rows would change or answers would
    be lost."""
    alone = evaluate(tmp_path / "one", 1)
    assert evaluate(tmp_path / "two", 2) == alone
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "answers.jsonl",
        "results.json",
        "report.html",
        "tradeoff.png",
    }
    journal = tmp_path / "two" / "answers.jsonl"
    facts, *answers = journal.read_text().splitlines(keepends=True)
    assert len(answers) == 27
    journal.write_text(facts + "".join(answers[:9]))  # as two killed processes leave it
    (tmp_path / "two" / "answers-1.jsonl").write_text(facts + "".join(answers[9:20]) + answers[20][:30])
    assert evaluate(tmp_path / "two", 2, "--resume") == alone
    assert set(answers[:20]) <= set(journal.read_text().splitlines(keepends=True)), (
        "kept with their clocks, not answered again"
    )
    assert not (tmp_path / "two" / "answers-1.jsonl").exists()
