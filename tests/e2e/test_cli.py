"""The command line as a user types it: what it prints, what it writes, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import multitoken
from multitoken.commands.adapt import _help
from multitoken.commands.flags import with_flags
from tests.e2e.command import run
from tests.unit.training.project import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A base model, data, a task, and the model adapted from it by the command itself."""
    rows = [
        {"prompt": f"w{4 + i} w{5 + i}", "response": " ".join(f"w{4 + (i + j) % 40}" for j in range(8))}
        for i in range(20)
    ]
    folder = make_project(tmp_path_factory.mktemp("project"), rows)
    (folder / "task.jsonl").write_text(
        "".join(json.dumps({"prompt": r["prompt"], "answer": "w7"}) + "\n" for r in rows[:4])
    )
    code = run("adapt", folder / "base", "--data", folder / "data.jsonl", "--output", folder / "adapted", "--steps", 3, "--method", "full",
               "--k-max", 4, "--batch-size", 2, "--blocks-per-row", 2)  # fmt: skip
    assert code == 0
    return folder


def test_generate_prints_one_json_object_last(project, capsys) -> None:
    """Scripts read the last line, so everything else must stay out of standard output."""
    assert (
        run(
            "generate",
            project / "adapted",
            "w7 w8",
            "--policy",
            "exact",
            "--threshold",
            0.3,
            "--max-new-tokens",
            9,
            "--json",
        )
        == 0
    )
    out = capsys.readouterr().out
    answer = json.loads(out)
    assert set(answer) == {"text", "token_ids", "chunk_sizes", "forward_passes", "tokens_per_step", "seconds"}
    assert sum(answer["chunk_sizes"]) == len(answer["token_ids"]) <= 9
    assert answer["forward_passes"] == len(answer["chunk_sizes"])
    run("generate", project / "adapted", "w7 w8", "--policy", "next-token", "--max-new-tokens", 9, "--json")
    assert json.loads(capsys.readouterr().out)["token_ids"] == answer["token_ids"]


def test_generate_works_with_a_model_that_was_never_adapted(project, capsys) -> None:
    """The same commands are used for the baseline."""
    assert run("generate", project / "base", "w7 w8", "--max-new-tokens", 5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["forward_passes"] <= 5
    assert run("generate", project / "base", "w7", "--policy", "exact", "--k", 3) == 2
    assert "no mask token" in capsys.readouterr().err


def test_evaluate_writes_numbers_picture_and_page(project, capsys) -> None:
    """Other tools read results.json, so its fields are fixed."""
    out = project / "evaluation"
    assert run("evaluate", project / "adapted", "--original", project / "base", "--task", project / "task.jsonl",
               "--output", out, "--policy", "exact:0.5", "--policy", "confadapt:0.9", "--max-new-tokens", 8, "--json") == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = json.loads((out / "results.json").read_text())
    assert set(stored) == {"provenance", "rows"} and len(stored["rows"]) == len(printed["rows"]) == 4
    promised = {"task", "model", "policy", "threshold", "k", "prompts", "accuracy", "identical_to_original",
                "tokens_per_step", "tokens_per_second", "forward_passes"}  # fmt: skip
    assert all(promised <= set(row) for row in stored["rows"])
    assert {row["model"] for row in stored["rows"]} == {"original", "adapted"}
    exact = next(row for row in stored["rows"] if row["policy"] == "exact")
    assert exact["identical_to_own_next_token"] + exact["own_ties"] == 4
    assert (out / "tradeoff.png").read_bytes().startswith(b"\x89PNG") and "<html" in (out / "report.html").read_text()
    assert run("evaluate", project / "adapted", "--task", project / "task.jsonl", "--output", out) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_evaluate_samples_with_the_same_seeds(project, capsys) -> None:
    """With a temperature, "identical" compares answers with the same seed. Drafts must change no answer, and the results must
    say how the answers were drawn."""
    out = project / "sampled"
    assert run("evaluate", project / "adapted", "--task", project / "task.jsonl", "--output", out, "--policy", "exact:0",
               "--max-new-tokens", 8, "--temperature", 5, "--top-p", 0.9, "--seed", 3) == 0  # fmt: skip
    assert "temperature 5, top-p 0.9, seed 3" in " ".join(capsys.readouterr().out.split())
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["identical_to_own_next_token"] + row["own_ties"] for row in rows] == [4, 4]
    assert all(
        (row["sampling"]["temperature"], row["sampling"]["top_p"], row["sampling"]["seed"]) == (5, 0.9, 3)
        for row in rows
    )
    assert (out / "report.html").read_text().count("temperature 5, top-p 0.9, seed 3") >= 3  # title, summary and table


def test_generate_samples_with_a_seed(project, capsys) -> None:
    """One seed gives one text, with or without drafts, and it is not the greedy one."""

    def text(*options) -> str:
        assert run("generate", project / "adapted", "w7 w8", "--max-new-tokens", 12, "--json", *options) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["text"]

    hot = ("--temperature", 5, "--seed", 3)
    assert text(*hot, "--policy", "exact", "--threshold", 0) == text(*hot, "--policy", "next-token") != text()
    assert text("--temperature", 0, "--seed", 3) == text()
    assert text(*hot, "--top-k", 1) == text(*hot, "--min-p", 1) == text()


def test_the_last_line_of_generate_adds_up(project, capsys) -> None:
    """The pass of the prompt is no step. Guards against a quotient that is not the number printed."""
    assert run("generate", "demo", "Count from 357 to 372.", "--max-new-tokens", 5, "--policy", "next-token") == 0
    said = capsys.readouterr().out
    assert "5 tokens in 5 forward passes (1.00 tokens per step after the prompt's pass)" in said
    assert run("generate", "demo", "Count from 357 to 372.", "--max-new-tokens", 1) == 0
    assert "1 token in 1 forward pass, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evaluate", "m", "--output", "o"], "`multitoken evaluate` continues with --resume"),
        (["calibrate", "m", "--output=o"], "`multitoken calibrate` continues with --resume"),
        (["calibrate", "m"], "With --output, an interrupted `multitoken calibrate` can be continued"),
        (["generate", "m", "p"], "Interrupted.\n"),
    ],
)
def test_ctrl_c_says_how_to_continue(monkeypatch, capsys, argv, says) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("multitoken.cli.app", interrupted)
    assert run(*argv) == 130
    assert says in capsys.readouterr().err


def test_recipe_holds_options_and_refuses_unknown_ones(project, capsys) -> None:
    """A misspelt key in a recipe must be refused: it would silently train something else."""
    recipe = project / "recipe.yaml"
    recipe.write_text(
        f"model: {project / 'base'}\ndata: {project / 'data.jsonl'}\noutput: {project / 'from-recipe'}\nsteps: 1\nk_max: 4\nbatch_size: 2\nmethod: full\n"
    )
    assert run("adapt", "--config", recipe) == 0
    assert json.loads((project / "from-recipe" / "config.json").read_text())["mtp"]["k"] == 4
    recipe.write_text("stepz: 1\n")
    assert run("adapt", "--config", recipe) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


BASE, DATA = "BASE", "DATA"
EVALUATE = ("evaluate", "ADAPTED", "--task", "TASK", "--output", "OUT2")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["adapt", "no/such/model/here", "--data", DATA], 1, "does not exist"),
        (["adapt", BASE, "--data", "missing.jsonl"], 1, "missing.jsonl"),
        (["adapt", BASE, "--data", "EMPTYROW"], 1, "expected"),
        (["adapt", BASE, "--data", DATA, "--k-max", "1"], 2, "at least 2"),
        (["adapt", BASE, "--data", DATA, "--steps", "3", "--minutes", "2"], 2, "not both"),
        (["adapt", BASE, "--data", DATA, "--resume"], 1, "no unfinished run"),
        (["adapt", BASE, "--data", DATA, "--method", "magic"], 2, "method is 'magic'"),
        (["adapt", BASE, "--data", DATA, "--learning-rate", "fast"], 2, "--learning-rate"),
        (["adapt", BASE], 2, "--data is missing"),
        (["adapt", BASE, "--data", DATA, "--pack", "--join-share", "0.5"], 2, "--join-share 0.5 joins"),
        (["adapt", "ADAPTED", "--data", DATA], 1, "adapted was adapted already (by method full): give the model"),
        (["adapt", BASE, "--data", DATA, "--method", "lora", "--start-from", "x"], 2, "only --method gated"),
        (["generate", "ADAPTED", "w7", "--policy", "exact", "--threshold", "1.7"], 2, "threshold is 1.7"),
        (["generate", "ADAPTED", "w7", "--policy", "exact", "--k", "9"], 2, "trained for k up to 4"),
        (["generate", "ADAPTED", "w7", "--policy", "sure"], 2, "expected one of"),
        (["generate", "ADAPTED", "w7", "--policy", "exact:2"], 2, "threshold is 2"),
        (["generate", "ADAPTED", "w7", "--policy", "exact:0.5", "--threshold", "0.4"], 2, "leave --threshold out"),
        (["generate", "ADAPTED", "w7", "--temperature", "-1"], 2, "--temperature is -1.0; expected a number above 0"),
        (["generate", "ADAPTED", "w7", "--device", "foo"], 2, "cuda:N, mps, xpu"),
        (["generate", BASE, "w7", "--threshold", "0.5"], 2, "no threshold"),
        (["generate", "ADAPTED", "w7 <MTP>"], 2, "mask token"),
        (["generate", "ADAPTED", ""], 2, "empty"),
        (["generate", "ADAPTED", "w7", "--max-new-tokens", "999"], 2, "256 positions"),
        (["evaluate", "ADAPTED", "--task", "poems", "--output", "OUT2"], 2, "no task 'poems'"),
        (["evaluate", "ADAPTED", "--task", "TASK", "--output", "OUT2", "--policy", "exact:2"], 2, "threshold is 2"),
        (["demo", "--fast", "--minutes", "3", "--output", "OUT2"], 2, "--minutes"),
        (["demo", "--questions", "0", "--output", "OUT2"], 2, "0 questions"),
        (["demo", "--minutes", "0", "--output", "OUT2"], 2, "minutes is 0"),
        ([*EVALUATE, "--batch-size", "0"], 2, "is 0; expected at least 1"),
        ([*EVALUATE, "--policy", "static:9"], 2, "trained for k up to 4"),
        (
            ["evaluate", BASE, "--task", "TASK", "--output", "OUT2", "--policy", "exact:0.5"],
            2,
            "no model here has a mask",
        ),
        ([*EVALUATE, "--max-new-tokens", "999"], 1, "256 positions"),
        ([*EVALUATE, "--temperature", "-1"], 2, "temperature is -1"),
        ([*EVALUATE, "--temperature", "0.8", "--top-p", "1.5"], 2, "--top-p is 1.5"),
        ([*EVALUATE, "--temperature", "0.8", "--top-k", "0"], 2, "--top-k is 0"),
        ([*EVALUATE, "--top-p", "0.9"], 2, "add --temperature"),
        ([*EVALUATE, "--temperature", "0", "--seed", "1"], 2, "add --temperature"),
        (["fly"], 2, "fly"),
    ],
)
def test_mistakes_are_named_with_the_mend_and_an_exit_code(project, tmp_path, capsys, argv, code, message) -> None:
    """Exit code 2 for usage errors and 1 for all others, no traceback, and no files left behind."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w7"}\n{"title": "no text"}\n')
    places = {
        BASE: project / "base", DATA: project / "data.jsonl", "ADAPTED": project / "adapted",
        "TASK": project / "task.jsonl", "EMPTYROW": tmp_path / "bad.jsonl", "OUT2": tmp_path / "out2",
    }  # fmt: skip
    words = [str(places.get(a, a)) for a in argv]
    if argv[0] == "adapt":
        words += ["--output", str(tmp_path / "out")]
    assert run(*words) == code
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err
    assert "0/?" not in out and "embedded base" not in out, "nothing is shown before a mistake is named"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out2").exists()


def test_resuming_a_run_that_is_done_says_how_to_go_on(project, capsys) -> None:
    """ "Choose another output" would start anew, and --overwrite would remove what was trained."""
    done = ("adapt", project / "base", "--data", project / "data.jsonl", "--output", project / "adapted", "--resume")
    assert run(*done, "--method", "full") == 1
    assert "is complete, so nothing is left to resume; to train longer, run it again" in capsys.readouterr().err
    assert run(*done) == 1
    assert f"add --start-from {project / 'adapted'}" in capsys.readouterr().err


def test_a_policy_may_hold_its_number(project, capsys) -> None:
    """evaluate takes exact:0.3, so the other commands must as well."""
    printed = []
    for policy in (("exact:0.3",), ("exact", "--threshold", 0.3)):
        assert run("generate", project / "adapted", "w7 w8", "--max-new-tokens", 9, "--json", "--policy", *policy) == 0
        printed.append(json.loads(capsys.readouterr().out.splitlines()[-1])["chunk_sizes"])
    assert printed[0] == printed[1]


def test_version(capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"multitoken {multitoken.__version__}\n"
    assert {"load", "Exact", "adapt", "__version__"} <= set(dir(multitoken))


def test_demo_is_the_embedded_base_model_for_adapt(tmp_path, capsys) -> None:
    """Every other command takes this name. The smallest run that shows how adapt works needs a model to adapt."""
    rows = "".join(
        json.dumps({"prompt": f"What is {i} plus 2?", "response": f"It is {i + 2}."}) + "\n" for i in range(9)
    )
    (tmp_path / "data.jsonl").write_text(rows)
    argv = ("adapt", "demo", "--data", tmp_path / "data.jsonl", "--output", tmp_path / "out", "--steps", 1)
    assert run(*argv, "--batch-size", 2, "--report-to", "none") == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["mtp"]["base_name"] == "base"
    assert "fewer than 100 samples (found 9)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("data is missing. Training data", "--data is missing. Training data"),
        ("leave k_max=4 out, or raise steps", "leave --k-max 4 out, or raise steps"),
        ("max_drop=0.01 or policy='exact'", "--max-drop 0.01 or --policy exact"),
        ("leave policy out; or resume=True, write=False", "leave --policy out; or --resume, --no-write"),
        ("/runs/k_max/data is a file; 'k_max' too", "/runs/k_max/data is a file; 'k_max' too"),
        ("the data holds no steps", "the data holds no steps"),
    ],
)
def test_messages_name_options_as_flags(message: str, shown: str) -> None:
    """One who typed --k-max looks for --k-max. A folder or an ordinary word of the same name is left as it is."""
    names = ("data", "k_max", "steps", "max_drop", "policy", "resume", "write")
    assert with_flags(message, {name: f"--{name.replace('_', '-')}" for name in names}) == shown


def test_help_names_options_as_flags() -> None:
    assert "--blocks-per-row" in (_help("pack")) and "k_max" not in _help("k_schedule")


def test_an_output_folder_in_use_is_left_alone(project, capsys) -> None:
    """The folder contains somebody's model."""
    before = (project / "adapted" / "config.json").read_text()
    assert (
        run("adapt", project / "base", "--data", project / "data.jsonl", "--output", project / "adapted", "--steps", 1)
        == 1
    )
    assert "--overwrite" in capsys.readouterr().err
    assert (project / "adapted" / "config.json").read_text() == before


def test_help_is_quick_to_load(project) -> None:
    """Importing torch takes seconds, so `--help` must not import it."""
    probe = "import sys; from multitoken.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_model_and_resumes(project, how) -> None:
    """After Ctrl-C or a power cut in the middle of a run, nothing half-written is at the output, and --resume finishes it."""
    output = project / f"killed-{how.name}"
    argv = [sys.executable, "-m", "multitoken.cli", "adapt", project / "base", "--data", project / "data.jsonl", "--output",
            output, "--steps", "300", "--k-max", "4", "--batch-size", "2", "--checkpoint-every", "10"]  # fmt: skip
    command = [str(a) for a in argv]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore Ctrl-C, and so would the processes that they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    work = Path(f"{output}.training")
    deadline = time.monotonic() + 240
    while not list(work.glob("checkpoint-*/.complete")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate()
    assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL), err
    assert not output.exists() and work.exists()
    if how is signal.SIGINT:
        assert b"--resume" in err and b"Traceback" not in err
    assert run(*command[3:], "--resume") == 0
    assert json.loads((output / "adapt.json").read_text())["steps"] == 300
