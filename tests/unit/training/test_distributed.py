"""Two processes equal one: same data, same gradients, output printed once, one output folder. A model may be split over
them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from multitoken.config import make_config
from multitoken.errors import UsageError
from multitoken.training.plan import plan
from multitoken.training.run_folder import open_run_folder
from tests.unit.training.project import PROMPTS, make_project, run
from tests.unit.training.weights import largest_difference, weights

OPTIONS = {"steps": 4, "k_max": 4, "blocks_per_row": 3, "learning_rate": 1e-2, "labels": "online"}
OPTIONS |= {"loss_weights": "even", "optimizer": "adamw", "max_new_tokens": 12, "checkpoint_every": 2}


def start(project: Path, name: str, processes: int = 2, **options) -> subprocess.Popen[str]:
    """Start `torchrun` with `processes` processes on the CPU. An option that is True becomes a flag without a value."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "multitoken.cli", "adapt", str(project / "base"), "--data", str(project / "data.jsonl")]
    command += ["--output", str(project / name), "--device", "cpu", "--report-to", "none"]
    for option, value in (OPTIONS | options).items():
        command += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out + err


def logged(folder: Path) -> list[dict[str, float]]:
    return [entry for entry in json.loads((folder / "adapt.json").read_text())["log"] if "loss" in entry]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("full", {}),
        ("gated", {"rank": 4}),
        ("full", {"shard": True, "next_token_weight": 1}),
        ("gated", {"rank": 4, "shard": True}),
    ],
    ids=["full", "gated", "full, split", "gated, split"],
)
def test_two_processes_equal_one(tmp_path, method: str, more: dict) -> None:
    """Guards against rows that are trained on twice, a wrong mean of gradients, a part that is not gathered, and a
    second process that writes. Each would give another model."""
    project = make_project(tmp_path, PROMPTS)
    options = OPTIONS | {"method": method} | {name: value for name, value in more.items() if name != "shard"}
    run(project, "one", batch_size=4, **options)
    said = finish(start(project, "two", method=method, batch_size=2, **more))
    assert said.count("Mask token:") == 1
    assert largest_difference(weights(project / "one"), weights(project / "two")) < 1e-4
    assert not (project / "two.training").exists()
    one, two = logged(project / "one"), logged(project / "two")
    # AdamW hides a wrong scale of the gradients; their norm shows it.
    assert [entry["grad_norm"] for entry in one] == pytest.approx([entry["grad_norm"] for entry in two], rel=1e-3)
    assert [entry["loss"] for entry in one] == pytest.approx([entry["loss"] for entry in two], rel=1e-3)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("shard", [False, True], ids=["", "split"])
def test_a_process_that_dies_ends_the_others_and_one_process_goes_on(tmp_path, shard: bool) -> None:
    """A killed rank must not leave the others waiting. If the run is resumed from the checkpoint, unsplit and with
    another number of processes, it must end like an uninterrupted run."""
    project = make_project(tmp_path, PROMPTS)
    options = {"method": "full", "steps": 12, "next_token_weight": 1.0, "checkpoint_every": 1}
    run(project, "one", **(OPTIONS | options | {"batch_size": 4}))
    torchrun = start(project, "two", batch_size=2, **(options | ({"shard": True} if shard else {})))
    wait_for(lambda: any((project / "two.training").glob("checkpoint-*/.complete")) or torchrun.poll() is not None)
    ranks = psutil.Process(torchrun.pid).children()
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    _, err = torchrun.communicate(timeout=60)
    assert torchrun.returncode != 0 and "SIGKILL" in err
    assert not (project / "two").exists()
    run(project, "two", **(OPTIONS | options | {"batch_size": 4, "resume": True}))
    assert largest_difference(weights(project / "one"), weights(project / "two")) < 1e-4


def test_a_dry_run_of_a_split_model_is_refused(tmp_path) -> None:
    """A dry run would print the memory of one process as that of all."""
    config = make_config(model="m", data="d", output=tmp_path / "out", method="gated", shard=True)
    with pytest.raises(UsageError, match="leave shard out"):
        plan(config, Console(quiet=True))


def test_other_rows_are_no_continuation(tmp_path) -> None:
    """Twice as many rows per step are another run, and the error names the number that changed and how it is computed.
    The same number of rows in two halves is not another run."""
    config = {"model": "m", "data": "d", "output": tmp_path / "out", "resume": True, "steps": 4}
    open_run_folder(tmp_path / "work", make_config(**(config | {"resume": False, "batch_size": 4})))
    assert open_run_folder(tmp_path / "work", make_config(**config, batch_size=2, gradient_accumulation=2)) is None
    with pytest.raises(UsageError, match="rows_per_step was 4, now 8; rows_per_step is batch_size x"):
        open_run_folder(tmp_path / "work", make_config(**config, batch_size=8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard": True, "method": "full", "optimizer": "muon"}, "needs optimizer=adamw"),
        ({"shard": True, "method": "full", "optimizer": "adamw"}, "torchrun"),
        ({"shard": True, "method": "lora"}, "merged into whole weights"),
        ({"shard": True, "method": "gated", "device_map": "auto"}, "give one of them"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(make_project(tmp_path), "out", **options)
