"""`multitoken estimate` as a user types it."""

import json

import pytest

from multitoken.models.loading import load_causal_lm
from tests.e2e.command import run
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny model, and prompts of which two are too long for it."""
    folder = tmp_path_factory.mktemp("project")
    tokenizer = tiny_tokenizer()
    tiny_llama(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"w{4 + i} w{5 + i}"} for i in range(12)] + [{"prompt": "w7 " * 250}] * 2
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "few.jsonl").write_text('{"prompt": "w7"}\n' * 3)
    (folder / "plain.txt").write_text("w7 w8 w9\n\nw10 w11\n")
    return folder


def test_json_is_the_last_line_and_words_are_on_stderr(project, capsys) -> None:
    """Scripts read standard output; a person must be told the interval, what it rests on, and what was dropped."""
    argv = ("estimate", project / "base", "--data", project / "data.jsonl", "--max-new-tokens", 20, "--k-max", 8)
    assert run(*argv, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {"k", "tokens_per_step", "interval", "summary", "calibration", "extrapolated", "provenance"} <= set(found)
    assert 1 <= found["interval"][0] <= found["tokens_per_step"] <= found["interval"][1] <= 8
    assert found["summary"]["prompts"] == 12 and found["dropped_too_long"] == 2 and found["records"] == 14
    words = " ".join(captured.err.split())
    for part in ("2 longer ones dropped", "tokens per step", "95%", "What limits it", "calibrated on", "parameters"):
        assert part in words
    assert run(*argv) == 0
    assert "Expect about" in capsys.readouterr().out


SHORT = ("--max-new-tokens", "20")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--data", "missing.jsonl", *SHORT], 1, "missing.jsonl"),
        (["--data", "PLAIN", *SHORT], 1, "plain text has no prompt"),
        (["--data", "FEW", *SHORT], 1, "from 3 prompts"),
        (["--data", "DATA", "--prompts", "3", *SHORT], 1, "from 3 prompts"),
        (["--data", "DATA", "--prompts", "0"], 2, "--prompts"),
        (["--data", "DATA"], 2, "choose --max-new-tokens 128"),
        (["--data", "DATA", "--max-new-tokens", "1"], 2, "at least 2"),
        (["--data", "DATA", "--max-new-tokens", "9", "--k-max", "1"], 2, "k_max is 1"),
    ],
)
def test_mistakes_are_named_with_an_exit_code(project, capsys, options, code, message) -> None:
    """Exit code 2 for usage, 1 for data, and no traceback."""
    places = {"DATA": project / "data.jsonl", "FEW": project / "few.jsonl", "PLAIN": project / "plain.txt"}
    assert run("estimate", project / "base", *(str(places.get(o, o)) for o in options)) == code
    err = capsys.readouterr().err
    assert message in " ".join(err.split()) and "Traceback" not in err


def test_an_adapted_model_is_sent_to_evaluate(project, tmp_path, capsys) -> None:
    """Its own next-token predictions are no longer the original's, and its gain can be measured."""
    from multitoken.checkpoints.save import save_checkpoint
    from multitoken.models.mtp_config import MtpConfig

    loaded = load_causal_lm(project / "base")
    mtp = MtpConfig(k=4, mask_token_id=3, mask_token="<unk>", method="full", base_name="base", base_hash="sha256:0")
    save_checkpoint(loaded.model, loaded.tokenizer, mtp, tmp_path / "adapted")
    assert run("estimate", tmp_path / "adapted", "--data", project / "data.jsonl") == 1
    assert "adapted already (k=4): measure it with multitoken evaluate" in " ".join(capsys.readouterr().err.split())
