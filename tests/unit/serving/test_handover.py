"""The flags that `vllm serve` is given."""

from pathlib import Path

import pytest

from multitoken.errors import UsageError
from multitoken.serving.handover import serve_with_vllm, vllm_arguments
from multitoken.serving.options import ServeOptions
from tests.e2e.command import run


def test_flags_are_vllms_own() -> None:
    options = ServeOptions("m", port=9, max_rows=4, api_key="secret", origins=("https://a.example",))
    decoding = {"policy": "confadapt", "threshold": 0.8}
    assert vllm_arguments("folder", options, decoding=decoding, dtype="bfloat16", trust_remote_code=True) == [
        *("serve", "folder", "--host", "127.0.0.1", "--port", "9", "--served-model-name", "m", "--max-num-seqs", "4"),
        *("--additional-config", '{"mtp": {"policy": "confadapt", "threshold": 0.8}}'),
        *("--dtype", "bfloat16", "--allowed-origins", '["https://a.example"]', "--trust-remote-code"),
    ]


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"multitoken\[vllm\]"):
        serve_with_vllm("folder", ServeOptions("m"))


def test_only_what_is_given_replaces_the_checkpoints_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against `--k` that also resets a threshold that calibration has stored."""
    called: list[list[str]] = []
    monkeypatch.setattr("shutil.which", lambda name: "/bin/vllm")
    monkeypatch.setattr("os.execv", lambda program, arguments: called.append(arguments) or exit(0))
    assert run("serve", "demo", "--engine", "vllm", "--k", 8) == 0
    assert called[0][called[0].index("--additional-config") + 1] == '{"mtp": {"k": 8}}'


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-tokens", 100], "--max-tokens"),
        (["--base", "somewhere"], "--base"),
        (["--device", "cpu", "--queue", 3], "--queue, --device"),
        (["--policy", "next-token", "--threshold", 0.5], "no threshold"),
    ],
)
def test_what_vllm_cannot_do_is_named(monkeypatch: pytest.MonkeyPatch, capsys, more: list, message: str) -> None:
    """A limit that is silently dropped would be worse than an error."""
    monkeypatch.setattr("shutil.which", lambda name: "/bin/vllm")
    monkeypatch.setattr("os.execv", lambda program, arguments: exit(0))
    assert run("serve", "demo", "--engine", "vllm", *more) == 2
    assert message in capsys.readouterr().err
