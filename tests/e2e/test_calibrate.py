"""`multitoken calibrate` as a user types it: what is stored and then used, what can be resumed, and what is refused."""

import json

import pytest

import multitoken as mt
from tests.e2e.command import run
from tests.unit.training.project import PROMPTS, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A base, prompts, a gated adapter of the base, and a copy of the base whose own weights were trained, so little that its
    answers are the same."""
    folder = make_project(tmp_path_factory.mktemp("project"), PROMPTS)
    for method, more in (("gated", ()), ("full", ("--learning-rate", 1e-5))):
        code = run("adapt", folder / "base", "--data", folder / "data.jsonl", "--output", folder / method, "--method", method,
                   "--steps", 3, "--k-max", 4, "--batch-size", 2, "--blocks-per-row", 2, "--max-new-tokens", 8, *more)  # fmt: skip
        assert code == 0
    return folder


def calibrate(project, model: str, *more) -> int:
    return run("calibrate", project / model, "--data", project / "data.jsonl", "--max-new-tokens", 8, *more)


def stored(project, model: str):
    return json.loads((project / model / "generation_config.json").read_text()).get("mtp", {})


def test_what_is_chosen_is_stored_and_used(project, capsys) -> None:
    before = stored(project, "gated")
    assert calibrate(project, "gated", "--policy", "exact", "--threshold", 0.25, "--no-write", "--json") == 0
    assert stored(project, "gated") == before
    found = json.loads(capsys.readouterr().out)
    assert {(c["policy"]["threshold"], c["policy"]["k"]) for c in found["candidates"]} == {(0.25, 4), (0.25, 2)}
    assert calibrate(project, "gated", "--policy", "exact", "--threshold", 0.25) == 0
    assert "no output changes" in " ".join(capsys.readouterr().out.split())
    now = stored(project, "gated")
    assert (now["policy"], now["threshold"]) == ("exact", 0.25) and now["k"] in (2, 4)
    assert mt.load(project / "gated").default_policy == mt.Exact(0.25, k=now["k"])


def test_nothing_is_promised_that_too_few_prompts_cannot_show(project, capsys) -> None:
    """A model whose weights were trained is compared with the one that it was made from. With too few prompts, nothing is
    promised and the model is not changed."""
    before = stored(project, "full")
    wanted = ["--min-identical", 0.99, "--original", project / "base", "--threshold", 0.9, "--policy", "confadapt"]
    assert calibrate(project, "full", *wanted) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Nothing can be promised" in said
    assert "at least 598" in said or "would be enough" in said
    assert stored(project, "full") == before


def test_an_interrupted_calibration_goes_on(project, capsys) -> None:
    """Half of the answers exist, and the last one is cut off. Complete rounds must not be answered again, and no answer may be
    missing at the end."""
    kept = project / "kept"
    wanted = ["--policy", "exact", "--threshold", 0.5, "--no-write", "--batch-size", 8, "--output", kept]
    assert calibrate(project, "gated", *wanted) == 0
    journal = kept / "answers.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 3 * len(PROMPTS)  # next token, k 4, k 2
    journal.write_text("\n".join(lines[:40]) + "\n" + lines[40][:20])
    assert calibrate(project, "gated", *wanted) == 1, "the answers of a run must not be replaced unasked"
    assert calibrate(project, "gated", *wanted, "--resume") == 0
    keys = [(row["run"], row["question"]) for row in map(json.loads, journal.read_text().splitlines()[1:])]
    assert len(set(keys)) == 3 * len(PROMPTS)
    whole = keys[: 3 * 8]  # eight questions, answered by every candidate; of the next eight, some answers are missing
    assert [keys.count(key) for key in whole] == [1] * len(whole)
    assert calibrate(project, "gated", *wanted, "--threshold", 0.7, "--resume") == 0, "further thresholds may come"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "exact", "--confidence", 1.5], "confidence is 1.5"),
        (["--policy", "exact", "--threshold", 1.5], "threshold is 1.5"),
        (["--policy", "exact", "--batch-size", 0], "is 0; expected at least 1"),
        (["--policy", "exact", "--max-new-tokens", 999], "256 positions"),
        (["--max-drop", 0.01], "needs answers to grade against"),
        (["--policy", "fast"], "policy is 'fast'"),
        ([], "say what may be lost"),
        (["--policy", "exact", "--prompts", 19], "19 prompts; calibration needs at least 20"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(project, capsys, more, message) -> None:
    output = project / "never"
    assert calibrate(project, "gated", *more, "--output", output) in (1, 2)
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())
    assert not output.exists()
