"""Two processes are one: same data, same gradients, one voice, one output folder."""

import json
import os
import subprocess
import sys

import pytest

from tests.unit.training.project import PROMPTS, make_project, run
from tests.unit.training.weights import largest_difference, weights


@pytest.mark.parametrize("method", ["full", "gated"])
def test_two_processes_equal_one(tmp_path, method: str) -> None:
    """Rows given twice, gradients of the wrong mean or a second writer would each train another model."""
    project = make_project(tmp_path, PROMPTS)
    options = {"method": method, "steps": 4, "k_max": 4, "blocks_per_row": 3, "learning_rate": 1e-2}
    options |= {"labels": "online", "loss_weights": "even", "optimizer": "adamw"}
    options |= {"max_new_tokens": 12, "checkpoint_every": 2} | ({"rank": 4} if method == "gated" else {})
    run(project, "one", batch_size=4, **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "multitoken.cli", "adapt", str(project / "base"), "--data", str(project / "data.jsonl")]
    command += ["--output", str(project / "two"), "--batch-size", "2", "--device", "cpu", "--report-to", "none"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("Mask token:") == 1
    assert largest_difference(weights(project / "one"), weights(project / "two")) < 1e-4
    assert not (project / "two.training").exists()
    one, two = (
        [entry for entry in json.loads((project / name / "adapt.json").read_text())["log"] if "loss" in entry]
        for name in ("one", "two")
    )
    # AdamW would forgive gradients of another scale; the norm does not.
    assert [entry["grad_norm"] for entry in one] == pytest.approx([entry["grad_norm"] for entry in two], rel=1e-3)
    assert [entry["loss"] for entry in one] == pytest.approx([entry["loss"] for entry in two], rel=1e-3)
